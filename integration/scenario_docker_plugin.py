"""Docker's volumes on Blockyard: real dockerd, our plugin, and hosts that die, are cut off, and come back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from integration import docker_host, image
from integration.conftest import IQN
from integration.docker_host import DockerHost
from integration.guest import HOST_ADDRESS, Guest
from integration.product import Product, free_port

SUM = "busybox sha256sum /data/file"
WRITE = f"busybox dd if=/dev/urandom of=/data/file bs=64k count=64 2>/dev/null && busybox sync && {SUM}"
# Until it fails: some lines a second, each on the disk before the next one.
SCRIBBLE = (
    "i=0; while echo $i >>/data/lines && busybox sync;"
    " do i=$((i+1)); echo wrote $i; busybox sleep 0.2; done; echo failed"
)
PING_SECONDS = 3  # twice as many after its last sign of life a host counts as dead
LOOK = "/opt/blockyard/bin/python3 /run/harness/integration/inside/look_at_volume.py"

pytestmark = pytest.mark.timeout(1500)  # two emulated dockerds, and a busy machine


@pytest.fixture(scope="module")
def hosts(
    serve: Callable[..., Product], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DockerHost, DockerHost]]:
    """Two container hosts in front of one target, its API over TLS, a token each."""
    folder = tmp_path_factory.mktemp("docker")
    certificate, key = docker_host.make_certificate(folder)
    port = free_port()
    tls = ("--api-listen", f"127.0.0.1:{port}", "--tls-cert", str(certificate), "--tls-key", str(key))
    pings = ("--ping-interval", str(PING_SECONDS), "--ping-timeout", str(PING_SECONDS))
    target = serve(options=tls + pings)
    archive = docker_host.installation(folder)
    guests = [Guest(image.get(), name, IQN.format(name), folder, disks=(archive,)) for name in ("docker-a", "docker-b")]
    try:
        for guest in guests:
            guest.power_on()
        made = []
        for guest in guests:
            guest.wait_until_ready()
            made.append(DockerHost(guest, target, f"https://{HOST_ADDRESS}:{port}", certificate))
            made[-1].set_up()
        yield made[0], made[1]
    finally:
        for guest in guests:
            guest.power_off_hard()


@pytest.fixture(autouse=True)
def connected(hosts: tuple[DockerHost, DockerHost]) -> Iterator[None]:
    """A test that fails leaves no host cut off for the next one."""
    yield
    for host in hosts:
        if host.guest.on:
            host.guest.run("ip link set eth0 up")


def _since(began: float) -> str:
    return f"`docker run` to data, pings every {PING_SECONDS} s, {time.monotonic() - began:.1f} s: the volume"


def test_volumes_come_and_go_by_dockers_own_verbs(hosts: tuple[DockerHost, DockerHost]) -> None:
    a, b = hosts
    a.create("shop_data", size="400M", fs="xfs", cache="writethrough")
    summed = a.run("shop_data", WRITE).stdout
    assert a.left() == []
    assert b.docker("volume", "ls", "-q").text == "shop_data"
    assert b.run("shop_data", SUM).stdout == summed
    shown = json.loads(b.docker("volume", "inspect", "shop_data").stdout)[0]
    assert (shown["Scope"], shown["Status"]["fs"], shown["Status"]["health"]) == ("global", "xfs", "serving")
    a.docker("volume", "rm", "shop_data")
    b.guest.run('for i in $(seq 30); do [ -z "$(docker volume ls -q)" ] && exit 0; sleep 0.5; done; exit 1')
    assert "no such volume" in b.docker("volume", "inspect", "shop_data", check=False).stderr.decode().lower()


def test_refusals_are_told_in_dockers_own_output(hosts: tuple[DockerHost, DockerHost]) -> None:
    a, b = hosts
    create = ("volume", "create", "-d", "blockyard")
    for options, message in (
        (("-o", "sise=1G"), "unknown option sise; allowed are size"),
        (("-o", "fs=ntfs"), "option fs=ntfs: allowed is ext4, xfs or raw"),
        (("-o", "size=tiny"), "option size=tiny: allowed is such as 10G"),
        (("-o", "from=none@monday"), "none"),
    ):
        refused = a.docker(*create, *options, "wrong", check=False)
        assert refused.code != 0
        assert message in refused.stderr.decode(), refused
    a.create("held")
    holding = a.start("held", "echo up; busybox sleep 1000", "--name", "holder")
    holding.wait_for_output("up", 120)
    refused = b.run("held", "true", check=False)
    assert f"held is attached to host {a.guest.initiator}, which answers" in refused.stderr.decode(), refused
    refused = b.docker("volume", "rm", "held", check=False)
    assert a.guest.initiator in refused.stderr.decode(), refused
    a.docker("kill", "holder")
    a.wait_until_clean(30)
    b.docker("volume", "rm", "held")


def test_containers_outlive_the_plugin_and_lists_outlive_the_target(
    hosts: tuple[DockerHost, DockerHost], serve: Callable[..., Product], remark: Callable[[str], None]
) -> None:
    a, _ = hosts
    a.create("kept")
    writing = a.start("kept", SCRIBBLE, "--name", "writer")
    writing.wait_for_output("wrote 3", 120)
    a.kill_plugin()
    a.start_plugin()
    a.guest.run("ip link set eth0 down")
    began = time.monotonic()
    assert a.docker("volume", "ls", "-q").text == "kept"
    remark(f"docker volume ls with the target away: {time.monotonic() - began:.1f} s")
    a.guest.run("ip link set eth0 up")
    a.docker("exec", "writer", "/bin/sh", "-c", "busybox tail -n 1 /data/lines")
    a.docker("kill", "writer")
    a.wait_until_clean(60)
    assert "failed" not in writing.wait(60, check=False).text
    a.docker("volume", "rm", "kept")


def test_a_host_that_is_cut_off_is_fenced_and_cleans_up(
    hosts: tuple[DockerHost, DockerHost], remark: Callable[[str], None]
) -> None:
    a, b = hosts
    a.create("cut")
    writing = a.start("cut", SCRIBBLE, "--name", "stale")
    writing.wait_for_output("wrote 5", 120)
    a.guest.run("ip link set eth0 down")
    began = time.monotonic()
    taken = b.run(
        "cut",
        "busybox wc -l </data/lines; echo taken >/data/owner; busybox sync; busybox sha256sum /data/lines /data/owner",
    )
    remark(f"{_since(began)} of a host that was cut off")
    assert int(taken.text.split()[0]) >= 5
    a.guest.run("ip link set eth0 up")
    a.wait_until_clean(120)
    assert "failed" in writing.wait(60, check=False).text
    # Not one byte of A's has come since.
    again = b.run("cut", "busybox sha256sum /data/lines /data/owner").stdout
    assert taken.stdout.endswith(again)
    b.guest.run(f"PYTHONPATH= {LOOK} cut e2fsck -fn", timeout=120)
    a.docker("volume", "rm", "cut")


def test_a_volume_is_there_on_another_host_after_a_power_cut(
    hosts: tuple[DockerHost, DockerHost], remark: Callable[[str], None]
) -> None:
    a, b = hosts
    a.create("data")
    writing = a.start("data", f"{WRITE} && busybox sleep 1000")
    writing.wait_for_output("/data/file\n", 120)
    a.guest.power_off_hard()  # with the container alive and the volume mounted
    began = time.monotonic()
    found = b.run("data", SUM)
    remark(f"{_since(began)} of a host that lost its power")
    assert found.stdout == writing.output
    b.guest.run(f"PYTHONPATH= {LOOK} data e2fsck -fn", timeout=120)
    assert b.left() == []
    a.guest.power_on()
    a.guest.wait_until_ready()
    a.set_up()
    assert a.run("data", SUM).stdout == found.stdout
    a.docker("volume", "rm", "data")
