"""What every host keeps to, simulated or real: the steps between an attachment and a mounted file system.

Plain functions over a ``Bench``. ``test_contract`` runs them against the simulated host; ``python -m
tests.blockyard.hosts.contract`` in a guest against the real one (``integration/scenario_hosts.py``), so what the other
tests prove with the simulated host holds for a kernel, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from uuid import UUID

from blockyard.hosts.attach import Condition, bring_up, condition, follow_size, take_down, tear_down
from blockyard.hosts.commands import Deadline, Host, LinuxHost
from blockyard.hosts.disks import check_identity, wait_for_disk
from blockyard.hosts.errors import HostError, LoginRefused, NotBlank, TargetUnreachable, WrongDisk
from blockyard.hosts.filesystems import Kind, Wanted, frozen, thaw
from blockyard.hosts.initiator import Initiator
from blockyard.hosts.mounts import mount_at, mounts_below, seen_elsewhere
from blockyard.model import ChapCredentials, Volume
from blockyard.model.attachments import Attached

ROOT = "/mnt/volumes"
SECONDS = 90.0
STRANGER = UUID("11111111-2222-3333-4444-555555555555")


class Bench(Protocol):
    host: Host

    def attached(self) -> Attached:
        """A new, blank volume, attached to this host."""
        ...

    def grow(self, attached: Attached) -> Volume:
        """The volume, twice as large now."""
        ...


def raises(kind: type[Exception], step: Callable[[], object]) -> Exception:
    """No pytest where this runs."""
    try:
        step()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def wanted(name: str, kind: Kind = Kind.EXT4, **more: object) -> Wanted:
    return Wanted(kind=kind, folder=f"{ROOT}/{name}", **more)  # type: ignore[arg-type]


def deadline(bench: Bench) -> Deadline:
    return Deadline(bench.host, SECONDS)


def nothing_is_left(bench: Bench) -> None:
    initiator = Initiator(bench.host)
    assert initiator.sessions() == []
    assert initiator.remembered() == []
    assert mounts_below(bench.host, ROOT) == []
    assert bench.host.names(ROOT) == []


def a_login_shows_the_volume_and_a_logout_leaves_nothing(bench: Bench) -> None:
    attached, initiator = bench.attached(), Initiator(bench.host)
    attachment = attached.attachment
    session = initiator.log_in(attachment.target, attachment.portals, attached.chap, deadline(bench))
    disk = wait_for_disk(bench.host, initiator, session, attachment.volumes[0], deadline(bench))
    assert session.logged_in
    assert disk.size == attachment.volumes[0].size
    assert initiator.session(attachment.target) == session
    initiator.log_out(attachment.target)
    initiator.log_out(attachment.target)  # again: nothing happens
    nothing_is_left(bench)


def a_wrong_secret_is_refused_and_leaves_nothing(bench: Bench) -> None:
    attached, initiator = bench.attached(), Initiator(bench.host)
    attachment = attached.attachment
    wrong = ChapCredentials(user=attached.chap.user, secret="not the secret 123")
    login = lambda: initiator.log_in(attachment.target, attachment.portals, wrong, deadline(bench))  # noqa: E731
    raises(LoginRefused, login)
    nothing_is_left(bench)


def a_portal_where_nobody_is_leaves_nothing(bench: Bench) -> None:
    attached, initiator = bench.attached(), Initiator(bench.host)
    attachment = attached.attachment
    began = bench.host.now()
    nobody = (attachment.portals[0].rpartition(":")[0] + ":1",)
    raises(TargetUnreachable, lambda: initiator.log_in(attachment.target, nobody, attached.chap, deadline(bench)))
    assert bench.host.now() - began < 60
    nothing_is_left(bench)
    # The second portal is tried when the first one is silent.
    portals = (*nobody, *attachment.portals)
    assert initiator.log_in(attachment.target, portals, attached.chap, deadline(bench)).logged_in
    initiator.log_out(attachment.target)


def a_disk_that_is_another_volume_is_not_used(bench: Bench) -> None:
    attached, initiator = bench.attached(), Initiator(bench.host)
    attachment = attached.attachment
    session = initiator.log_in(attachment.target, attachment.portals, attached.chap, deadline(bench))
    volume = attachment.volumes[0]
    disk = wait_for_disk(bench.host, initiator, session, volume, deadline(bench))
    other = volume.model_copy(update={"uuid": STRANGER})
    raises(WrongDisk, lambda: check_identity(bench.host, disk, other))
    # The first bits of the UUID are in the serial number alone.
    near = volume.model_copy(update={"uuid": UUID(int=volume.uuid.int ^ (1 << 127))})
    raises(WrongDisk, lambda: check_identity(bench.host, disk, near))
    initiator.log_out(attachment.target)


def _keeps_its_data(bench: Bench, kind: Kind) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("one", kind, ours=True)
    target = attached.attachment.target
    assert condition(bench.host, initiator, target, place) is Condition.NOTHING
    for _ in range(2):  # the second time nothing is to be done
        assert bring_up(bench.host, initiator, attached, place, deadline(bench)) is kind
    assert condition(bench.host, initiator, target, place) is Condition.MOUNTED
    bench.host.replace(f"{place.folder}/file", b"kept")
    take_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)
    bring_up(bench.host, initiator, attached, place, deadline(bench))
    assert bench.host.read(f"{place.folder}/file") == b"kept"
    take_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)


def ext4_is_made_once_and_keeps_its_data(bench: Bench) -> None:
    _keeps_its_data(bench, Kind.EXT4)


def xfs_is_made_once_and_keeps_its_data(bench: Bench) -> None:
    _keeps_its_data(bench, Kind.XFS)


def another_file_system_is_not_overwritten(bench: Bench) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("two", Kind.EXT4)
    target = attached.attachment.target
    bring_up(bench.host, initiator, attached, place, deadline(bench))
    bench.host.replace(f"{place.folder}/file", b"kept")
    take_down(bench.host, initiator, target, place.folder)
    for ours in (False, True):
        other = wanted("two", Kind.XFS, ours=ours)
        raises(NotBlank, lambda: bring_up(bench.host, initiator, attached, other, deadline(bench)))  # noqa: B023
    whatever = wanted("two", Kind.XFS, any_kind=True)
    assert bring_up(bench.host, initiator, attached, whatever, deadline(bench)) is Kind.EXT4
    assert bench.host.read(f"{place.folder}/file") == b"kept"
    take_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)


def content_that_nobody_knows_is_not_overwritten(bench: Bench) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("three")
    attachment = attached.attachment
    session = initiator.log_in(attachment.target, attachment.portals, attached.chap, deadline(bench))
    disk = wait_for_disk(bench.host, initiator, session, attachment.volumes[0], deadline(bench))
    bench.host.write(disk.path, "a database of its own")
    ours = wanted("three", ours=True)
    for asked in (place, ours):
        raises(NotBlank, lambda: bring_up(bench.host, initiator, attached, asked, deadline(bench)))  # noqa: B023
    # Behind the place of the superblock, on a volume that only we have written to, it is of a mkfs that was cut off.
    bench.host.write(disk.path, "\0" * 2048 + "descriptors")
    raises(NotBlank, lambda: bring_up(bench.host, initiator, attached, place, deadline(bench)))
    bring_up(bench.host, initiator, attached, ours, deadline(bench))
    take_down(bench.host, initiator, attachment.target, place.folder)
    nothing_is_left(bench)


def a_file_system_grows_while_it_is_mounted(bench: Bench) -> None:
    for kind in (Kind.EXT4, Kind.XFS):
        attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("four", kind, ours=True)
        target = attached.attachment.target
        bring_up(bench.host, initiator, attached, place, deadline(bench))
        before = _size(bench, place.folder)
        assert not follow_size(bench.host, initiator, target, attached.attachment.volumes[0], place)
        assert follow_size(bench.host, initiator, target, bench.grow(attached), place)
        assert _size(bench, place.folder) > 1.7 * before
        take_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)


def _size(bench: Bench, folder: str) -> int:
    return int(bench.host.run(("df", "--block-size=1", "--output=size", folder), 20).check().stdout.split()[1])


def a_raw_volume_is_a_block_device_in_a_folder(bench: Bench) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("five", Kind.RAW)
    target = attached.attachment.target
    bring_up(bench.host, initiator, attached, place, deadline(bench))
    mounted = mount_at(bench.host, f"{place.folder}/disk")
    assert mounted is not None
    assert mounted.kind == "devtmpfs"
    assert condition(bench.host, initiator, target, place) is Condition.MOUNTED
    take_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)


def a_mount_whose_session_is_gone_is_broken_and_can_be_torn_down(bench: Bench) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("six")
    target = attached.attachment.target
    bring_up(bench.host, initiator, attached, place, deadline(bench))
    mounted = mount_at(bench.host, place.folder)
    assert mounted is not None
    assert not seen_elsewhere(bench.host, mounted)
    initiator.log_out(target)
    assert condition(bench.host, initiator, target, place) is Condition.BROKEN
    tear_down(bench.host, initiator, target, place.folder)
    nothing_is_left(bench)


def a_freeze_that_was_left_behind_is_undone(bench: Bench) -> None:
    attached, initiator, place = bench.attached(), Initiator(bench.host), wanted("seven")
    bring_up(bench.host, initiator, attached, place, deadline(bench))
    with frozen(bench.host, place.folder):
        raises(HostError, lambda: bench.host.run(("fsfreeze", "--freeze", place.folder), 20).check())
    assert not thaw(bench.host, place.folder)
    bench.host.run(("fsfreeze", "--freeze", place.folder), 20).check()
    assert thaw(bench.host, place.folder)
    take_down(bench.host, initiator, attached.attachment.target, place.folder)
    nothing_is_left(bench)


CASES: tuple[Callable[[Bench], None], ...] = (
    a_login_shows_the_volume_and_a_logout_leaves_nothing,
    a_wrong_secret_is_refused_and_leaves_nothing,
    a_portal_where_nobody_is_leaves_nothing,
    a_disk_that_is_another_volume_is_not_used,
    ext4_is_made_once_and_keeps_its_data,
    xfs_is_made_once_and_keeps_its_data,
    another_file_system_is_not_overwritten,
    content_that_nobody_knows_is_not_overwritten,
    a_file_system_grows_while_it_is_mounted,
    a_raw_volume_is_a_block_device_in_a_folder,
    a_mount_whose_session_is_gone_is_broken_and_can_be_torn_down,
    a_freeze_that_was_left_behind_is_undone,
)


class GuestBench:
    """In a guest: attachments come as JSON, and whoever has started us grows volumes when a line asks for it."""

    def __init__(self, attached: list[Attached]) -> None:
        self.host = LinuxHost()
        self._attached = attached

    def attached(self) -> Attached:
        return self._attached.pop(0)

    def grow(self, attached: Attached) -> Volume:
        group, volume = attached.attachment.group, attached.attachment.volumes[0]
        answer = Path(f"/tmp/grown-{group}")
        print(f"grow {group} {volume.size * 2}", flush=True)
        while not answer.exists():
            time.sleep(0.1)
        return volume.model_copy(update={"size": volume.size * 2})


def main(path: str) -> None:
    bench = GuestBench([Attached.model_validate(each) for each in json.loads(Path(path).read_text())])
    for case in CASES:
        began = time.monotonic()
        case(bench)
        print(f"kept: {case.__name__} ({time.monotonic() - began:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
