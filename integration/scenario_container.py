"""A container's data outlives its host: written on one machine, which loses its power, and read on another."""

from __future__ import annotations

from integration.guest import Command, Guest
from integration.initiator import Initiator
from integration.product import Product

DOCKERD_LIMIT = 300.0  # seconds; 14 on an idle machine, minutes on a busy one
DOCKERD_POLL = 2.0  # seconds; the client itself is work for an emulated processor
# No network for containers and no registry: a bridge and its filter rules would only cost boot time.
DOCKERD = "dockerd --bridge=none --iptables=false --ip6tables=false --storage-driver=overlay2"
# A root file system of busybox alone, from the guest's own package.
IMPORT = (
    "mkdir -p /tmp/rootfs/bin /tmp/rootfs/data && cp /bin/busybox /tmp/rootfs/bin/ && ln -s busybox /tmp/rootfs/bin/sh"
    " && tar -C /tmp/rootfs -cf - . | docker import - box"
)
SUM = "busybox sha256sum /data/file"


def _start_dockerd(guest: Guest) -> Command:
    return guest.start(f"exec {DOCKERD} 2>/tmp/dockerd.log")


def _wait_for_dockerd(guest: Guest) -> None:
    tries = int(DOCKERD_LIMIT / DOCKERD_POLL)
    answers = "[ -S /run/docker.sock ] && docker info >/dev/null 2>&1"
    ready = f"for i in $(seq {tries}); do {answers} && exit 0; sleep {DOCKERD_POLL}; done"
    guest.run(f"{ready}; cat /tmp/dockerd.log; exit 1", timeout=DOCKERD_LIMIT + 60)
    guest.run(IMPORT, timeout=120)


def _container(folder: str, script: str) -> list[str]:
    """The words that run ``script`` in a container which has ``folder`` as its /data."""
    return ["docker", "run", "--rm", "--network", "none", "-v", f"{folder}:/data", "box", "/bin/sh", "-c", script]


def test_a_container_finds_its_data_on_another_host_after_a_power_cut(
    host_a: Initiator, host_b: Initiator, target: Product
) -> None:
    for host in (host_a, host_b):
        _start_dockerd(host.guest)
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    for host in (host_a, host_b):
        _wait_for_dockerd(host.guest)

    write = "busybox dd if=/dev/urandom of=/data/file bs=64k count=64 2>/dev/null && busybox sync"
    writing = host_a.guest.start(_container(folder, f"{write} && {SUM} && busybox sleep 1000"))
    writing.wait_for_output("/data/file\n", 120)
    host_a.guest.power_off_hard()  # with the container alive and the volume mounted

    folder = host_b.mount(host_b.connect(group.iqn))
    assert host_b.guest.run(_container(folder, SUM), timeout=120).stdout == writing.output
