"""From an attachment to a mounted file system, and back to nothing.

Each step is idempotent and looks first, so that both ways can be walked again from wherever a kill has left them. The
order of the way back keeps data: unmount (which writes what is dirty), log out, and only then give the group back.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from blockyard.hosts.commands import Deadline, Host
from blockyard.hosts.disks import Disk, disks_of, has_mounted, look_at, wait_for_disk
from blockyard.hosts.errors import StillMounted
from blockyard.hosts.filesystems import Kind, Wanted, grow, in_use, mount, need_filesystem, unmount
from blockyard.hosts.initiator import Initiator, Session
from blockyard.hosts.mounts import mount_at
from blockyard.model import Volume
from blockyard.model.attachments import Attached

_DISK_SECONDS = 30.0
_WRITTEN_SECONDS = 15.0
_POLL = 0.1


class Condition(StrEnum):
    """What the kernel has of a volume."""

    NOTHING = "nothing"
    UNMOUNTED = "unmounted"
    """A session, but no mount."""
    MOUNTED = "mounted"
    INTERRUPTED = "interrupted"
    """Mounted, and the session is not there at the moment: I/O waits for it."""
    BROKEN = "broken"
    """Mounted, but what is mounted will not work again: its disk is gone, or its file system gave up."""


def condition(host: Host, initiator: Initiator, target: str, wanted: Wanted) -> Condition:
    session, mounted = initiator.session(target), mount_at(host, wanted.mount_point)
    if mounted is None:
        return Condition.NOTHING if session is None else Condition.UNMOUNTED
    if session is None or not has_mounted(host, session, mounted) or (mounted.read_only and not wanted.read_only):
        return Condition.BROKEN
    return Condition.MOUNTED if session.logged_in else Condition.INTERRUPTED


def bring_up(host: Host, initiator: Initiator, attached: Attached, wanted: Wanted, deadline: Deadline) -> Kind:
    """Log in, prove the disk, make a file system if there is none, mount; returns what is mounted. Raises HostError;
    what was begun stays, for ``take_down``."""
    attachment = attached.attachment
    (volume,) = attachment.volumes
    session = initiator.session(attachment.target)
    if session is None or not session.logged_in:
        # A session of before has the secret of before, or is lost in its retries.
        initiator.log_out(attachment.target)
        session = initiator.log_in(attachment.target, attachment.portals, attached.chap, deadline)
    disk = _disk(host, initiator, session, volume, deadline)
    if wanted.kind is not Kind.RAW:
        wanted = replace(wanted, kind=need_filesystem(host, disk, wanted, deadline))
    if mount_at(host, wanted.mount_point) is None:
        mount(host, disk, wanted, deadline)
    grow(host, disk, wanted, deadline)
    return wanted.kind


def take_down(host: Host, initiator: Initiator, target: str, folder: str) -> None:
    """Nothing of it is left here, and all that was written is on the target. Raises StillMounted."""
    unmount(host, folder)
    session = initiator.session(target)
    if session is not None:
        _wait_until_written(host, session)
    initiator.log_out(target)


def tear_down(host: Host, initiator: Initiator, target: str, folder: str) -> None:
    """Nothing of it is left here, except in containers that run on; what was not written yet is lost.

    The session goes first: what waits for it gets its error now, and the unmount does not wait as well.
    """
    initiator.log_out(target)
    unmount(host, folder, lazy=True)


def follow_size(host: Host, initiator: Initiator, target: str, volume: Volume, wanted: Wanted) -> bool:
    """Let the disk and its file system grow to what the volume has become; whether there was anything to do."""
    session = initiator.session(target)
    disk = None if session is None else disks_of(host, session).get(volume.lun)
    if session is None or disk is None or disk.size >= volume.size or not session.logged_in:
        return False
    deadline = Deadline(host, _DISK_SECONDS)
    grow(host, _disk(host, initiator, session, volume, deadline), wanted, deadline)
    return True


def _disk(host: Host, initiator: Initiator, session: Session, volume: Volume, deadline: Deadline) -> Disk:
    """At its volume's size, too: the kernel does not look at a disk again that has grown."""
    disk = wait_for_disk(host, initiator, session, volume, Deadline(host, deadline.left(_DISK_SECONDS)))
    if disk.size >= volume.size:
        return disk
    host.write(f"/sys/block/{disk.name}/device/rescan", "1")
    return look_at(host, disk.name) or disk


def _wait_until_written(host: Host, session: Session) -> None:
    """A file system lives on behind its last unmount while it writes, or while a container that is ending has it."""
    deadline = Deadline(host, _WRITTEN_SECONDS)
    while any(in_use(host, disk) for disk in disks_of(host, session).values()):
        if deadline.over:
            raise StillMounted(f"the file system of {session.target} is still in use behind its unmount")
        host.sleep(_POLL)
