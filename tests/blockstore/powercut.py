"""A disk in memory whose power can be cut: records every I/O of a pool, and shows what each cut could have left.

The model is dm-log-writes': a write or truncation that no later sync of its file covered may be on the medium, or not,
or torn at 512 bytes, independently of others; a synced one is there. A name is durable when made; one that was removed
without a sync of its directory may come back. ``read_stored`` is O_DIRECT: it writes the range's dirty pages out first,
and after a failed sync shows the medium, while ``read`` still shows the cache (Linux marks pages clean when writing
them back fails). SQLite's files are on this disk like all others, through ``sqlite_disk``: what it does within a commit
and when it checkpoints its log is in the trace, and can be cut, torn and made to fail.
"""

from __future__ import annotations

import errno
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from blockstore.api import Buffer
from blockstore.pool import Tuning, open_directory
from tests.blockstore.sqlite_disk import Connection, Process
from tests.blockstore.support import KIB, Driver, ManualRunner

SECTOR = 512
DIRECTORY = "."
TUNING = Tuning(
    grow_step=1024 * KIB,
    keep_free=256 * KIB,
    reserve=0,
    map_leaves=1 << 10,
    unsynced_cap=1 << 20,
    helper_processes=False,
)


def open_disk(disk: FakeDisk, *, size_limit: int | None = None, tuning: Tuning = TUNING) -> Driver:
    """Make or recover the pool on ``disk``, in a new process."""
    disk.new_process()
    runner = ManualRunner()
    pool = open_directory(
        disk, runner, create=True, name="p", size_limit=size_limit, journal_size=256 * KIB, tuning=tuning
    )
    return Driver(runner, pool)


def restart(disk: FakeDisk, *, boot: str | None = None, power_cut: bool = False) -> Driver:
    """The process starts again; with another ``boot`` the machine did. A power cut loses what only the cache has."""
    disk.faults.clear()
    if power_cut:
        disk.lose_cache()
    disk.boot = boot or disk.boot
    return open_disk(disk)


@dataclass(frozen=True, slots=True)
class Event:
    """One I/O that reached the disk."""

    kind: str
    """``create``, ``write``, ``truncate``, ``allocate``, ``sync`` or ``remove``"""
    file: str
    offset: int = 0
    """Of a write where it begins, of a truncation or allocation where the file ends then."""
    data: bytes = b""


@dataclass
class FakeFile:
    """device.File in memory."""

    name: str
    disk: FakeDisk
    cached: bytearray = field(default_factory=bytearray)
    stored: bytearray = field(default_factory=bytearray)
    dirty: list[Event] = field(default_factory=list)
    lent: bool = False
    """The bytes belong to somebody else, too: both are to be copied before they change."""
    reads_medium = True

    @classmethod
    def over(cls, name: str, disk: FakeDisk, content: bytearray) -> FakeFile:
        """A file with nothing dirty, of bytes that are not its own."""
        return cls(name, disk, content, content, lent=True)

    def size(self) -> int:
        return len(self.cached)

    def read_now(self, offset: int, into: memoryview) -> int:
        return -1 if self.disk.cold else self.read(offset, into)

    def read(self, offset: int, into: memoryview) -> int:
        self.disk.fail_if_told("read", self.name)
        part = self.cached[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def read_stored(self, offset: int, length: int) -> bytes:
        self.disk.fail_if_told("read", self.name)
        self._write_back()
        return bytes(self.stored[offset : offset + length])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        self.disk.fail_if_told("write", self.name)
        try:
            self.disk.fail_if_told("write-part", self.name)
        except OSError:
            self._change(Event("write", self.name, offset, data[: len(data) // 8]))
            raise
        self._change(Event("write", self.name, offset, data))
        self.disk.fail_if_told("write-after", self.name)

    def truncate(self, length: int) -> None:
        self.disk.fail_if_told("truncate", self.name)
        self._change(Event("truncate", self.name, length))

    def _change(self, event: Event) -> None:
        self.disk.note(event)
        self._own()
        apply(self.cached, event)
        self.dirty.append(event)

    def sync(self) -> None:
        try:
            self.disk.fail_if_told("sync", self.name)
        except OSError:
            self.dirty.clear()
            raise
        self._write_back()
        self.disk.note(Event("sync", self.name))

    def allocate(self, offset: int, length: int) -> None:
        self.disk.fail_if_told("allocate", self.name)
        self.disk.note(Event("allocate", self.name, offset + length))
        self._own()
        grow(self.cached, offset + length)
        grow(self.stored, offset + length)

    def punch(self, offset: int, length: int) -> None:
        self.write(offset, (bytes(length),))

    def close(self) -> None:
        pass

    def _own(self) -> None:
        if self.lent:
            self.cached, self.stored, self.lent = bytearray(self.cached), bytearray(self.cached), False

    def _write_back(self) -> None:
        for event in self.dirty:
            apply(self.stored, event)
        self.dirty.clear()


class FakeDisk:
    """device.Directory in memory, with its trace, its boot, and the faults it is told to have."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.files: dict[str, FakeFile] = {}
        self.trace: list[Event] = []
        self.boot = boot
        self.cold = False  # whether reads would block
        self.log_pages = 1000  # of SQLite's log, from which on a commit copies it into the database: its default
        self.faults: dict[tuple[str, str], list[int]] = {}
        """(operation, file) -> errors of the next such operations, in order; 0 is no error. Operations: ``read``;
        ``write`` (nothing was written), ``write-part`` (an eighth was), ``write-after`` (all was); ``truncate``,
        ``sync``, ``allocate``; and ``commit`` of meta.db, which fails before SQLite has begun it."""
        self._process = Process(self)

    def new_process(self) -> None:
        """The process that had the pool open is dead: nothing it still does counts."""
        self._process.die()
        self._process = Process(self)

    def lose_cache(self) -> None:
        for file in self.files.values():
            file.dirty.clear()
            file.cached = bytearray(file.stored)

    def copy(self) -> FakeDisk:
        """The same content and boot, to be looked at without being changed."""
        other = FakeDisk(self.boot)
        for name, file in self.files.items():
            if file.lent:
                other.files[name] = FakeFile.over(name, other, file.cached)
            else:
                both = bytearray(file.cached), bytearray(file.stored)
                other.files[name] = FakeFile(name, other, *both, list(file.dirty))
        return other

    def note(self, event: Event) -> None:
        """Something reached the disk."""
        self.trace.append(event)

    def fail_if_told(self, operation: str, file: str) -> None:
        faults = self.faults.get((operation, file))
        if faults and (number := faults.pop(0)):
            raise OSError(number, f"told to fail: {operation} of {file}")

    def exists(self, name: str) -> bool:
        return name in self.files

    def open(self, name: str, *, create: bool = False) -> FakeFile:
        if name not in self.files:
            if not create:
                raise FileNotFoundError(errno.ENOENT, f"no file {name}")
            self.note(Event("create", name))
            self.files[name] = FakeFile(name, self)
        return self.files[name]

    def remove(self, name: str, *, synced: bool = False) -> None:
        """``synced``: the directory is, too."""
        if self.files.pop(name, None) is not None:
            self.note(Event("remove", name, int(synced)))

    def sync(self) -> None:
        self.note(Event("sync", DIRECTORY))

    def free_bytes(self) -> int:
        return 1 << 30

    def boot_id(self) -> str:
        return self.boot

    def settle_database(self) -> None:
        log = self.files.get("meta.db-wal")
        if log is not None:
            log.write(0, (bytes(log.cached),))
            log.sync()

    def database(self) -> sqlite3.Connection:
        connection = self._process.connect("meta.db", _Database)
        assert isinstance(connection, _Database)
        connection.disk = self
        connection.execute(f"PRAGMA wal_autocheckpoint={self.log_pages}")
        return connection

    def reader(self) -> sqlite3.Connection:
        return self._process.connect("meta.db", Connection)

    def close(self) -> None:
        pass


class _Database(Connection):
    disk: FakeDisk

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql == "COMMIT":
            try:
                self.disk.fail_if_told("commit", "meta.db")
            except OSError as error:
                failure = sqlite3.OperationalError(str(error))
                full = error.errno == errno.ENOSPC
                failure.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR_FSYNC
                raise failure from error
        return super().execute(sql, parameters)


class Cutter:
    """Walks a trace and builds what a power cut behind each event may leave."""

    def __init__(self, trace: Sequence[Event], boot: str) -> None:
        self._trace = list(trace)
        self._boot = boot
        self._stored: dict[str, bytearray] = {}
        self._unsynced: list[Event] = []
        self._removed: dict[str, bytearray] = {}  # names that may come back, with what was synced
        self._lent: set[str] = set()  # files whose bytes some disk uses: copied before they change
        self.at = 0

    def step(self) -> Event:
        """Go behind the next event."""
        event = self._trace[self.at]
        self.at += 1
        name = event.file
        if event.kind == "create":
            self._stored[name] = bytearray()
            self._lent.discard(name)
            self._removed.pop(name, None)
        elif event.kind == "remove":
            content = self._stored.pop(name)
            if not event.offset:
                self._removed[name] = content
            self._take_unsynced(name)
        elif event.kind == "allocate":
            grow(self._own(name), event.offset)
        elif event.kind == "sync" and name == DIRECTORY:
            self._removed.clear()
        elif event.kind == "sync":
            for each in self._take_unsynced(name):
                apply(self._own(name), each)
        else:
            self._unsynced.append(event)
        return event

    def _take_unsynced(self, name: str) -> list[Event]:
        taken = [each for each in self._unsynced if each.file == name]
        self._unsynced = [each for each in self._unsynced if each.file != name]
        return taken

    def _own(self, name: str) -> bytearray:
        if name in self._lent:
            self._lent.discard(name)
            self._stored[name] = bytearray(self._stored[name])
        return self._stored[name]

    def start_from(self, disk: FakeDisk) -> None:
        """Begin with what ``disk`` holds now instead of with nothing."""
        self._stored = {name: bytearray(file.stored) for name, file in disk.files.items()}

    def follow(self, trace: Sequence[Event]) -> None:
        self._trace += trace

    @property
    def unsynced(self) -> int:
        return len(self._unsynced)

    def none_landed(self) -> FakeDisk:
        return self._disk(lambda event, last: [])

    def all_landed(self) -> FakeDisk:
        return self._disk(lambda event, last: [event])

    def last_torn(self, rng: random.Random) -> FakeDisk:
        """Everything landed but the last write, of which only leading sectors did."""

        def survive(event: Event, last: bool) -> list[Event]:
            return sectors(event)[: rng.randrange(len(sectors(event)))] if last and event.data else [event]

        return self._disk(survive)

    def some_landed(self, rng: random.Random) -> FakeDisk:
        """Each sector of each write landed or not, most writes whole or not at all. Removed names may be back."""

        def survive(event: Event, last: bool) -> list[Event]:
            fate = rng.random()
            if fate < 0.4:
                return []
            if fate < 0.8:
                return [event]
            return [sector for sector in sectors(event) if rng.random() < 0.5]

        disk = self._disk(survive)
        for name, content in self._removed.items():
            if rng.random() < 0.5:
                disk.files[name] = FakeFile.over(name, disk, content)
        return disk

    def _disk(self, survive: Callable[[Event, bool], list[Event]]) -> FakeDisk:
        disk = FakeDisk(self._boot)
        landed: dict[str, list[Event]] = {name: [] for name in self._stored}
        for event in self._unsynced:
            landed[event.file] += survive(event, event is self._unsynced[-1])
        for name, stored in self._stored.items():
            if landed[name]:
                stored = bytearray(stored)
                for part in landed[name]:
                    apply(stored, part)
            else:
                self._lent.add(name)
            disk.files[name] = FakeFile.over(name, disk, stored)
        return disk


def sectors(event: Event) -> list[Event]:
    """A write cut at the sectors' borders: its smallest parts. A truncation is one."""
    if event.kind == "truncate":
        return [event]
    end = event.offset + len(event.data)
    cuts = [event.offset, *range(event.offset // SECTOR * SECTOR + SECTOR, end, SECTOR), end]
    return [
        Event("write", event.file, start, event.data[start - event.offset : stop - event.offset])
        for start, stop in pairwise(cuts)
    ]


def apply(content: bytearray, event: Event) -> None:
    """Carry out a write or truncation."""
    if event.kind == "truncate":
        grow(content, event.offset)
        del content[event.offset :]
    else:
        grow(content, event.offset)
        content[event.offset : event.offset + len(event.data)] = event.data


def grow(content: bytearray, length: int) -> None:
    if len(content) < length:
        content.extend(bytes(length - len(content)))
