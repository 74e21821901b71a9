"""What differs between two maps: roots are compared first, then pages, then leaves; equal ids skip whole subtrees.

Everything that walks grains in order stands on it: ``send`` (against the base, or against nothing), the fingerprint,
``snapshot diff``. It reads maps and no data. Two entries are equal when they name the same stored bytes, so a grain
that was overwritten with the same content counts as changed: never less is reported than is different.

Invariants: what one step of ``changes`` yields was true of both maps at one moment, and grains come in rising order;
a step that finds nodes absent says so and is done again when they are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockstore.api import NotFound, VolumeRecord
from blockstore.blockmap import PAGE_GRAIN_SHIFT, BlockMap, Map
from blockstore.hold import Hold
from blockstore.layout import BLOCK_MASK, LEAF_ENTRIES, LEAF_SHIFT, PAGE_NODE, PRIVATE_BIT, UNIT_SHIFT
from blockstore.nodes import ABSENT
from blockstore.pool import EnginePool
from blockstore.records import Crcs
from blockstore.steps import Steps, pause, run

Grains = npt.NDArray[np.int64]
Entries = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_LEAVES = 128  # compared in one step: 2 x 512 KiB gathered, about 0.3 ms (measured: larger falls out of the cache)
_STEPS_PER_SLICE = 8  # then the loop gets its turn: about 2.5 ms
_SAME_BYTES = np.uint64(~PRIVATE_BIT & (1 << 64) - 1)  # who owns a block says nothing about what is in it


@dataclass(frozen=True, slots=True)
class Changes:
    """Grains that differ, and what the newer map has there (entry 0: nothing, it reads as zeros)."""

    grains: Grains
    entries: Entries
    crcs: Crcs

    @property
    def blocks(self) -> Entries:
        return self.entries & np.uint64(BLOCK_MASK)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Runs of grains in the same state, in bytes, as columns of one length."""

    offsets: Grains
    lengths: Grains
    zero: Bools
    """Whether the run reads as zeros now (else it holds other data)."""

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, which: slice) -> Ranges:
        return Ranges(self.offsets[which], self.lengths[which], self.zero[which])


@dataclass(frozen=True, slots=True)
class Absent:
    """These nodes, by their stored ids, must be loaded before the iterator goes on."""

    nodes: list[int]


def changes(blockmap: BlockMap, old: Map | None, new: Map) -> Iterator[Changes | Absent]:
    """Where ``new`` differs from ``old`` (None: from nothing). Each step looks at a bounded number of leaves and
    yields what it found, which may be nothing, so that whoever iterates can let the loop go between two steps."""
    end = new.size >> UNIT_SHIFT
    maps = [new] if old is None else [new, old]
    for index in _pages_that_differ(old, new):
        while nodes := _absent_pages(blockmap, maps, index):
            yield Absent(nodes)
        slots = _leaves_that_differ(blockmap, old, new, index)
        for at in range(0, len(slots), _LEAVES):
            some = slots[at : at + _LEAVES]
            while nodes := _absent_pages(blockmap, maps, index) or _absent_leaves(blockmap, maps, index, some):
                yield Absent(nodes)
            yield _compare(blockmap, old, new, index, some, end)


def _absent_pages(blockmap: BlockMap, maps: list[Map], page: int) -> list[int]:
    if not blockmap.absent:
        return []
    pages = {PAGE_NODE + one.root[page] for one in maps if page < len(one.root)}
    return [stored for stored in sorted(pages) if blockmap.is_absent(stored)]


def _absent_leaves(blockmap: BlockMap, maps: list[Map], page: int, slots: Grains) -> list[int]:
    if not blockmap.leaves.absent:
        return []
    ids = np.unique(np.concatenate([_leaf_ids(blockmap, one, page)[slots] for one in maps]))
    absent: list[int] = ids[blockmap.leaves.states[ids] == ABSENT].tolist()
    return absent


def _pages_that_differ(old: Map | None, new: Map) -> list[int]:
    ours = np.array(new.root, np.uint32)
    theirs = np.zeros(len(ours), np.uint32)
    if old is not None:
        shared = min(len(ours), len(old.root))
        theirs[:shared] = old.root[:shared]
    return np.flatnonzero(ours != theirs).tolist()


def _leaf_ids(blockmap: BlockMap, one: Map | None, page: int) -> npt.NDArray[np.uint32]:
    """Of page ``page`` of a map; page 0, which is empty, stands for what is not there."""
    return blockmap.pages.row(one.root[page] if one is not None and page < len(one.root) else 0)


def _leaves_that_differ(blockmap: BlockMap, old: Map | None, new: Map, page: int) -> Grains:
    return np.flatnonzero(_leaf_ids(blockmap, new, page) != _leaf_ids(blockmap, old, page))


def _compare(blockmap: BlockMap, old: Map | None, new: Map, page: int, slots: Grains, end: int) -> Changes:
    """The ids are looked up here again: a map that is being written may have got other nodes since the last step."""
    leaves = blockmap.leaves
    ids = _leaf_ids(blockmap, new, page)[slots].astype(np.int64)
    rows = leaves.entry_array.reshape(-1, LEAF_ENTRIES)
    ours, theirs = rows[ids].ravel(), rows[_leaf_ids(blockmap, old, page)[slots]].ravel()
    where = np.flatnonzero(ours != theirs)
    entries = ours[where]
    really = ((entries ^ theirs[where]) & _SAME_BYTES) != 0
    leaf, inside = where >> LEAF_SHIFT, where & (LEAF_ENTRIES - 1)
    grains = (page << PAGE_GRAIN_SHIFT) + (slots[leaf] << LEAF_SHIFT) + inside
    really &= grains < end
    crcs = leaves.crc_array[ids[leaf] << LEAF_SHIFT | inside]
    return Changes(grains[really], entries[really], crcs[really])


def ranges_of(grains: Grains, zero: Bools) -> Ranges:
    """Neighbours joined."""
    breaks = (np.diff(grains) != 1) | (zero[1:] != zero[:-1])
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1)) if len(grains) else np.zeros(0, np.int64)
    lengths = np.diff(np.concatenate((starts, [len(grains)])))
    return Ranges(grains[starts] << UNIT_SHIFT, lengths << UNIT_SHIFT, zero[starts])


class SnapshotDiff:
    """What ``new`` (None: the group as it is now) has that ``old`` has not, volume by volume.

    Volumes are the same if they have the same LUN, since LUN numbers are never used twice. A group that is written
    meanwhile is compared piece by piece, each as it was when its turn came.
    """

    def __init__(self, pool: EnginePool, group: str, old: str, new: str | None) -> None:
        """Holds both snapshots until ``close``. Raises NotFound."""
        self._pool = pool
        self._holds = [Hold(pool.catalog, group, old)]
        if new is not None:
            try:
                self._holds.append(Hold(pool.catalog, group, new))
            except NotFound:
                self.close()
                raise
        else:
            pool.writer.cut()
        newest = self._holds[-1].snapshot if new is not None else pool.catalog.groups[group]
        self._old, self._new = self._holds[0].snapshot, newest
        self._group = group
        self.volumes: tuple[VolumeRecord, ...] = tuple(sorted(newest.record.volumes, key=lambda each: each.lun))
        there = {volume.lun for volume in self.volumes}
        self.removed = tuple(volume for volume in self._old.record.volumes if volume.lun not in there)

    def close(self) -> None:
        for hold in self._holds:
            hold.release()

    def ranges(self, lun: int) -> Iterator[Ranges | Absent]:
        """Of one volume; one bounded step each, neighbours of two steps are not joined. Raises NotFound when the
        volume is removed meanwhile."""
        maps = self._pool.blockmap.maps
        old = self._old.maps.get(lun)
        number = self._new.maps[lun]
        if number not in maps:
            raise NotFound(f"LUN {lun} of group {self._group} was removed")
        for step in changes(self._pool.blockmap, None if old is None else maps[old], maps[number]):
            yield step if isinstance(step, Absent) else ranges_of(step.grains, step.entries == 0)

    def load(self, absent: Absent) -> Future[None]:
        """What a step of ``ranges`` asks for."""
        return self._pool.residency.fetch(absent.nodes)

    def all_ranges(self, lun: int) -> Future[Ranges]:
        """Of one volume at once, neighbours joined; 17 bytes a range. The loop gets its turn every few steps."""
        return run(self._collect(lun))

    def _collect(self, lun: int) -> Steps[Ranges]:
        found: list[Ranges] = []
        for number, step in enumerate(self.ranges(lun), 1):
            if isinstance(step, Absent):
                yield self.load(step)
            else:
                found.append(step)
            if number % _STEPS_PER_SLICE == 0:
                yield pause(self._pool.runner)
        return join(found)


def join(pieces: list[Ranges]) -> Ranges:
    """Consecutive pieces as one, the last range of a piece joined with the first of the next where they touch."""
    offsets = np.concatenate([np.zeros(0, np.int64), *(piece.offsets for piece in pieces)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(piece.lengths for piece in pieces)])
    zero = np.concatenate([np.zeros(0, np.bool_), *(piece.zero for piece in pieces)])
    if not len(offsets):
        return Ranges(offsets, lengths, zero)
    starts = np.concatenate(([True], (offsets[1:] != offsets[:-1] + lengths[:-1]) | (zero[1:] != zero[:-1])))
    first = np.flatnonzero(starts)
    return Ranges(offsets[first], np.add.reduceat(lengths, first), zero[first])
