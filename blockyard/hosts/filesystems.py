"""What is on a disk: looked at, made where there is nothing, mounted, grown, frozen.

Invariant: a file system is made only on a disk that holds nothing. What counts as nothing: no signature that blkid
knows, and zeros where it would be. blkid alone is no proof: it says "nothing" of a disk that it cannot read, and of
one whose first superblock is damaged, which e2fsck would repair from a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from blockyard.hosts.commands import Deadline, Host
from blockyard.hosts.disks import Disk
from blockyard.hosts.errors import (
    CannotMount,
    CommandFailed,
    CommandTimeout,
    DiskUnreadable,
    HostError,
    NotBlank,
    StillMounted,
)
from blockyard.hosts.mounts import mount_at

_PROBE_SECONDS = 20.0
_MAKE_SECONDS = 90.0
_MOUNT_SECONDS = 60.0  # a journal may have to be replayed
_UNMOUNT_SECONDS = 45.0  # dirty pages may have to be written; Docker waits for 60 s
_FREEZE_SECONDS = 30.0
_GROW_SECONDS = 60.0
_HEAD = 64 << 10  # bytes; all superblocks, partition tables and labels that we know of begin there
_SUPERBLOCK = 2 << 10  # bytes; the first superblock of ext4 and of xfs ends there, whatever the size of their blocks
_XFS_IN_PROGRESS = 126  # offset of sb_inprogress in the superblock, 1 while mkfs.xfs runs
RAW_NAME = "disk"
"""The block device in a raw volume's folder."""

# blkid's exit codes
_NOTHING_FOUND = 2
_AMBIVALENT = 8


class Kind(StrEnum):
    EXT4 = "ext4"
    XFS = "xfs"
    RAW = "raw"
    """No file system: the block device itself."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a disk is to be used."""

    kind: Kind
    folder: str
    """Where it is mounted."""
    make_options: tuple[str, ...] = ()
    """For mkfs."""
    mount_options: tuple[str, ...] = ()
    read_only: bool = False
    ours: bool = False
    """Nobody but us has written to it: then remains of a mkfs that was interrupted do not count as content, which lie
    behind the place of the superblock."""
    any_kind: bool = False
    """Another file system than ``kind`` is as good, when it is there already."""

    @property
    def mount_point(self) -> str:
        return f"{self.folder}/{RAW_NAME}" if self.kind is Kind.RAW else self.folder


# --- on the disk ---------------------------------------------------------------------------------------------------


def probe(host: Host, disk: Disk) -> str | None:
    """What blkid says that it holds (ext4, "dos partition table", ...); None for nothing."""
    done = host.run(("blkid", "-p", "-o", "export", disk.path), _PROBE_SECONDS)
    if done.code == _NOTHING_FOUND:
        return None
    if done.code == _AMBIVALENT:
        return "several things at once"
    pairs = dict(line.partition("=")[::2] for line in done.check().stdout.splitlines())
    if "TYPE" in pairs:
        return pairs["TYPE"]
    return f"{pairs['PTTYPE']} partition table" if "PTTYPE" in pairs else "something"


def need_filesystem(host: Host, disk: Disk, wanted: Wanted, deadline: Deadline) -> Kind:
    """Make it unless it is there; returns which one it is. Raises NotBlank, DiskUnreadable,
    CommandFailed."""
    found = probe(host, disk)
    if wanted.any_kind and found in (Kind.EXT4, Kind.XFS):
        return Kind(found)
    if found == wanted.kind and not _half_made(host, disk, wanted):
        return wanted.kind
    if found is not None and not (found == wanted.kind and wanted.ours):
        raise NotBlank(f"the volume holds {found}, not {wanted.kind}: nothing was changed")
    if wanted.read_only or disk.read_only:
        raise NotBlank(f"the volume holds no {wanted.kind} file system, and cannot be written to make one")
    if found is None and any(_head(host, disk, _SUPERBLOCK if wanted.ours else _HEAD)):
        raise NotBlank("the volume holds data that is no known file system: nothing was changed")
    _make(host, disk, wanted, deadline)
    return wanted.kind


def _half_made(host: Host, disk: Disk, wanted: Wanted) -> bool:
    """mkfs.ext4 writes its superblock last; mkfs.xfs writes it first, with a mark that it takes away at the end."""
    return wanted.kind is Kind.XFS and _head(host, disk, _XFS_IN_PROGRESS + 1)[_XFS_IN_PROGRESS] != 0


def _head(host: Host, disk: Disk, length: int) -> bytes:
    """All of the first ``length`` bytes. Raises DiskUnreadable."""
    try:
        head = host.read(disk.path, length)
    except OSError as error:
        raise DiskUnreadable(f"{disk.path} cannot be read: {error.strerror or error}") from error
    if len(head) < length:
        raise DiskUnreadable(f"{disk.path} gives {len(head)} of its first {length} bytes")
    return head


def _make(host: Host, disk: Disk, wanted: Wanted, deadline: Deadline) -> None:
    # -F, -f: don't ask. Without discards: the volume is new, and thin.
    fixed = ("-q", "-F", "-E", "nodiscard") if wanted.kind is Kind.EXT4 else ("-q", "-f", "-K")
    words = (f"mkfs.{wanted.kind}", *fixed, *wanted.make_options, disk.path)
    host.run(words, deadline.left(_MAKE_SECONDS)).check()


# --- mounting ------------------------------------------------------------------------------------------------------


def mount(host: Host, disk: Disk, wanted: Wanted, deadline: Deadline) -> None:
    """Raises CannotMount, CommandTimeout."""
    host.make_folder(wanted.folder)
    seconds = deadline.left(_MOUNT_SECONDS)
    if wanted.kind is Kind.RAW:
        host.touch(wanted.mount_point)
        words = ["mount", "--bind", disk.path, wanted.mount_point]
    else:
        words = ["mount", "-t", wanted.kind, "-o", ",".join(_mount_options(wanted)), disk.path, wanted.mount_point]
    try:
        host.run(words, seconds).check()
    except CommandFailed as error:
        unclean = " (a read-only volume must have been unmounted cleanly before)" if wanted.read_only else ""
        raise CannotMount(f"{error}{unclean}") from error


def _mount_options(wanted: Wanted) -> Sequence[str]:
    # A clone has the file system's UUID of its origin, and xfs refuses to mount two such on one host.
    own = ("nouuid",) if wanted.kind is Kind.XFS else ()
    return ("ro" if wanted.read_only else "rw", *own, *wanted.mount_options)


def unmount(host: Host, folder: str, *, lazy: bool = False) -> None:
    """Whatever is mounted at a volume's folder; the folder is removed. ``lazy``: its disk is gone or not to be
    trusted, so it vanishes from the tree now, and for good when its last user ends. Raises StillMounted."""
    for place in (f"{folder}/{RAW_NAME}", folder):
        while mount_at(host, place) is not None:
            words = ("umount", *(("--lazy",) if lazy else ()), place)
            done = host.run(words, _UNMOUNT_SECONDS)
            if done.code != 0 and mount_at(host, place) is not None:
                raise StillMounted(str(CommandFailed(words, done.code, done.stderr)))
    host.remove(f"{folder}/{RAW_NAME}")
    host.remove(folder)


def in_use(host: Host, disk: Disk) -> bool:
    """Whether the kernel has a file system of it alive, mounted here, elsewhere, or nowhere any more."""
    return any(disk.name in host.names(f"/sys/fs/{kind}") for kind in (Kind.EXT4, Kind.XFS))


def grow(host: Host, disk: Disk, wanted: Wanted, deadline: Deadline) -> None:
    """The mounted file system to its disk's size; nothing happens when it has that already."""
    if wanted.read_only or disk.read_only or wanted.kind is Kind.RAW:
        return
    words = ("resize2fs", disk.path) if wanted.kind is Kind.EXT4 else ("xfs_growfs", "-d", wanted.folder)
    host.run(words, deadline.left(_GROW_SECONDS)).check()


# --- standing still ------------------------------------------------------------------------------------------------


@contextmanager
def frozen(host: Host, folder: str) -> Iterator[None]:
    """Writes wait and all that was written is on the disk, so that a snapshot needs no journal replayed."""
    try:
        host.run(("fsfreeze", "--freeze", folder), _FREEZE_SECONDS).check()
    except CommandTimeout:
        # The kernel goes on with what it was asked: killed or not, the command freezes when all is written at last. The
        # thaw waits behind it in the kernel, whoever has stopped to wait for the command.
        thaw(host, folder)
        raise
    try:
        yield
    finally:
        host.run(("fsfreeze", "--unfreeze", folder), _FREEZE_SECONDS).check()


def thaw(host: Host, folder: str) -> bool:
    """Undo a freeze that was left behind by a kill; False when there was none (then fsfreeze fails)."""
    try:
        return host.run(("fsfreeze", "--unfreeze", folder), _FREEZE_SECONDS).code == 0
    except HostError:  # not installed, so nobody has frozen anything
        return False
