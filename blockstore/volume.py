"""api.Volume over a block map: reads that verify every grain, writes that join the pool's batch.

Ragged writes become whole grains here (read-modify-write), all-zero grains become trims, a discard's ragged edges
become zeros. What a batch does with its members is ``writer``'s. Invariants: no byte is returned whose checksum did not
match; no grain is read for modification while a write to it is joined and not committed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
from crc32c import crc32c

from blockstore.api import (
    LOGICAL_BLOCK,
    Buffer,
    Done,
    MediumError,
    NotFound,
    OutOfRange,
    Permit,
    StoreError,
    Undecided,
)
from blockstore.blockmap import LEAF_MASK, PAGE_GRAIN_SHIFT, PAGE_MASK, Map
from blockstore.layout import (
    BLOCK_MASK,
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PAGE_SHIFT,
    UNIT,
    UNIT_SHIFT,
    ZERO_CRC,
    ZERO_GRAIN,
)
from blockstore.records import Crcs
from blockstore.writer import BATCH_GRAINS

if TYPE_CHECKING:
    from blockstore.pool import EnginePool

_UNIT_MASK = UNIT - 1
_BLOCK = np.uint64(BLOCK_MASK)
_SECTOR_MASK = LOGICAL_BLOCK - 1
_RUN_LIMIT = (8 << 20) >> UNIT_SHIFT  # grains that one unmapped_run looks at: the contract's 8 MiB
_DISCARD_GRAINS = 1 << 18  # grains (1 GiB) trimmed in one go: up to 512 leaves, about 1 ms


class EngineVolume:
    """One logical unit of the embedded pool."""

    def __init__(self, pool: EnginePool, uuid: UUID, map_: Map) -> None:
        self.map = map_
        self.write_through = False
        self._uuid = uuid
        self._pool = pool
        self._writer = pool.writer
        self._data = pool.data
        self._blockmap = pool.blockmap
        self._counters = pool.counters
        self._page_ids = pool.blockmap.pages.ids
        self._entries = pool.blockmap.leaves.entries
        self._crcs = pool.blockmap.leaves.crcs
        self._leaf_used = pool.blockmap.leaves.used
        self._entry_array = pool.blockmap.leaves.entry_array
        self._crc_array = pool.blockmap.leaves.crc_array
        self._attached = True
        self._pending: set[int] = set()  # grains of writes that joined and are not committed
        self._pending_trims: list[range] = []

    @property
    def uuid(self) -> UUID:
        return self._uuid

    @property
    def size(self) -> int:
        return self.map.size

    def set_write_through(self, write_through: bool) -> None:
        self.write_through = write_through

    def detach(self) -> None:
        self._attached = False

    # ------------------------------------------------------------------------------------------------ reading

    def read_now(self, offset: int, into: memoryview) -> bool:
        if len(into) != UNIT or offset & _UNIT_MASK or self._pending or self._pending_trims or not self._attached:
            return self._read_any_now(offset, into)
        # One whole grain, nothing pending: the hot path (bench/store.py); _read_any_now does the same.
        map_, grain = self.map, offset >> UNIT_SHIFT
        if offset < 0 or offset >= map_.size:
            raise self._out_of_range(offset, UNIT)
        leaf = self._page_ids[map_.root[grain >> PAGE_GRAIN_SHIFT] << PAGE_SHIFT | (grain >> LEAF_SHIFT & PAGE_MASK)]
        at = leaf << LEAF_SHIFT | (grain & LEAF_MASK)
        block = self._entries[at] & BLOCK_MASK
        self._leaf_used[leaf] = 1
        if not block:
            if self._blockmap.absent and self._blockmap.absent_nodes(map_, grain, 1):
                return False
            into[:] = ZERO_GRAIN
            self._counters.reads += 1
            self._counters.read_bytes += UNIT
            return True
        try:
            if self._data.read_now(block << UNIT_SHIFT, into) != UNIT:
                return False
        except OSError as error:
            raise self.damaged(
                MediumError(f"volume {self._uuid}: read of block {block} failed: {error}", offset)
            ) from error
        if crc32c(into) != self._crcs[at]:
            raise self.damaged(MediumError(f"volume {self._uuid}: checksum of block {block} does not match", offset))
        self._counters.reads += 1
        self._counters.read_bytes += UNIT
        return True

    def read(self, offset: int, into: memoryview, done: Done) -> None:
        try:
            if self.read_now(offset, into):
                done(None)
                return
        except StoreError as error:
            done(error)
            return
        missing = self._absent(offset, len(into))
        if missing:
            self._load(missing, offset, lambda: self.read(offset, into, done), done)
        else:
            self._read_in_thread(offset, into, done)

    def unmapped_run(self, offset: int) -> tuple[bool, int] | None:
        self._check(offset, 0)
        first = offset >> UNIT_SHIFT
        self._settle(range(first, first + _RUN_LIMIT))
        count = min(_RUN_LIMIT, (self.map.size >> UNIT_SHIFT) - first)
        if not count:
            return False, 0
        if self._absent(offset, count << UNIT_SHIFT):
            return None
        entries, _ = self._lookup(first, count)
        states = entries != 0
        changes = np.flatnonzero(states != states[0])
        run = int(changes[0]) if len(changes) else count
        return bool(states[0]), ((first + run) << UNIT_SHIFT) - offset

    def load_map(self, offset: int, done: Done) -> None:
        try:
            self._check(offset, 0)
        except StoreError as error:
            done(error)
            return
        length = min(_RUN_LIMIT << UNIT_SHIFT, self.map.size - offset)
        missing = self._absent(offset, length)
        if missing:
            self._load(missing, offset, lambda: self.load_map(offset, done), done)
        else:
            done(None)

    def _read_any_now(self, offset: int, into: memoryview) -> bool:
        length = len(into)
        self._check(offset, length)
        first, end = offset >> UNIT_SHIFT, (offset + length + _UNIT_MASK) >> UNIT_SHIFT
        if self._pending or self._pending_trims:
            self._settle(range(first, end))
        whole = into if not (offset | length) & _UNIT_MASK else memoryview(bytearray((end - first) << UNIT_SHIFT))
        if self._absent(offset, length) or not self._read_grains(first, whole, wait=False):
            return False
        if whole is not into:
            skip = offset & _UNIT_MASK
            into[:] = whole[skip : skip + length]
        self._counters.reads += 1
        self._counters.read_bytes += length
        return True

    def _read_grains(self, first: int, into: memoryview, *, wait: bool) -> bool:
        """Fill ``into`` with whole grains, whose nodes are there; False if it would block. Raises MediumError."""
        blocks, crcs = self._lookup(first, len(into) >> UNIT_SHIFT)
        try:
            return self._fill(first, blocks, crcs, into, wait=wait)
        except MediumError as error:
            raise self.damaged(error) from error.__cause__

    def _read_in_thread(self, offset: int, into: memoryview, done: Done) -> None:
        """Read and verify in a helper thread. A pin keeps the blocks from being reused meanwhile, whatever becomes of
        the map: what is answered is what was there when this was called."""
        length = len(into)
        first, end = offset >> UNIT_SHIFT, (offset + length + _UNIT_MASK) >> UNIT_SHIFT
        blocks, crcs = self._lookup(first, end - first)
        crcs = crcs.copy()  # ``blocks`` is no part of the map already
        whole = into if not (offset | length) & _UNIT_MASK else memoryview(bytearray((end - first) << UNIT_SHIFT))
        pin = self._writer.space.pin()

        def finish(error: BaseException | None) -> None:
            pin.release()
            if error is not None:
                known = error if isinstance(error, MediumError) else MediumError(f"read failed: {error!r}", offset)
                done(self.damaged(known))
                return
            if not self._attached:
                done(self._refusal(offset, length))
                return
            if whole is not into:
                skip = offset & _UNIT_MASK
                into[:] = whole[skip : skip + length]
            self._counters.reads += 1
            self._counters.read_bytes += length
            done(None)

        self._pool.runner.in_thread(lambda: self._fill(first, blocks, crcs, whole, wait=True), finish)

    def _fill(
        self,
        first: int,
        blocks: np.ndarray[tuple[int], np.dtype[np.uint64]],
        crcs: Crcs,
        into: memoryview,
        *,
        wait: bool,
    ) -> bool:
        """Read these blocks, of the grains from ``first`` on, and verify them; False if it would block. Raises
        MediumError."""
        read = self._data.read if wait else self._data.read_now
        for start, piece, block in runs_of_blocks(blocks):
            part = into[start << UNIT_SHIFT : (start + piece) << UNIT_SHIFT]
            try:
                if not block:
                    part[:] = bytes(len(part))
                elif read(block << UNIT_SHIFT, part) != len(part) and not wait:
                    return False
            except OSError as error:
                offset = (first + start) << UNIT_SHIFT
                raise MediumError(f"volume {self._uuid}: read of block {block} failed: {error}", offset) from error
        bad = first_mismatch(into, blocks, crcs)
        if bad is not None:
            offset = (first + bad) << UNIT_SHIFT
            raise MediumError(f"volume {self._uuid}: checksum of block {int(blocks[bad])} does not match", offset)
        return True

    def _absent(self, offset: int, length: int) -> list[int]:
        """Nodes that must be loaded before these bytes can be looked up."""
        if not self._blockmap.absent:
            return []
        first, end = offset >> UNIT_SHIFT, (offset + length + _UNIT_MASK) >> UNIT_SHIFT
        return self._blockmap.absent_nodes(self.map, first, end - first)

    def _load(self, nodes: list[int], offset: int, then: Callable[[], None], done: Done) -> None:
        def loaded(error: StoreError | None) -> None:
            if error is None:
                then()
            else:
                done(self.damaged(MediumError(f"volume {self._uuid}: {error}", offset)))

        self._pool.residency.load(nodes, loaded)

    def _lookup(self, first: int, count: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], Crcs]:
        """Blocks (0: unmapped) and checksums of ``count`` grains."""
        entries, crcs = [], []
        grain, end = first, first + count
        while grain < end:
            leaf = self._blockmap.leaf_of(self.map, grain)
            piece = min(end - grain, LEAF_ENTRIES - (grain & LEAF_MASK))
            at = leaf << LEAF_SHIFT | (grain & LEAF_MASK)
            entries.append(self._entry_array[at : at + piece])
            crcs.append(self._crc_array[at : at + piece])
            grain += piece
        if not entries:
            return np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        if len(entries) == 1:
            return entries[0] & _BLOCK, crcs[0]
        return np.concatenate(entries) & _BLOCK, np.concatenate(crcs)

    # ------------------------------------------------------------------------------------------------ writing

    def write(self, offset: int, data: Buffer, permit: Permit, done: Done, *, sync: bool = False) -> None:
        length = len(data)
        if length == UNIT and not offset & _UNIT_MASK and 0 <= offset < self.map.size and self._takes_writes():
            self._write_grain(offset >> UNIT_SHIFT, data, permit, done, sync or self.write_through)
        elif self._writer.refusal is not None or not self._in_range(offset, length):
            done(self._writer.refusal or self._refusal(offset, length))
        elif (offset | length) & _UNIT_MASK:
            self._write_ragged(offset, memoryview(data), permit, done, sync)
        elif length:
            self._write_grains(offset >> UNIT_SHIFT, memoryview(data), permit, done, sync or self.write_through)
        else:
            done(None)

    def discard(self, offset: int, length: int, permit: Permit, done: Done, *, sync: bool = False) -> None:
        if self._writer.refusal is not None or not self._in_range(offset, length):
            done(self._writer.refusal or self._refusal(offset, length))
            return
        first, end = (offset + _UNIT_MASK) >> UNIT_SHIFT, (offset + length) >> UNIT_SHIFT
        if first > end:  # within one grain
            self.write(offset, bytes(length), permit, done, sync=sync)
            return
        edges = [(offset, (first << UNIT_SHIFT) - offset), (end << UNIT_SHIFT, offset + length - (end << UNIT_SHIFT))]
        edges = [edge for edge in edges if edge[1]]
        part = join_done(len(edges) + 1, done)
        for at, count in edges:
            self.write(at, bytes(count), permit, part, sync=sync)
        self._trim(first, end, permit, part, sync or self.write_through)

    def flush(self, done: Done) -> None:
        self._pool.flush(done)

    def refusal(self, grain: int, count: int) -> StoreError | None:
        """Why these grains cannot be written now, or None."""
        offset, length = grain << UNIT_SHIFT, count << UNIT_SHIFT
        return None if self._in_range(offset, length) else self._refusal(offset, length)

    def damaged(self, error: MediumError) -> MediumError:
        """Count and log it, on the loop thread; the error again."""
        return self._counters.damaged(error, self._pool.runner.now())

    def index_pending(self, grain: int, count: int) -> None:
        """Grains of a member that joined, or stays joined."""
        if count == 1:
            self._pending.add(grain)
        elif count <= BATCH_GRAINS:
            self._pending.update(range(grain, grain + count))
        else:
            self._pending_trims.append(range(grain, grain + count))

    def forget_pending(self) -> None:
        self._pending.clear()
        self._pending_trims.clear()

    def _write_grain(self, grain: int, data: Buffer, permit: Permit, done: Done, sync: bool) -> None:
        crc = crc32c(data)
        self._pending.add(grain)
        if crc == ZERO_CRC and bytes(data) == ZERO_GRAIN:
            self._writer.join((self, grain, 1, None, 0, permit, done, sync))
        else:
            self._writer.join((self, grain, 1, data, crc, permit, done, sync))

    def _write_grains(self, first: int, data: memoryview, permit: Permit, done: Done, sync: bool) -> None:
        crcs = checksums(data)
        pieces = list(pieces_of_write(data, crcs))
        part = done if len(pieces) == 1 else join_done(len(pieces), done)
        for start, length, stored in pieces:
            self.index_pending(first + start, length)
            view = data[start << UNIT_SHIFT : (start + length) << UNIT_SHIFT] if stored else None
            crc = crcs[start : start + length] if stored else 0
            self._writer.join((self, first + start, length, view, crc, permit, part, sync))

    def _write_ragged(
        self, offset: int, data: memoryview, permit: Permit, done: Done, sync: bool, *, wait: bool = False
    ) -> None:
        """Read-modify-write of the grains at the edges. What is joined for them is committed first, so that two
        writes of 512 bytes into one grain in one tick both land."""
        first, end = offset >> UNIT_SHIFT, (offset + len(data) + _UNIT_MASK) >> UNIT_SHIFT
        grains = range(first, end)
        if self._meets_pending(grains) and (not self._writer.cut() or self._meets_pending(grains)):
            again = partial(self.write, offset, data, permit, done, sync=sync)
            self._writer.after_commit(lambda: self._writer.after_waiting(again))
            return
        if self._writer.refusal is not None:
            done(self._writer.refusal)
            return
        missing = self._absent(offset, 1) + self._absent(offset + len(data) - 1, 1)
        if missing:
            self._load(missing, offset, partial(self.write, offset, data, permit, done, sync=sync), done)
            return
        whole = memoryview(bytearray((end - first) << UNIT_SHIFT))
        try:
            ready = self._read_grains(first, whole[:UNIT], wait=wait)
            ready = ready and (end - first == 1 or self._read_grains(end - 1, whole[-UNIT:], wait=wait))
        except StoreError as error:
            done(error)
            return
        if not ready:
            self._warm_edges(first, end, partial(self._write_warmed, offset, data, permit, done, sync), done)
            return
        skip = offset & _UNIT_MASK
        whole[skip : skip + len(data)] = data
        self.write(first << UNIT_SHIFT, whole, permit, done, sync=sync)

    def _write_warmed(self, offset: int, data: memoryview, permit: Permit, done: Done, sync: bool) -> None:
        """Go on after the grains were read in a helper. If the cache lost them again, wait for them in place: else a
        write could go round for ever."""
        refusal = self._writer.refusal
        if refusal is None and not self._in_range(offset, len(data)):
            refusal = self._refusal(offset, len(data))
        if refusal is not None:
            done(refusal)
        else:
            self._write_ragged(offset, data, permit, done, sync, wait=True)

    def _warm_edges(self, first: int, end: int, again: Callable[[], None], done: Done) -> None:
        scratch = memoryview(bytearray(UNIT))
        edges = [self._lookup(first, 1)[0][0], self._lookup(end - 1, 1)[0][0]]
        blocks = [int(block) for block in edges if block]
        data = self._data

        def work() -> None:
            for block in blocks:
                data.read(block << UNIT_SHIFT, scratch)

        def finish(error: BaseException | None) -> None:
            if error is not None:
                done(self.damaged(MediumError(f"volume {self._uuid}: read failed: {error}", first << UNIT_SHIFT)))
            else:
                again()

        self._pool.runner.in_thread(work, finish)

    def _trim(self, first: int, end: int, permit: Permit, done: Done, sync: bool) -> None:
        """Unmap whole grains, a bounded number a tick."""
        refusal = self._writer.refusal or self.refusal(first, end - first)  # stopped, removed, smaller since the last
        if first == end or refusal is not None:
            done(refusal)
            return
        count = min(end - first, _DISCARD_GRAINS)
        soon = self._pool.runner.call_soon

        def go_on(error: StoreError | None) -> None:
            if error is not None or first + count == end:
                done(error)
            else:  # in another tick: else whoever cuts the batch would wait for all of it
                soon(lambda: self._trim(first + count, end, permit, done, sync))

        self.index_pending(first, count)
        self._writer.join((self, first, count, None, 0, permit, go_on, sync and first + count == end))

    # ------------------------------------------------------------------------------------------------ checks

    def _settle(self, grains: range) -> None:
        """Commit what is joined for these grains. Raises Undecided if it is known to nobody whether it happened."""
        if self._meets_pending(grains):
            self._writer.cut()
            if self._writer.undecided and self._meets_pending(grains):
                raise Undecided(f"volume {self._uuid}: the journal append of grains in {grains} failed")

    def _meets_pending(self, grains: range) -> bool:
        if self._pending and not self._pending.isdisjoint(grains):
            return True
        return any(trim.start < grains.stop and grains.start < trim.stop for trim in self._pending_trims)

    def _takes_writes(self) -> bool:
        return self._attached and self._writer.refusal is None

    def _in_range(self, offset: int, length: int) -> bool:
        aligned = not (offset | length) & _SECTOR_MASK
        return aligned and 0 <= offset <= offset + length <= self.map.size and self._attached

    def _check(self, offset: int, length: int) -> None:
        if not self._in_range(offset, length):
            raise self._refusal(offset, length)

    def _refusal(self, offset: int, length: int) -> StoreError:
        if self._attached:
            return self._out_of_range(offset, length)
        closed = self._writer.refusal if self._pool.closing else None
        return closed or NotFound(f"volume {self._uuid} was removed")

    def _out_of_range(self, offset: int, length: int) -> OutOfRange:
        return OutOfRange(f"offset {offset}, length {length}: the volume has {self.map.size} bytes in blocks of 512")


def runs_of_blocks(entries: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> list[tuple[int, int, int]]:
    """(index, count, first block) of pieces whose blocks follow each other; first block 0 for unmapped pieces."""
    count = len(entries)
    if count == 0:
        return []
    expected = np.where(entries[:-1] == 0, np.uint64(0), entries[:-1] + np.uint64(1))
    starts = [0, *(np.flatnonzero(entries[1:] != expected) + 1).tolist()]
    ends = [*starts[1:], count]
    firsts = entries[starts].tolist()
    return [(start, end - start, block) for start, end, block in zip(starts, ends, firsts, strict=True)]


def checksums(data: memoryview) -> Crcs:
    """crc32c of each grain."""
    return np.array([crc32c(data[at : at + UNIT]) for at in range(0, len(data), UNIT)], np.uint32)


def first_mismatch(data: memoryview, entries: np.ndarray[tuple[int], np.dtype[np.uint64]], crcs: Crcs) -> int | None:
    """Index of the first mapped grain in ``data`` whose checksum is not the stored one."""
    at = 0
    for i, (entry, crc) in enumerate(zip(entries.tolist(), crcs.tolist(), strict=True)):
        if entry and crc32c(data[at : at + UNIT]) != crc:
            return i
        at += UNIT
    return None


def pieces_of_write(data: memoryview, crcs: Crcs) -> list[tuple[int, int, bool]]:
    """(index, count, stored) of pieces that are members of their own: zeros are not stored, long data is cut."""
    zeros = crcs == ZERO_CRC
    for i in np.flatnonzero(zeros).tolist():
        zeros[i] = bytes(data[i << UNIT_SHIFT : (i + 1) << UNIT_SHIFT]) == ZERO_GRAIN
    changes = np.flatnonzero(zeros[1:] != zeros[:-1]) + 1
    edges = [0, *changes.tolist(), len(crcs)]
    pieces: list[tuple[int, int, bool]] = []
    for start, end in pairwise(edges):
        step = end - start if zeros[start] else BATCH_GRAINS
        pieces += [(at, min(step, end - at), not zeros[start]) for at in range(start, end, step)]
    return pieces


def join_done(parts: int, done: Done) -> Done:
    """A ``done`` for each of ``parts`` parts; ``done`` itself is called with the first error, after the last one."""
    left = [parts]
    errors: list[StoreError] = []

    def part(error: StoreError | None) -> None:
        if error is not None:
            errors.append(error)
        left[0] -= 1
        if left[0] == 0:
            done(errors[0] if errors else None)

    return part
