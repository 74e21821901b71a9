"""A host's volumes at another moment: snapshots, clones for a second host, rollback, and growth under a mount."""

from __future__ import annotations

import pytest

from integration.initiator import Initiator
from integration.product import Product
from integration.writer import Writer, check_files

MIB = 1 << 20


def _fill(host: Initiator, folder: str, text: str) -> None:
    """A small tree whose contents tell the moment."""
    make = f"mkdir -p {folder}/deep/er && echo {text} >{folder}/deep/er/moment && echo {text} >{folder}/moment"
    host.guest.run(
        f"{make} && head -c {8 * MIB} /dev/urandom >{folder}/bulk && cd {folder} && sha256sum bulk >sum && sync"
    )


def _moment(host: Initiator, folder: str) -> str:
    """What the tree says, after its bulk was compared with its own checksum."""
    host.guest.run(f"cd {folder} && sha256sum -c sum && cmp moment deep/er/moment")
    return host.guest.run(f"cat {folder}/moment").text


def test_a_quiet_snapshot_is_cloned_and_mounted_by_a_second_host(
    host_a: Initiator, host_b: Initiator, target: Product
) -> None:
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    _fill(host_a, folder, "then")
    host_a.guest.run(["fsfreeze", "--freeze", folder])
    target.cli("snapshot", "create", group.name, "quiet")
    host_a.guest.run(["fsfreeze", "--unfreeze", folder])
    _fill(host_a, folder, "now")
    host_a.guest.run(f"echo later >{folder}/later && sync")

    clone = target.clone(group, "quiet", "clone-for-b")
    cloned = host_b.connect(clone.iqn)
    host_b.guest.run(f"e2fsck -fn {cloned}")
    there = host_b.mount(cloned)
    assert _moment(host_b, there) == "then"
    host_b.guest.run(f"[ ! -e {there}/later ] && echo clone >{there}/moment && sync")

    host_b.unmount(there)
    assert _moment(host_a, folder) == "now"


def test_a_snapshot_under_load_keeps_every_file_that_was_fsynced_before_it(
    host_a: Initiator, host_b: Initiator, target: Product
) -> None:
    group = target.create_group(size="1G")
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    writer = Writer(host_a.guest, host_a.mount(device))
    writer.wait_for_more(20)
    count = writer.fsynced
    target.cli("snapshot", "create", group.name, "busy")
    writer.wait_for_more(20)
    writer.stop()

    cloned = host_b.connect(target.clone(group, "busy", "clone-of-busy").iqn)
    there = host_b.mount(cloned)  # replays the journal, as after a power cut
    check_files(host_b.guest, there, count)
    host_b.unmount(there)
    host_b.guest.run(f"e2fsck -fn {cloned}")


def test_rollback_after_logout_brings_the_old_state(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    _fill(host_a, folder, "then")
    host_a.unmount(folder)
    target.cli("snapshot", "create", group.name, "good")
    folder = host_a.mount(device)
    _fill(host_a, folder, "now")
    host_a.unmount(folder)
    host_a.logout(group.iqn)

    target.cli("group", "rollback", group.name, "good")
    host_a.login(group.iqn)
    device = host_a.disk(group.iqn)
    host_a.guest.run(f"e2fsck -fn {device}")
    assert _moment(host_a, host_a.mount(device)) == "then"
    names = [snapshot["name"] for snapshot in target.cli("snapshot", "ls", group.name)]
    assert [name for name in names if name.startswith("before-rollback-")], names


def test_rollback_under_an_open_session_needs_force(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    _fill(host_a, folder, "then")
    host_a.unmount(folder)
    target.cli("snapshot", "create", group.name, "good")
    folder = host_a.mount(device)
    _fill(host_a, folder, "now")

    refused = target.ask("group", "rollback", group.name, "good")
    assert refused.code != 0
    assert "session" in refused.stderr
    assert _moment(host_a, folder) == "now"

    host_a.unmount(folder)
    target.cli("group", "rollback", group.name, "good", "--force")
    assert _moment(host_a, host_a.mount(device)) == "then"


@pytest.mark.parametrize(
    ("kind", "grow"), [("ext4", "resize2fs {device}"), ("xfs", "xfs_growfs {folder}")], ids=["ext4", "xfs"]
)
def test_a_mounted_file_system_grows_after_a_rescan(host_a: Initiator, target: Product, kind: str, grow: str) -> None:
    group = target.create_group(size="400M")
    device = host_a.connect(group.iqn)
    host_a.format(device, kind)
    folder = host_a.mount(device)
    _fill(host_a, folder, "small")

    target.cli("volume", "resize", group.name, "0", "800M")
    host_a.rescan()
    assert host_a.size(device) == 800 * MIB
    host_a.guest.run(grow.format(device=device, folder=folder), timeout=120)
    # A file longer than the old volume, with real blocks at its end.
    large = f"{folder}/large"
    host_a.guest.run(f"fallocate -l 450M {large} && dd if={folder}/bulk of={large} bs=1M seek=440 conv=notrunc,fsync")
    host_a.guest.run(f"echo 3 >/proc/sys/vm/drop_caches && dd if={large} bs=1M skip=440 count=8 | cmp - {folder}/bulk")
    assert _moment(host_a, folder) == "small"
