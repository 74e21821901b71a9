"""A pool in memory: the same contract as the embedded engine, for tests and for trying things; nothing survives it.

It keeps one dict of grains per map, so snapshots and clones copy the dict and share the bytes. It has no journal: a
batch is "committed" at the end of the tick in which it was begun, which is when its writes become visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID, uuid4

import numpy as np

from blockstore.api import (
    GRAIN,
    LOGICAL_BLOCK,
    NO_LABELS,
    Buffer,
    CachePolicy,
    ClientRecord,
    Closed,
    Done,
    Group,
    NewVolume,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Permit,
    PoolStatistics,
    PoolUsage,
    Revoked,
    Runner,
    StoreError,
)
from blockstore.catalog import Catalog
from blockstore.group import GroupTable, Plan, StoreGroup, widen
from blockstore.owners import POOL, OwnerTree
from blockstore.records import (
    CloneMap,
    CreateMap,
    Delete,
    DeleteMap,
    Edit,
    Put,
    ResizeMap,
    RollbackMap,
    SnapMap,
)

T = TypeVar("T")

_ZEROS = bytes(GRAIN)
_RUN_LIMIT = (8 << 20) // GRAIN  # grains that one unmapped_run looks at; the contract's 8 MiB


@dataclass(slots=True)
class _Map:
    size: int
    grains: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Write:
    """A write (``data``) or a discard (None) that waits for the end of the tick."""

    volume: MemoryVolume
    offset: int
    length: int
    data: memoryview | None
    permit: Permit
    done: Done


class MemoryVolume:
    """api.Volume over a dict of grains."""

    def __init__(self, pool: MemoryPool, uuid: UUID, map_number: int) -> None:
        self._pool = pool
        self._uuid = uuid
        self._map = pool.maps[map_number]
        self._attached = True
        self.write_through = False

    @property
    def uuid(self) -> UUID:
        return self._uuid

    @property
    def size(self) -> int:
        return self._map.size

    def set_write_through(self, write_through: bool) -> None:
        self.write_through = write_through

    def detach(self) -> None:
        self._attached = False

    def check_range(self, offset: int, length: int) -> None:
        """Raises OutOfRange, or NotFound when the volume was removed."""
        if not self._attached:
            raise NotFound(f"volume {self._uuid} was removed")
        if offset < 0 or length < 0 or (offset | length) % LOGICAL_BLOCK or offset + length > self.size:
            raise OutOfRange(f"offset {offset}, length {length}: the volume has {self.size} bytes in blocks of 512")

    def read_now(self, offset: int, into: memoryview) -> bool:
        self.check_range(offset, len(into))
        self._pool.commit()
        self._pool.counters["reads"] += 1
        self._pool.counters["read_bytes"] += len(into)
        at = 0
        while at < len(into):
            grain, skip = divmod(offset + at, GRAIN)
            piece = min(GRAIN - skip, len(into) - at)
            into[at : at + piece] = self._map.grains.get(grain, _ZEROS)[skip : skip + piece]
            at += piece
        return True

    def read(self, offset: int, into: memoryview, done: Done) -> None:
        try:
            self.read_now(offset, into)
        except StoreError as error:
            done(error)
        else:
            done(None)

    def write(self, offset: int, data: Buffer, permit: Permit, done: Done, *, sync: bool = False) -> None:
        view = memoryview(data).cast("B")
        self._pool.join(_Write(self, offset, len(view), view, permit, done))

    def discard(self, offset: int, length: int, permit: Permit, done: Done, *, sync: bool = False) -> None:
        self._pool.join(_Write(self, offset, length, None, permit, done))

    def flush(self, done: Done) -> None:
        self._pool.barrier(done)

    def unmapped_run(self, offset: int) -> tuple[bool, int]:
        self.check_range(offset, 0)
        self._pool.commit()
        first = offset // GRAIN
        end = min(self.size // GRAIN, first + _RUN_LIMIT)
        mapped = first in self._map.grains
        last = first
        while last < end and (last in self._map.grains) == mapped:
            last += 1
        return mapped, last * GRAIN - offset

    def store(self, offset: int, length: int, data: memoryview | None) -> None:
        """Carry out a committed write; None writes zeros. All-zero grains are unmapped, as in every engine."""
        at = 0
        while at < length:
            grain, skip = divmod(offset + at, GRAIN)
            piece = min(GRAIN - skip, length - at)
            content = bytearray(self._map.grains.get(grain, _ZEROS))
            content[skip : skip + piece] = bytes(piece) if data is None else data[at : at + piece]
            if content == _ZEROS:
                self._map.grains.pop(grain, None)
            else:
                self._map.grains[grain] = bytes(content)
            at += piece


class MemoryPool:
    """api.Pool in memory. ``size``: bytes that may be stored before writes are refused with OutOfSpace."""

    def __init__(self, runner: Runner, *, size: int = 1 << 40) -> None:
        self._runner = runner
        self._size = size
        self._uuid = uuid4()
        self._batch: list[_Write] = []
        self._commit_due = False
        self._closed = False
        self.maps: dict[int, _Map] = {}
        self.next_map = 1
        self.catalog = Catalog()
        self.counters = dict.fromkeys(
            (
                "reads",
                "read_bytes",
                "writes",
                "write_bytes",
                "discards",
                "batches",
                "flush_rounds",
                "checkpoints",
                "sweeps",
            ),
            0,
        )
        self._table = GroupTable(self)

    @property
    def uuid(self) -> UUID:
        return self._uuid

    @property
    def groups(self) -> dict[str, StoreGroup]:
        return self._table.groups

    def create_group(
        self,
        name: str,
        *,
        iqn: str,
        volumes: Sequence[NewVolume],
        clients: Sequence[ClientRecord] = (),
        cache: CachePolicy = CachePolicy.WRITEBACK,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Future[Group]:
        return widen(self._table.create(name, iqn=iqn, volumes=volumes, clients=clients, cache=cache, labels=labels))

    def clone_group(
        self,
        group: str,
        snapshot: str,
        name: str,
        *,
        iqn: str,
        clients: Sequence[ClientRecord],
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Future[Group]:
        return widen(self._table.clone(group, snapshot, name, iqn=iqn, clients=clients, labels=labels))

    def delete_group(self, name: str) -> Future[None]:
        return self._table.delete(name)

    def barrier(self, done: Done) -> None:
        self.commit()
        self.counters["flush_rounds"] += 1
        self._runner.call_soon(lambda: done(None))

    def checkpoint(self) -> Future[None]:
        self.counters["checkpoints"] += 1
        return self.control(lambda: Plan((), lambda: None))

    def sweep(self) -> Future[int]:
        self.counters["sweeps"] += 1
        return self.control(lambda: Plan((), lambda: 0))

    def usage(self) -> Future[PoolUsage]:
        return self.control(lambda: Plan((), self._count_usage))

    def _count_usage(self) -> PoolUsage:
        tree = OwnerTree(self.catalog)
        owners: dict[int, int] = {}  # by identity of the stored bytes: who shares a grain has the same object
        for number, one in self.maps.items():
            owner = tree.of_map.get(number, POOL)
            for grain in one.grains.values():
                owners[id(grain)] = tree.meet_one(owners.get(id(grain), owner), owner)
        owned = np.bincount(np.array(list(owners.values()), np.int64), minlength=len(tree))
        mapped = {number: len(one.grains) for number, one in self.maps.items()}
        return PoolUsage(time.time(), tree.usage(owned, mapped))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics("serving", None, self._size, self._used(), 0, dict(self.counters))

    def close(self) -> Future[None]:
        self.commit()
        self._closed = True
        closed: Future[None] = Future()
        self._runner.call_soon(lambda: closed.set_result(None))
        return closed

    def join(self, write: _Write) -> None:
        try:
            if self._closed:
                raise Closed("the pool is closed")
            write.volume.check_range(write.offset, write.length)
        except StoreError as error:
            write.done(error)
            return
        self._batch.append(write)
        if not self._commit_due:
            self._commit_due = True
            self._runner.call_soon(self._end_of_tick)

    def commit(self) -> None:
        """Carry out what joined so far, in order, except what was revoked."""
        while self._batch:
            batch, self._batch = self._batch, []
            self.counters["batches"] += 1
            for write, error in [(write, self._carry_out(write)) for write in batch]:
                write.done(error)

    def control(self, prepare: Callable[[], Plan[T]]) -> Future[T]:
        future: Future[T] = Future()
        self.commit()
        try:
            if self._closed:
                raise Closed("the pool is closed")
            plan = prepare()
        except StoreError as error:
            future.set_exception(error)
            return future
        for edit in plan.edits:
            self._apply(edit)
        self._table.follow(plan.edits)
        result = plan.result()
        self._runner.call_soon(lambda: future.set_result(result))
        return future

    def open_volume(self, uuid: UUID, map_number: int) -> MemoryVolume:
        return MemoryVolume(self, uuid, map_number)

    def mapped_bytes(self, map_number: int) -> int:
        return len(self.maps[map_number].grains) * GRAIN

    def _end_of_tick(self) -> None:
        self._commit_due = False
        self.commit()

    def _carry_out(self, write: _Write) -> StoreError | None:
        if write.permit.revoked:
            return Revoked("the write's permit was revoked")
        if write.data is not None and not self._fits(write.length):
            return OutOfSpace(f"{write.length} bytes do not fit: {self._used()} of {self._size} are used")
        write.volume.store(write.offset, write.length, write.data)
        self.counters["discards" if write.data is None else "writes"] += 1
        self.counters["write_bytes"] += 0 if write.data is None else write.length
        return None

    def _fits(self, length: int) -> bool:
        mapped = sum(len(one.grains) for one in self.maps.values()) * GRAIN
        return self._size - mapped >= length or self._size - self._used() >= length

    def _used(self) -> int:
        """Bytes stored; grains shared by snapshots and clones count once."""
        return len({id(grain) for one in self.maps.values() for grain in one.grains.values()}) * GRAIN

    def _apply(self, edit: Edit) -> None:
        match edit:
            case CreateMap(number, size):
                self._add_map(number, _Map(size))
            case SnapMap(number, source) | CloneMap(number, source):
                of = self.maps[source]
                self._add_map(number, _Map(of.size, dict(of.grains)))
            case RollbackMap(number, source):
                self.maps[number].size = self.maps[source].size
                self.maps[number].grains = dict(self.maps[source].grains)
            case ResizeMap(number, size):
                self.maps[number].size = size
            case DeleteMap(number):
                del self.maps[number]
            case Put() | Delete():
                self.catalog.apply(edit)

    def _add_map(self, number: int, new: _Map) -> None:
        self.maps[number] = new
        self.next_map = max(self.next_map, number + 1)
