"""The one seam through which all I/O on data and journals goes, and the pool's directory.

``File`` and ``Directory`` are what the engine uses; ``HostFile`` and ``HostDirectory`` are the real ones; the tests put
a disk there whose power can be cut at any point. No policy lives here: who syncs when is ``flush``'s, except the rule
of ``SyncGate``: all syncs of a pool run one at a time, and after one failed, none is ever believed again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from blockstore.api import Buffer, Corrupt, Locked
from blockstore.layout import UNIT

_IOV_MAX = 1024  # buffers in one pwritev: Linux's UIO_MAXIOV
_DIRECT_CHUNK = 1 << 20  # bytes of one O_DIRECT read: big enough to be fast, small enough to keep around
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2) modes
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class File(Protocol):
    """Bytes that survive: one data file or journal. Offsets and lengths are bytes. Errors are OSError."""

    @property
    def reads_medium(self) -> bool:
        """Whether ``read_stored`` gets past the page cache."""

    def size(self) -> int: ...

    def read_now(self, offset: int, into: memoryview) -> int:
        """Bytes read into ``into`` without waiting; -1 if that would block."""

    def read(self, offset: int, into: memoryview) -> int:
        """Bytes read into ``into``: all of them, or fewer at the end of the file."""

    def read_stored(self, offset: int, length: int) -> bytes:
        """Bytes as they are on the medium, past the page cache where that is possible; short at the end."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers behind each other."""

    def sync(self) -> None: ...

    def allocate(self, offset: int, length: int) -> None:
        """Reserve space; the file grows."""

    def punch(self, offset: int, length: int) -> None:
        """Give the space back to the host; the range reads as zeros."""

    def close(self) -> None: ...


class Directory(Protocol):
    """Where a pool's files are."""

    def exists(self, name: str) -> bool: ...

    def open(self, name: str, *, create: bool = False) -> File: ...

    def remove(self, name: str) -> None: ...

    def sync(self) -> None:
        """Make names created in it durable."""

    def free_bytes(self) -> int:
        """What the host file system could still give."""

    def boot_id(self) -> str:
        """Differs after every start of the machine."""

    def settle_database(self) -> None:
        """Write the database's log back over itself and sync, so that what SQLite sees is what the disk has. The
        log is enough: SQLite restarts it only after the frames in it were synced into the database."""

    def database(self) -> sqlite3.Connection:
        """``meta.db``, usable from any one thread at a time, in autocommit mode."""

    def reader(self) -> sqlite3.Connection:
        """As ``database``, another connection that only reads what was committed."""

    def close(self) -> None:
        """Release the lock."""


class SyncGate:
    """All fdatasyncs of a pool, one at a time; the first failure latches.

    Linux reports a write-back error once per descriptor: the sync after a failed one returns 0 without the data being
    there. So nobody may be told of success, and no commit may start, once ``failure`` is set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def sync(self, files: Sequence[File]) -> None:
        """Sync ``files`` in order. Raises OSError, also when an earlier sync failed."""

        def sync_all() -> None:
            for file in files:
                file.sync()

        self.run(sync_all)

    def run(self, work: Callable[[], object]) -> None:
        """Run ``work`` that makes things durable (a commit) under the same lock and latch."""
        with self._lock:
            if self.failure is not None:
                raise OSError(errno.EIO, f"an earlier sync failed: {self.failure}")
            try:
                work()
            except (OSError, sqlite3.Error) as error:
                if not is_full(error):
                    self.failure = error
                raise

    def latch(self, failure: BaseException) -> None:
        """Something else made the disk's state unknown. Takes no lock: the loop must not wait for a running sync, and
        whoever that sync wakes looks at ``failure`` first."""
        self.failure = self.failure or failure


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: a table is not there


def opening_error(error: sqlite3.Error) -> Corrupt | OSError:
    """What SQLite's error means for whoever opens a pool: a damaged file, or a host that did not let it be used."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # extended codes hold the primary one below
    if code in _DAMAGED or not isinstance(error, sqlite3.OperationalError):
        return Corrupt(f"meta.db: {error}")
    return OSError(errno.ENOSPC if is_full(error) else errno.EIO, f"meta.db: {error}")


_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the second: the log's index could not grow


def is_full(error: BaseException | None) -> bool:
    """Whether SQLite said that the host file system is full. Whether the transaction was made does not matter: nothing
    that the image before it needs is given up."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _FULL


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
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o600)
        self._nowait = os.RWF_NOWAIT
        self._direct_buffer: mmap.mmap | None = None
        try:
            self._direct_fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct_fd = None

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


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class HostDirectory:
    """A directory of the host, locked for this process from construction to ``close``. Raises Locked."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            _make_directory(path)
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Locked(f"{path}: another process has this pool open") from None

    def exists(self, name: str) -> bool:
        return (self._path / name).exists()

    def open(self, name: str, *, create: bool = False) -> HostFile:
        return HostFile(self._path / name, create=create)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        os.fsync(self._fd)

    def free_bytes(self) -> int:
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def boot_id(self) -> str:
        return _BOOT_ID.read_text().strip()

    def settle_database(self) -> None:
        if self.exists("meta.db-wal"):
            _rewrite(self._path / "meta.db-wal")

    def database(self) -> sqlite3.Connection:
        path = self._path / "meta.db"
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            path.chmod(0o600)  # it holds CHAP secrets
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def reader(self) -> sqlite3.Connection:
        uri = f"{(self._path / 'meta.db').absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)

    def close(self) -> None:
        os.close(self._fd)


def _make_directory(path: Path) -> None:
    """With its parents, each name durable: a flush must not be lost because the way to its file is."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rewrite(path: Path) -> None:
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
