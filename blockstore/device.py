"""The one seam through which all I/O on data and journals goes, and the pool's directory.

``File`` and ``Directory`` are what the engine uses; ``hostfile`` and ``HostDirectory`` are the real ones; the tests put
a disk there whose power can be cut at any point. No policy lives here: who syncs when is ``flush``'s, except the rule
of ``SyncGate``: all syncs of a pool run one at a time, and after one failed, none is ever believed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from blockstore.api import Buffer, Corrupt, Locked
from blockstore.hostfile import DeviceFile, HostFile, rewrite

DATA = "data"
"""The name of what holds the blocks: a file, or a symbolic link to a block device."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class File(Protocol):
    """Bytes that survive: one data file or journal. Offsets and lengths are bytes. Errors are OSError."""

    name: str
    """What messages call it: the file's name, or the path of a block device."""

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
        return os.path.lexists(self._path / name)  # a link whose device is not there is no file that is not there

    def open(self, name: str, *, create: bool = False) -> HostFile:
        path = self._path / name
        return DeviceFile(path) if name == DATA and path.is_symlink() else HostFile(path, create=create)

    def is_link(self, name: str) -> bool:
        return (self._path / name).is_symlink()

    def link(self, name: str, target: Path) -> None:
        """Make ``name`` lead to ``target``, whatever it was."""
        self.remove(name)
        (self._path / name).symlink_to(target)

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
            rewrite(self._path / "meta.db-wal")

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
        return read_only(self._path / "meta.db")

    def close(self) -> None:
        os.close(self._fd)


def read_only(database: Path) -> sqlite3.Connection:
    """A connection to what was committed; usable from any one thread at a time, in autocommit mode."""
    uri = f"{database.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)


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
