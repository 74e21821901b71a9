"""A disk in memory whose power can be cut: records every I/O of a pool, and shows what each cut could have left.

The model is dm-log-writes': a write that no later sync of its file covered may be on the medium, or not, or torn at
512 bytes, independently of others; a synced one is there. ``read_stored`` is O_DIRECT: it writes the range's dirty
pages out first, and after a failed sync shows the medium, while ``read`` still shows the cache (Linux marks pages clean
when writing them back fails). SQLite runs on a database in memory, and each commit is one event that replaces
``meta.db`` as a whole: a cut before it finds the old state, a cut behind it the new one. What a cut inside SQLite's
own commit leaves is SQLite's contract (WAL, synchronous=FULL), and not tested here.
"""

from __future__ import annotations

import errno
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockstore.api import Buffer
from blockstore.pool import Tuning, open_directory
from tests.blockstore.support import KIB, Driver, ManualRunner

SECTOR = 512
TUNING = Tuning(grow_step=1024 * KIB, keep_free=256 * KIB, reserve=0, map_leaves=1 << 10, unsynced_cap=1 << 20)


def open_disk(disk: FakeDisk, *, size_limit: int | None = None, tuning: Tuning = TUNING) -> Driver:
    """Make or recover the pool on ``disk``."""
    runner = ManualRunner()
    pool = open_directory(
        disk, runner, create=True, name="p", size_limit=size_limit, journal_size=256 * KIB, tuning=tuning
    )
    return Driver(runner, pool)


@dataclass(frozen=True, slots=True)
class Event:
    """One I/O that reached the disk."""

    kind: str
    """``create``, ``write``, ``allocate``, ``sync`` or ``commit``"""
    file: str
    offset: int = 0
    data: bytes = b""


@dataclass
class FakeFile:
    """device.File in memory."""

    name: str
    disk: FakeDisk
    cached: bytearray = field(default_factory=bytearray)
    stored: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, bytes]] = field(default_factory=list)
    reads_medium = True

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
        self.disk.trace.append(Event("write", self.name, offset, data))
        put(self.cached, offset, data)
        self.dirty.append((offset, data))
        self.disk.fail_if_told("write-after", self.name)

    def sync(self) -> None:
        try:
            self.disk.fail_if_told("sync", self.name)
        except OSError:
            self.dirty.clear()
            raise
        self._write_back()
        self.disk.trace.append(Event("sync", self.name))

    def allocate(self, offset: int, length: int) -> None:
        self.disk.fail_if_told("allocate", self.name)
        self.disk.trace.append(Event("allocate", self.name, offset + length))
        grow(self.cached, offset + length)
        grow(self.stored, offset + length)

    def punch(self, offset: int, length: int) -> None:
        self.write(offset, (bytes(length),))

    def close(self) -> None:
        pass

    def _write_back(self) -> None:
        for offset, data in self.dirty:
            put(self.stored, offset, data)
        self.dirty.clear()


class FakeDisk:
    """device.Directory in memory, with its trace, its boot, and the faults it is told to have."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.files: dict[str, FakeFile] = {}
        self.trace: list[Event] = []
        self.meta: bytes | None = None
        self.boot = boot
        self.cold = False  # whether reads would block
        self.faults: dict[tuple[str, str], list[int]] = {}
        """(operation, file) -> errors of the next such operations, in order; 0 is no error."""

    @property
    def born(self) -> bool:
        """Whether there is a pool, or the beginnings of one."""
        return self.meta is not None

    def fail_if_told(self, operation: str, file: str) -> None:
        faults = self.faults.get((operation, file))
        if faults and (number := faults.pop(0)):
            raise OSError(number, f"told to fail: {operation} of {file}")

    def exists(self, name: str) -> bool:
        return self.meta is not None if name == "meta.db" else name in self.files

    def open(self, name: str, *, create: bool = False) -> FakeFile:
        if create and name not in self.files:
            self.trace.append(Event("create", name))
            self.files[name] = FakeFile(name, self)
        return self.files[name]

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def sync(self) -> None:
        pass

    def free_bytes(self) -> int:
        return 1 << 30

    def boot_id(self) -> str:
        return self.boot

    def settle_database(self) -> None:
        pass

    def database(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Database)
        connection.disk = self
        if self.meta is not None:
            connection.deserialize(self.meta)
        return connection

    def close(self) -> None:
        pass

    def committed(self, image: bytes) -> None:
        self.meta = image
        self.trace.append(Event("commit", "meta.db", 0, image))


class _Database(sqlite3.Connection):
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
        cursor = super().execute(sql, parameters)
        if sql == "COMMIT":
            self.disk.committed(self.serialize())
        return cursor


class Cutter:
    """Walks a trace and builds what a power cut behind each event may leave."""

    def __init__(self, trace: Sequence[Event], boot: str) -> None:
        self._trace = list(trace)
        self._boot = boot
        self._stored: dict[str, bytearray] = {}
        self._unsynced: list[Event] = []
        self._meta: bytes | None = None
        self.at = 0

    def step(self) -> Event:
        """Go behind the next event."""
        event = self._trace[self.at]
        self.at += 1
        if event.kind == "create":
            self._stored[event.file] = bytearray()
        elif event.kind == "allocate":
            grow(self._stored[event.file], event.offset)
        elif event.kind == "write":
            self._unsynced.append(event)
        elif event.kind == "commit":
            self._meta = event.data
        else:
            for write in self._unsynced:
                if write.file == event.file:
                    put(self._stored[write.file], write.offset, write.data)
            self._unsynced = [write for write in self._unsynced if write.file != event.file]
        return event

    def start_from(self, disk: FakeDisk) -> None:
        """Begin with what ``disk`` holds now instead of with nothing."""
        self._meta = disk.meta
        self._stored = {name: bytearray(file.stored) for name, file in disk.files.items()}

    def follow(self, trace: Sequence[Event]) -> None:
        self._trace += trace

    @property
    def unsynced(self) -> int:
        return len(self._unsynced)

    def none_landed(self) -> FakeDisk:
        return self._disk(lambda write, last: [])

    def all_landed(self) -> FakeDisk:
        return self._disk(lambda write, last: [(write.offset, write.data)])

    def last_torn(self, rng: random.Random) -> FakeDisk:
        """Everything landed but the last write, of which only leading sectors did."""

        def survive(write: Event, last: bool) -> list[tuple[int, bytes]]:
            keep = SECTOR * rng.randrange(len(write.data) // SECTOR) if last else len(write.data)
            return [(write.offset, write.data[:keep])]

        return self._disk(survive)

    def some_landed(self, rng: random.Random) -> FakeDisk:
        """Each sector of each write landed or not, most writes whole or not at all."""

        def survive(write: Event, last: bool) -> list[tuple[int, bytes]]:
            fate = rng.random()
            if fate < 0.4:
                return []
            if fate < 0.8:
                return [(write.offset, write.data)]
            sectors = range(0, len(write.data), SECTOR)
            return [(write.offset + at, write.data[at : at + SECTOR]) for at in sectors if rng.random() < 0.5]

        return self._disk(survive)

    def _disk(self, survive: Callable[[Event, bool], list[tuple[int, bytes]]]) -> FakeDisk:
        disk = FakeDisk(self._boot)
        disk.meta = self._meta
        for name, stored in self._stored.items():
            disk.files[name] = FakeFile(name, disk, bytearray(stored))
        for write in self._unsynced:
            for offset, data in survive(write, write is self._unsynced[-1]):
                put(disk.files[write.file].cached, offset, data)
        for file in disk.files.values():
            file.stored = bytearray(file.cached)
        return disk


def put(content: bytearray, offset: int, data: bytes) -> None:
    grow(content, offset)
    content[offset : offset + len(data)] = data


def grow(content: bytearray, length: int) -> None:
    if len(content) < length:
        content.extend(bytes(length - len(content)))
