"""The scrub: reads every stored block once, from the medium, and proves it against its checksum while the pool serves.

It walks the maps, live volumes first, then snapshots and what is being received; nodes and blocks that were seen under
another map are skipped, so that thousands of snapshots cost one reading of what they share. It changes nothing.
Maps change meanwhile: a block that does not match is looked up again and read again before it counts, because it may
have been freed and reused legally. What is written after its place was passed is left to the next scrub.

Invariant: a finding names a place that still referenced the block, with that checksum, after the second reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from blockstore.api import Closed, InUse
from blockstore.blockmap import PAGE_GRAIN_SHIFT, Map
from blockstore.device import File
from blockstore.diff import Absent, Changes
from blockstore.layout import BLOCK_MASK, LEAF_ENTRIES, LEAF_SHIFT, PAGE_NODE, PRIVATE_BIT, UNIT, UNIT_SHIFT
from blockstore.pool import EnginePool
from blockstore.reading import concatenate, select
from blockstore.staging import arrivals, staged_receives
from blockstore.steps import Steps, in_thread, pause, run
from blockstore.volume import runs_of_blocks

log = logging.getLogger("blockstore.scrub")

_PIECE = 256  # blocks read in one go: 1 MiB
_LEAVES = 64  # looked at in one step: 32 Ki entries, about 0.3 ms
_MOST_ERRORS = 1000  # listed; more are only counted
_SAME_BYTES = np.uint64(~PRIVATE_BIT & (1 << 64) - 1)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Place:
    """A map and what it is to people."""

    group: str
    snapshot: str | None
    """None: the volume as it is now."""
    lun: int
    volume: str
    map: int


@dataclass(frozen=True, slots=True)
class ScrubError:
    """A grain whose stored bytes are wrong or cannot be read."""

    place: Place
    offset: int
    """Bytes, within the volume; the LBA is this by 512."""
    block: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScrubReport:
    blocks: int
    """Read and compared, each once."""
    seconds: float
    errors: tuple[ScrubError, ...]
    error_count: int


class Scrub:
    """One scrub; one at a time in a pool. ``rate``: bytes a second, None: as fast as it goes. ``progress`` is called
    with (bytes read, errors) after each piece; ``close`` always."""

    def __init__(self, pool: EnginePool, *, rate: int | None, progress: Callable[[int, int], None]) -> None:
        """Raises InUse while another one runs."""
        if pool.scrubbing:
            raise InUse("the pool is being scrubbed already")
        pool.scrubbing = True
        self._pool = pool
        self._rate = rate
        self._progress = progress
        self._closed = False
        self._blocks = 0
        self._errors: list[ScrubError] = []
        self._error_count = 0
        self._seen_pages: set[int] = set()
        self._seen_leaves: Bools = np.zeros(pool.blockmap.leaves.capacity, np.bool_)
        self._seen_blocks: Bools = np.zeros(0, np.bool_)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.scrubbing = False

    def scrub(self) -> Future[ScrubReport]:
        """Raises Closed when ended before its end."""
        return run(self._scrub())

    def _scrub(self) -> Steps[ScrubReport]:
        pool = self._pool
        began = pool.runner.now()
        for place in _places(pool):
            one = pool.blockmap.maps.get(place.map)
            if one is None:  # deleted since
                continue
            for some in self._unseen(one):
                if isinstance(some, Absent):
                    yield pool.residency.fetch(some.nodes)
                    continue
                yield pause(pool.runner, self._lateness(began))
                if self._closed or isinstance(pool.writer.refusal, Closed):
                    raise Closed("the scrub was ended")
                for at in range(0, len(some.grains), _PIECE):
                    yield from self._read(place, one, select(some, slice(at, at + _PIECE)))
                    yield pause(pool.runner, self._lateness(began))
        seconds = pool.runner.now() - began
        return ScrubReport(self._blocks, seconds, tuple(self._errors), self._error_count)

    def _lateness(self, began: float) -> float:
        """Seconds to wait so that the rate is kept."""
        if self._rate is None:
            return 0.0
        return max(0.0, began + (self._blocks << UNIT_SHIFT) / self._rate - self._pool.runner.now())

    # ------------------------------------------------------------------------------------------------ what to read

    def _unseen(self, one: Map) -> Iterator[Changes | Absent]:
        """Mapped grains whose blocks have not been read, a bounded number of leaves a step; columns are in the order
        of blocks, so that the medium is read in order."""
        pages, parts, waiting = self._pool.blockmap.pages, [], 0
        for index in range(len(one.root)):
            page = one.root[index] if index < len(one.root) else 0
            if not page or page in self._seen_pages:
                continue
            self._seen_pages.add(page)
            yield from self._absent(PAGE_NODE + page)
            slots = np.flatnonzero(pages.row(page))
            for at in range(0, len(slots), _LEAVES):
                yield from self._absent(PAGE_NODE + page)
                yield from self._absent(*pages.row(page)[slots[at : at + _LEAVES]].tolist())
                parts.append(self._unseen_in(pages.row(page), slots[at : at + _LEAVES], index))
                waiting += len(parts[-1].grains)
                if waiting >= _PIECE or len(parts) >= _LEAVES:
                    yield concatenate(parts)
                    parts, waiting = [], 0
                else:
                    yield select(parts[-1], slice(0, 0))
        if parts:
            yield concatenate(parts)

    def _absent(self, *nodes: int) -> Iterator[Absent]:
        """Ask for those of ``nodes`` that are not in memory, until they are."""
        blockmap = self._pool.blockmap
        while blockmap.absent and (absent := [node for node in nodes if blockmap.is_absent(node)]):
            yield Absent(absent)

    def _unseen_in(self, row: npt.NDArray[np.uint32], slots: npt.NDArray[np.int64], page: int) -> Changes:
        leaves = self._pool.blockmap.leaves
        slots = slots[~self._seen_leaves[row[slots]]]
        ids = row[slots].astype(np.int64)
        self._seen_leaves[ids] = True
        entries = leaves.entry_array.reshape(-1, LEAF_ENTRIES)[ids].ravel()
        where = np.flatnonzero(entries)
        blocks = (entries[where] & np.uint64(BLOCK_MASK)).astype(np.int64)
        self._make_room(int(blocks.max(initial=0)))
        fresh = ~self._seen_blocks[blocks]
        where, blocks = where[fresh], blocks[fresh]
        self._seen_blocks[blocks] = True
        order = np.argsort(blocks, kind="stable")
        where = where[order]
        leaf, inside = where >> LEAF_SHIFT, where & (LEAF_ENTRIES - 1)
        grains = (page << PAGE_GRAIN_SHIFT) + (slots[leaf] << LEAF_SHIFT) + inside
        return Changes(grains, entries[where], leaves.crc_array[ids[leaf] << LEAF_SHIFT | inside])

    def _make_room(self, block: int) -> None:
        """The data file grew."""
        if block >= len(self._seen_blocks):
            grown = np.zeros(max(block + 1, self._pool.data.size() >> UNIT_SHIFT), np.bool_)
            grown[: len(self._seen_blocks)] = self._seen_blocks
            self._seen_blocks = grown

    # ------------------------------------------------------------------------------------------------ reading

    def _read(self, place: Place, one: Map, some: Changes) -> Steps[None]:
        pool = self._pool
        bad: dict[int, str] = yield in_thread(pool.runner, lambda: _mismatches(pool.data, some))
        for index in bad:
            yield from self._confirm(place, one, select(some, slice(index, index + 1)))
        self._blocks += len(some.grains)
        pool.counters.scrubbed_bytes += len(some.grains) << UNIT_SHIFT
        self._progress(self._blocks << UNIT_SHIFT, self._error_count)

    def _confirm(self, place: Place, one: Map, grain: Changes) -> Steps[None]:
        """Still referenced there? Then read it again, and if it is still referenced after that, it is damaged."""
        if not (yield from self._still_there(one, grain)):
            return
        pool = self._pool
        bad: dict[int, str] = yield in_thread(pool.runner, lambda: _mismatches(pool.data, grain))
        if not bad or not (yield from self._still_there(one, grain)):
            return
        error = ScrubError(place, int(grain.grains[0]) << UNIT_SHIFT, int(grain.blocks[0]), bad[0])
        self._error_count += 1
        pool.counters.scrub_errors += 1
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(error)
        log.error("scrub: %s", describe(error))

    def _still_there(self, one: Map, grain: Changes) -> Steps[bool]:
        blockmap, number = self._pool.blockmap, int(grain.grains[0])
        while blockmap.maps.get(one.number) is one and number << UNIT_SHIFT < one.size:
            if not (absent := blockmap.absent_nodes(one, number, 1)):
                expected = int(grain.entries[0]) & int(_SAME_BYTES), int(grain.crcs[0])
                return blockmap.entry(one, number) == expected
            yield self._pool.residency.fetch(absent)
        return False


def describe(error: ScrubError) -> str:
    """One line for log and report."""
    place = error.place
    where = f"group {place.group}" + (f"@{place.snapshot}" if place.snapshot is not None else "")
    return f"{where}, LUN {place.lun} ({place.volume}), LBA {error.offset >> 9}: block {error.block} {error.reason}"


def _mismatches(data: File, some: Changes) -> dict[int, str]:
    """Index and reason of each grain whose stored bytes are not what they were."""
    found: dict[int, str] = {}
    crcs = some.crcs.tolist()
    for start, count, block in runs_of_blocks(some.blocks):
        try:
            stored = memoryview(data.read_stored(block << UNIT_SHIFT, count << UNIT_SHIFT))
        except OSError as error:
            found |= _each_alone(data, some, start, count, error)
            continue
        for i in range(count):
            if crc32c(stored[i * UNIT : (i + 1) * UNIT]) != crcs[start + i]:
                found[start + i] = "does not match its checksum"
    return found


def _each_alone(data: File, some: Changes, start: int, count: int, error: OSError) -> dict[int, str]:
    """A run that cannot be read whole is read block by block, so that only what is lost counts as lost."""
    if count == 1:
        return {start: f"cannot be read: {error}"}
    parts = [_mismatches(data, select(some, slice(i, i + 1))) for i in range(start, start + count)]
    return {start + i: reasons[0] for i, reasons in enumerate(parts) if reasons}


def _places(pool: EnginePool) -> list[Place]:
    """Every map there is now: live volumes, snapshots from old to new, what is being received."""
    catalog = pool.catalog
    groups = sorted(catalog.groups.values(), key=lambda each: each.record.name)
    places = [Place(e.record.name, None, v.lun, v.name, e.maps[v.lun]) for e in groups for v in e.record.volumes]
    named = [(each.record.uuid, each.record.name) for each in groups]
    named += [(arrival.group, arrival.name) for arrival in arrivals(catalog)]
    for uuid, group in named:
        snapshots = catalog.snapshots.get(uuid, {}).values()
        for snapshot in sorted(snapshots, key=lambda each: each.record.created):
            name = snapshot.record.name
            places += (Place(group, name, v.lun, v.name, snapshot.maps[v.lun]) for v in snapshot.record.volumes)
    for staged in staged_receives(catalog):
        names = {volume.lun: volume.name for volume in staged.head.volumes}
        places += (Place(staged.name, staged.head.to.name, lun, names[lun], n) for lun, n in staged.maps.items())
    return places
