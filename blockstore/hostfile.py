"""The host's files and block devices, as ``device.File``: one descriptor, and a second one for O_DIRECT reads.

No policy lives here. Where a pool's files are is ``device.HostDirectory``'s. Invariant of ``DeviceFile``: as long as it
is open nobody else mounts or claims the device, and it is a block device that all its descriptors mean.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from blockstore.api import Buffer, Corrupt
from blockstore.layout import UNIT, UNIT_SHIFT

GUARD = 1 << 20
"""Bytes at both ends of a block device that hold nothing but the header. Hosts look there for what a device is: a
client's RAID member, say, must never be taken for the pool's device being one (Linux assembles those by itself)."""

_IOV_MAX = 1024  # buffers in one pwritev: Linux's UIO_MAXIOV
_DIRECT_CHUNK = 1 << 20  # bytes of one O_DIRECT read: big enough to be fast, small enough to keep around
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2) modes
_BLKSSZGET = 0x1268  # linux/fs.h: bytes of a device's logical sector


def write_fully(fd: int, offset: int, buffers: Sequence[Buffer]) -> None:
    """pwritev until everything is written: the kernel may take less than it was given."""
    if len(buffers) == 1 and os.pwritev(fd, buffers, offset) == len(buffers[0]):
        return  # journals, and ticks of one write; writing the same bytes again after a short write is harmless
    for first in range(0, len(buffers), _IOV_MAX):
        part = buffers[first : first + _IOV_MAX]
        length = sum(map(len, part))
        written = os.pwritev(fd, part, offset)
        offset += written
        if written < length:
            rest = memoryview(b"".join(part))[written:]
            while rest:
                written = os.pwrite(fd, rest, offset)
                offset += written
                rest = rest[written:]


class HostFile:
    """File over a file descriptor, with a second one for O_DIRECT reads where the file system has that."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._open(path, os.O_RDWR | (os.O_CREAT if create else 0), path.name)

    def _open(self, path: Path, flags: int, name: str) -> None:
        self.name = name
        self._nowait = os.RWF_NOWAIT
        self._direct_buffer: mmap.mmap | None = None
        self._direct_fd: int | None = None
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            self._direct_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                os.close(self._fd)
                raise

    @property
    def reads_medium(self) -> bool:
        return self._direct_fd is not None

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read_now(self, offset: int, into: memoryview) -> int:
        try:
            return os.preadv(self._fd, (into,), offset, self._nowait)
        except BlockingIOError:
            return -1
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._nowait:
                raise
            self._nowait = 0  # this file system cannot say "would block": reads wait, as they always did there
            return os.preadv(self._fd, (into,), offset)

    def read(self, offset: int, into: memoryview) -> int:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, (into[done:],), offset + done)
            if count == 0:
                break
            done += count
        return done

    def read_stored(self, offset: int, length: int) -> bytes:
        if self._direct_fd is None:
            buffer = bytearray(length)
            return bytes(memoryview(buffer)[: self.read(offset, memoryview(buffer))])
        return self._read_direct(self._direct_fd, offset, length)

    def _read_direct(self, fd: int, offset: int, length: int) -> bytes:
        if self._direct_buffer is None:
            self._direct_buffer = mmap.mmap(-1, _DIRECT_CHUNK)  # page-aligned, as O_DIRECT wants it
        start = offset - offset % UNIT
        skip = offset - start
        pieces: list[bytes] = []
        wanted = skip + length
        while wanted > 0:
            chunk = min(_DIRECT_CHUNK, -(-wanted // UNIT) * UNIT)
            with memoryview(self._direct_buffer) as buffer:
                count = os.preadv(fd, (buffer[:chunk],), start)
                pieces.append(bytes(buffer[:count]))
            start += count
            wanted -= count
            if count < chunk:
                break
        return b"".join(pieces)[skip : skip + length]

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        write_fully(self._fd, offset, buffers)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def allocate(self, offset: int, length: int) -> None:
        os.posix_fallocate(self._fd, offset, length)

    def punch(self, offset: int, length: int) -> None:
        result = _libc().fallocate(
            self._fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length)
        )
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        os.close(self._fd)
        if self._direct_fd is not None:
            os.close(self._direct_fd)


class DeviceFile(HostFile):
    """A whole block device, or a partition, that ``link`` leads to, held for this process alone.

    Its size is what it has now: ``allocate`` reserves nothing, and finds no space behind the end. Raises OSError when
    it is not there or in use (it may come back), Corrupt when ``link`` leads to something else.
    """

    def __init__(self, link: Path) -> None:
        target = os.readlink(link)
        # Looked at before it is opened: opening something else, a watchdog or a tape, may have an effect.
        try:
            mode = os.stat(target if os.path.isabs(target) else link).st_mode
        except OSError as error:
            raise _named(error, f"{link.name} leads to {target}, which is not there") from error
        if not os.path.isabs(target) or not stat.S_ISBLK(mode):
            raise Corrupt(f"{link.name} leads to {target}; allowed is the absolute path of a block device")
        try:
            # A mount, RAID, LVM or another pool holds it exclusively, as we do from now on: the kernel compares.
            self._open(Path(target), os.O_RDWR | os.O_EXCL, target)
        except OSError as error:
            why = "is in use: mounted, or part of another device or pool" if error.errno == errno.EBUSY else ""
            raise _named(error, f"block device {target} {why or 'cannot be opened'}") from error
        try:
            self._check(target)
        except BaseException:
            self.close()
            raise

    def _check(self, target: str) -> None:
        assert self._direct_fd is not None, "block devices have O_DIRECT"
        found = [os.fstat(fd) for fd in (self._fd, self._direct_fd)]
        if not stat.S_ISBLK(found[0].st_mode) or found[0].st_rdev != found[1].st_rdev:
            raise OSError(errno.EBUSY, f"{target} changed while it was opened")
        sector = int.from_bytes(fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4)), "little")
        if not self.size():
            raise OSError(errno.ENOMEDIUM, f"{target} has no medium: its size is 0")
        if sector > UNIT:
            raise Corrupt(f"{target} has sectors of {sector} bytes; allowed are at most {UNIT}")

    @property
    def number(self) -> int:
        """What tells devices apart, whatever path leads to them: major and minor."""
        return os.fstat(self._fd).st_rdev

    def size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def allocate(self, offset: int, length: int) -> None:
        if offset + length > self.size():
            raise OSError(errno.ENOSPC, f"{self.name} has {self.size()} bytes; asked for were {offset + length}")


def usable_blocks(data: object) -> tuple[int, int | None]:
    """(first, end) of the blocks of ``data`` that may be handed out; end None: it grows."""
    if not isinstance(data, DeviceFile):
        return 1, None
    return GUARD >> UNIT_SHIFT, max(data.size() - GUARD, GUARD) >> UNIT_SHIFT


def _named(error: OSError, what: str) -> OSError:
    return OSError(error.errno, f"{what} ({error.strerror})")


def rewrite(path: Path) -> None:
    """Write the file's bytes over themselves and sync: after a failed sync the cache may hold what the disk lacks."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        offset = 0
        while chunk := os.pread(fd, _DIRECT_CHUNK, offset):
            write_fully(fd, offset, (chunk,))
            offset += len(chunk)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
