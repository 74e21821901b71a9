"""The embedded pool: opening a directory, wiring the parts together, and their life until close or fail-stop.

State and wiring only. What a batch is, is ``writer``'s; durability ``flush``'s; images ``saver``'s; free blocks
``space``'s and ``reclaim``'s; verbs ``group``'s. Invariant: once ``reason`` is set nothing is appended, committed to
``meta.db`` or acknowledged as durable any more; reads go on.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from blockstore import reserve
from blockstore.accountant import Accountant
from blockstore.allocator import Allocator
from blockstore.api import (
    NO_LABELS,
    CachePolicy,
    ClientRecord,
    Closed,
    Corrupt,
    Done,
    FailStopped,
    Group,
    Invalid,
    NewVolume,
    PoolStatistics,
    PoolUsage,
    Runner,
    StoreError,
    Undecided,
)
from blockstore.check import check_catalog
from blockstore.checkpoint import MetaDb
from blockstore.creation import JOURNAL_SIZE, is_unborn
from blockstore.creation import create as create_files
from blockstore.device import Directory, File, HostDirectory, SyncGate, is_full, opening_error
from blockstore.flush import FlushRounds
from blockstore.futures import new_future, resolve
from blockstore.group import GroupTable, Plan, StoreGroup, widen
from blockstore.hostfile import usable_blocks
from blockstore.housekeeping import Housekeeper
from blockstore.journal import Journal
from blockstore.layout import UNIT_SHIFT, pack_edit
from blockstore.reclaim import Marker, ProcessMarker, ThreadMarker
from blockstore.records import Delete, Edit, Put, RollbackMap
from blockstore.recovery import Replay, finish, open_files, replay, sync_before_reading
from blockstore.residency import Residency
from blockstore.runner import CountingRunner
from blockstore.saver import Checkpointer
from blockstore.space import Space
from blockstore.stats import Counters
from blockstore.volume import EngineVolume
from blockstore.writer import BatchWriter

T = TypeVar("T")

_DIRTY_MAPS = 1024  # roots that a switch copies at most, in one go: 5 ms, of maps of 64 TiB too


@dataclass(frozen=True, slots=True)
class Tuning:
    """What may differ from machine to machine. Bytes and seconds."""

    grow_step: int = 1 << 30
    """The data file grows ahead by so much."""
    keep_free: int = 1 << 30
    """So much free space stays allocated in the host; more is given back."""
    unsynced_cap: int = 256 << 20
    """Data that no sync has covered: beyond half of it a sync is begun and writers are slowed."""
    map_leaves: int = 1 << 26
    """Leaves (2 MiB of a volume each) that may exist: address space of 6 KiB each."""
    map_memory: int = 1 << 30
    """Bytes of the maps that are kept in memory; the rest is read when it is needed."""
    reserve: int = 16 << 20
    """Kept aside in the host file system so that a checkpoint can finish when that is full."""
    checkpoint_interval: float = 60.0
    private_frees: bool = True
    """Whether a block is free as soon as the only entry that names it is replaced; else the sweep finds it."""
    helper_processes: bool = True
    """Whether sweeps have a process of their own; else they take turns with the loop thread."""


def open_pool(
    path: Path,
    runner: Runner,
    *,
    create: bool = False,
    name: str = "",
    size_limit: int | None = None,
    journal_size: int = JOURNAL_SIZE,
    tuning: Tuning | None = None,
) -> EnginePool:
    """Lock the directory, recover what is there, serve it.

    ``create``: make the pool if there is none; ``name`` (default: the directory's) and ``journal_size`` count only
    then.
    ``size_limit``: bytes that the data may have; None: as many as the host gives, or the block device has.
    Raises Locked, Corrupt, Invalid, OSError.
    """
    directory = HostDirectory(path, create=create)
    try:
        if not create and not directory.exists("meta.db"):
            # No corruption: a mount point is empty until its file system is there.
            raise FileNotFoundError(errno.ENOENT, "there is no pool, or its file system is not mounted", str(path))
        return open_directory(
            directory,
            runner,
            create=create,
            name=name or path.name,
            size_limit=size_limit,
            journal_size=journal_size,
            tuning=tuning or Tuning(),
        )
    except BaseException:
        directory.close()
        raise


def open_directory(
    directory: Directory,
    runner: Runner,
    *,
    create: bool,
    name: str,
    size_limit: int | None,
    journal_size: int,
    tuning: Tuning,
) -> EnginePool:
    """As ``open_pool``, over any Directory; the caller closes it if this raises."""
    try:
        if create and is_unborn(directory):
            create_files(directory, name, journal_size)
        database, data = open_files(directory)
        try:
            sync_before_reading(directory, data)
            state = replay(directory, database, data, tuning.map_leaves, private_frees=tuning.private_frees)
            for finding in check_catalog(state.catalog, state.blockmap):
                raise Corrupt(f"catalogue: {finding.message}")
            journal = _finish(directory, database, data, state)
        except BaseException:
            data.close()
            database.close()
            raise
    except sqlite3.Error as error:
        raise opening_error(error) from error
    return EnginePool(directory, database, data, journal, state, runner, size_limit, tuning)


def _finish(directory: Directory, database: MetaDb, data: File, state: Replay) -> Journal:
    """Recovery's own checkpoint. A full host gets the reserve back for it: what is there must stay readable."""
    try:
        return finish(directory, database, data, state)
    except sqlite3.Error as error:
        database.roll_back()
        if not is_full(error) or not directory.exists(reserve.NAME):
            raise
    directory.remove(reserve.NAME)
    return finish(directory, database, data, state)


class EnginePool:
    """api.Pool over one directory."""

    def __init__(
        self,
        directory: Directory,
        database: MetaDb,
        data: File,
        journal: Journal,
        state: Replay,
        runner: Runner,
        size_limit: int | None,
        tuning: Tuning,
    ) -> None:
        self.runner = CountingRunner(runner)
        self.data = data
        self.blockmap = state.blockmap
        self.counters = Counters()
        self.catalog = state.catalog
        self.recovered = state
        self.reason: str | None = None
        self.scrubbing = False  # whether a scrub runs: they share one buffer for reads past the page cache
        self._directory = directory
        self._database = database
        self._journal = journal
        self._superblock = state.superblock
        self._first, end = usable_blocks(self.data)
        limits = [size_limit, None if end is None else end << UNIT_SHIFT]
        self._size_limit = min((limit for limit in limits if limit is not None), default=None)
        self._tuning = tuning
        self._gate = SyncGate()
        self._build(tuning)
        self._table = GroupTable(self)
        self._closing: Future[None] | None = None
        self._housekeeper.note_opened(self._superblock.ckpt_epoch)
        self._reserve.open()
        self.runner.call_soon(self._housekeeper.begin_sweep)
        self._space.prepare()

    def _build(self, tuning: Tuning) -> None:
        """The parts, each told what it may ask of the others."""
        limit = None if self._size_limit is None else self._size_limit >> UNIT_SHIFT
        self._rounds = FlushRounds(
            self.runner,
            self._gate,
            self.data,
            self._journal,
            fail_stop=self._fail_stop,
            append_empty=self._append_empty,
        )
        self.writer = BatchWriter(
            self.runner,
            self.data,
            self._journal,
            self.blockmap,
            self._rounds,
            unsynced_cap=tuning.unsynced_cap,
            fail_stop=self._fail_stop,
            need_checkpoint=lambda: self._housekeeper.need_checkpoint(),
        )
        self._housekeeper = Housekeeper(
            self.runner,
            self.writer,
            self._journal,
            self.blockmap,
            self.counters,
            checkpoint_interval=tuning.checkpoint_interval,
            make_marker=self._make_marker,
            log_bytes=self._database.log_bytes,
        )
        self._reserve = reserve.Reserve(self.runner, self._directory, tuning.reserve)
        self._space = self.writer.space = self._housekeeper.space = Space(
            self.runner,
            self.data,
            self._free_blocks(limit),
            self.blockmap,
            limit=limit,
            step=tuning.grow_step >> UNIT_SHIFT,
            keep=tuning.keep_free >> UNIT_SHIFT,
            join=self.writer.join,
            drop=self.writer.drop,
            reclaim=self._housekeeper.reclaim,
        )
        self.residency = self.writer.residency = self._housekeeper.residency = Residency(
            self.runner,
            self.blockmap,
            self._directory.reader,
            budget=tuning.map_memory,
            needed=self.writer.needed_nodes,
            need_checkpoint=self._housekeeper.need_checkpoint,
        )
        self._checkpointer = self._housekeeper.checkpointer = Checkpointer(
            self.runner,
            self._gate,
            self._database,
            self.data,
            self._journal,
            self.blockmap,
            self.catalog,
            self._superblock,
            cut=self.writer.cut,
            seal=self._housekeeper.seal,
            release=self._committed,
            make_room=self._reserve.release,
            fail_stop=self._fail_stop,
        )
        self._accountant = Accountant(
            self.runner, self._database.path, self._checkpointer, covered=lambda: self._journal.last_content_seq
        )

    def _free_blocks(self, limit: int | None) -> Allocator:
        """What is free before the opening sweep. The data may be longer than its limit: that was lowered, or it is a
        device; what lies behind is not handed out."""
        blocks, high_water = self.data.size() >> UNIT_SHIFT, self.recovered.high_water
        if limit is not None:
            blocks = min(blocks, max(limit, high_water))
        return Allocator(min(high_water, blocks), blocks, never_below=self._first)

    # ------------------------------------------------------------------------------------------------ the contract

    @property
    def uuid(self) -> UUID:
        return self._superblock.uuid

    @property
    def name(self) -> str:
        return self._superblock.name

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
        self.writer.after_commit(
            lambda: done(Undecided("a journal append failed before") if self.writer.undecided else None)
        )

    def flush(self, done: Done) -> None:
        """Make everything acknowledged before this call durable; ``done`` after the round that did it."""

        def join() -> None:
            if self.writer.refusal is not None:
                done(self.writer.refusal)
            elif not self._journal.unsynced:
                done(None)
            else:
                self._rounds.join(done)

        self.writer.after_commit(join)

    def checkpoint(self) -> Future[None]:
        future: Future[None] = new_future()
        if self._closing is not None:
            future.set_exception(Closed("the pool is closed"))
            return future
        self._checkpointer.start(lambda error: resolve(future, error, None))
        return future

    def sweep(self) -> Future[int]:
        if self.writer.refusal is None:
            return self._housekeeper.sweep()
        future: Future[int] = new_future()
        future.set_exception(self.writer.refusal)
        return future

    def usage(self) -> Future[PoolUsage]:
        return self._accountant.usage()

    def statistics(self) -> PoolStatistics:
        writer, checkpointer, allocator = self.writer, self._checkpointer, self._space.allocator
        limit = self._size_limit
        return PoolStatistics(
            state="serving" if self.reason is None else "fail-stopped",
            reason=self.reason,
            size=limit if limit is not None else (allocator.blocks << UNIT_SHIFT) + self._directory.free_bytes(),
            used=self._space.used << UNIT_SHIFT,
            pending_free=self._space.pending_blocks << UNIT_SHIFT,
            data=self.data.name,
            counters={
                "reads": self.counters.reads,
                "read_bytes": self.counters.read_bytes,
                "medium_errors": self.counters.medium_errors,
                "writes": writer.writes,
                "write_bytes": writer.write_bytes,
                "delayed_writes": writer.delayed,
                "batches": writer.batches,
                "flush_rounds": self._rounds.rounds,
                "checkpoints": checkpointer.checkpoints,
                "nodes_saved": checkpointer.nodes_saved,
                "map_bytes": self.blockmap.held_bytes,
                "map_nodes_loaded": self.residency.loaded,
                "map_nodes_evicted": self.residency.evicted,
                "sweeps": self.counters.sweeps,
                "swept_bytes": self.counters.swept_bytes,
                "sent_bytes": self.counters.sent_bytes,
                "received_bytes": self.counters.received_bytes,
                "scrubbed_bytes": self.counters.scrubbed_bytes,
                "scrub_errors": self.counters.scrub_errors,
                "punched_bytes": self._space.punched_bytes,
                "recovered_batches": self.recovered.batches,
                "usage_counts": self._accountant.counts,
                "usage_progress_percent": int(100 * self._accountant.progress),
            },
        )

    @property
    def closing(self) -> bool:
        return self._closing is not None

    @property
    def closed(self) -> bool:
        """Whether ``close`` has ended and the lock is released."""
        return self._closing is not None and self._closing.done()

    def close(self) -> Future[None]:
        if self._closing is not None:
            return self._closing
        closing: Future[None] = new_future()
        self._closing = closing
        self._housekeeper.stop()
        if self.reason is None:
            self._rounds.join(lambda error: self._checkpointer.start(lambda error: self._end()))
        else:
            self._end()
        return closing

    # ------------------------------------------------------------------------------------------------ for groups

    @property
    def next_map(self) -> int:
        return self.blockmap.next_map

    def open_volume(self, uuid: UUID, map_number: int) -> EngineVolume:
        return EngineVolume(self, uuid, self.blockmap.maps[map_number])

    def mapped_bytes(self, map_number: int) -> int:
        return self.blockmap.maps[map_number].mapped << UNIT_SHIFT

    def control(self, prepare: Callable[[], Plan[T]]) -> Future[T]:
        future: Future[T] = new_future()
        if self._closing is not None:
            future.set_exception(Closed("the pool is closed"))
        else:
            self.writer.after_commit(lambda: self._control(prepare, future))
        return future

    def _control(self, prepare: Callable[[], Plan[T]], future: Future[T]) -> None:
        try:
            if self.writer.refusal is not None:
                raise self.writer.refusal
            plan = prepare()
            records = [pack_edit(edit) for edit in plan.edits]
            if not self._journal.fits(sum(map(len, records))):
                if not self._journal.fits_when_empty(sum(map(len, records))):
                    raise Invalid(
                        f"the edit has {sum(map(len, records))} bytes; the journal holds {self._journal.size}"
                    )
                self._housekeeper.need_checkpoint()
                self.writer.wait_for_room(lambda: self._control(prepare, future))
                return
            self._append_edits(plan.edits, records)
        except StoreError as error:
            future.set_exception(error)
            return
        result = plan.result()
        self._rounds.join(lambda error: resolve(future, error, result))

    def _append_edits(self, edits: Sequence[Edit], records: list[bytes]) -> None:
        try:
            self._journal.append(records)
        except OSError as error:
            rolled_back = {edit.map for edit in edits if isinstance(edit, RollbackMap)}
            volumes = [volume for group in self.groups.values() for volume in group.volumes.values()]
            self.writer.leave_verb_undecided(
                volume for volume in volumes if isinstance(volume, EngineVolume) and volume.map.number in rolled_back
            )
            self._fail_stop(f"journal append failed: {error}")
            raise Undecided(f"journal append failed: {error}") from error
        for edit in edits:
            if isinstance(edit, Put | Delete):
                self.catalog.apply(edit)
            else:
                self.blockmap.apply(edit)
        self._table.follow(edits)
        if len(self.blockmap.dirty_maps) > _DIRTY_MAPS:
            self._housekeeper.need_checkpoint()

    # ------------------------------------------------------------------------------------------------ background

    def _committed(self) -> None:
        self._housekeeper.checkpoint_committed()
        self.residency.relieve()

    def _make_marker(self) -> Marker:
        path = self._database.path
        return ProcessMarker(path) if path and self._tuning.helper_processes else ThreadMarker(self._directory.reader)

    def _append_empty(self) -> None:
        if self.reason is not None or self._closing is not None or not self._journal.fits(0):
            return
        try:
            self._journal.append([])
        except OSError as error:
            self._fail_stop(f"journal append failed: {error}")

    # ------------------------------------------------------------------------------------------------ the end

    def _fail_stop(self, reason: str) -> None:
        """The disk's state is unknown: no write and no commit any more, until recovery has read what is there."""
        if self.reason is not None:
            return
        self.reason = reason
        self._gate.latch(OSError(reason))
        self.writer.refusal = FailStopped(reason)
        self._checkpointer.stop()
        self._space.stop()
        self._reserve.stop()
        self._housekeeper.stop()
        self.runner.call_soon(lambda: self._refuse_all(FailStopped(reason)))

    def _refuse_all(self, error: StoreError) -> None:
        self.writer.refuse_all(error)
        self._space.refuse_all(error)
        self._housekeeper.refuse_all(error)
        self._accountant.stop(error)

    def _end(self) -> None:
        """The last checkpoint is made, or none will be: refuse everything, let the helpers finish, release the lock."""
        self._checkpointer.stop()
        self._rounds.stop()
        self._space.stop()
        self.residency.stopped = True
        self._reserve.stop()
        self._refuse_all(Closed("the pool is closed"))
        self.runner.when_idle(self._release_files)

    def _release_files(self) -> None:
        for group in self.groups.values():
            group.detach()
        self.residency.close()
        self._database.close()
        self._journal.close()
        self.data.close()
        self._directory.close()
        assert self._closing is not None
        self._closing.set_result(None)
