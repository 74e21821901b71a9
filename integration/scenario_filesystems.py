"""A Linux host finds a target, makes file systems on its volumes, and reads back what it wrote."""

from __future__ import annotations

import time

import pytest

from integration.capture import Capture
from integration.initiator import Initiator
from integration.product import Group, Product

MIB = 1 << 20


def _write_and_hash(host: Initiator, folder: str, size: int = 24 * MIB) -> str:
    """Random files with their checksums beside them, on the disk; returns the checksums' listing."""
    make = f"cd {folder} && for n in 1 2 3; do head -c $(({size} / 3 + n)) /dev/urandom >$n; done && sha256sum 1 2 3"
    listing = host.guest.run(make, timeout=180).text
    host.guest.run("sync", timeout=180)
    return listing


def test_discovery_answers_the_advertised_portal(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    assert (target.portal, group.iqn) in host_a.discover()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_have_their_checksums_after_logout_and_login(host_a: Initiator, target: Product, kind: str) -> None:
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, kind)
    folder = host_a.mount(device)
    before = _write_and_hash(host_a, folder)
    host_a.unmount(folder)
    host_a.logout(group.iqn)
    assert host_a.sessions() == []

    host_a.login(group.iqn)
    folder = host_a.mount(host_a.disk(group.iqn))
    assert host_a.guest.run(f"cd {folder} && sha256sum 1 2 3", timeout=180).text == before


def test_two_luns_of_a_group_keep_their_own_contents(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    target.cli("volume", "add", group.name, "--size", "384M")
    luns = sorted(volume["lun"] for volume in target.cli("group", "show", group.name)["volumes"])
    assert len(luns) == 2
    host_a.connect(group.iqn)
    hashes = {}
    for lun, kind in zip(luns, ("ext4", "xfs"), strict=True):
        device = host_a.disk(group.iqn, lun)
        host_a.format(device, kind)
        hashes[lun] = _write_and_hash(host_a, host_a.mount(device, f"lun-{lun}"), 6 * MIB)
    for lun in luns:
        host_a.unmount(f"/mnt/lun-{lun}")
    host_a.logout(group.iqn)

    host_a.login(group.iqn)
    for lun in luns:
        folder = host_a.mount(host_a.disk(group.iqn, lun), f"lun-{lun}")
        assert host_a.guest.run(f"cd {folder} && sha256sum 1 2 3").text == hashes[lun]


def test_a_volume_added_to_a_group_in_use_appears_after_a_rescan(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    host_a.connect(group.iqn)
    target.cli("volume", "add", group.name, "--size", "300M")
    lun = max(volume["lun"] for volume in target.cli("group", "show", group.name)["volumes"])
    host_a.rescan()
    assert host_a.size(host_a.disk(group.iqn, lun)) == 300 * MIB


def test_a_session_is_listed_from_login_to_logout(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    host_a.connect(group.iqn)
    assert [session["initiator"] for session in target.cli("session", "ls", group.name)] == [host_a.iqn]
    host_a.logout(group.iqn)
    assert target.cli("session", "ls", group.name) == []


def test_fstrim_gives_space_back_by_the_stores_own_accounting(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    empty = _mapped(target, group)
    host_a.guest.run(f"head -c {64 * MIB} /dev/urandom >{folder}/big && sync", timeout=180)
    full = _mapped(target, group)
    assert full - empty >= 64 * MIB

    host_a.guest.run(f"rm {folder}/big && sync && fstrim -v {folder}", timeout=180)
    limit = time.monotonic() + 60
    while _mapped(target, group) > empty + 4 * MIB and time.monotonic() < limit:
        time.sleep(0.5)
    assert _mapped(target, group) <= empty + 4 * MIB


def _mapped(target: Product, group: Group) -> int:
    """Bytes that the store says the group's volumes hold."""
    volumes = target.cli("group", "show", group.name)["volumes"]
    return sum(volume["mapped"] for volume in volumes)


def test_a_captured_kernel_session_holds_nothing_malformed(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    with Capture(target.port, target.folder / "kernel.pcap") as capture:
        device = host_a.connect(group.iqn)
        host_a.guest.run(f"dd if=/dev/urandom of={device} bs=1M count=8 oflag=direct status=none")
        host_a.guest.run(f"dd if={device} of=/dev/null bs=64k count=64 iflag=direct status=none")
        host_a.logout(group.iqn)
        capture.wait_for("iscsi.opcode == 0x26")
    assert capture.count("iscsi.opcode == 0x25") > 0
    assert capture.complaints() == []
