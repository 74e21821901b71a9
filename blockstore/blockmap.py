"""The block maps: for every volume and snapshot, which block holds each grain, and its checksum.

A map's root lists pages of 4,096 leaf ids; a leaf holds 512 entries and checksums. Leaves and pages lie in two arenas
of plain typed memory, so that a look-up is three index operations and no object exists per block. Maps share nodes by
copy-on-write. This module knows neither files nor journals; ``checkpoint`` saves what is dirty, the sweep frees nodes.

Invariants: a node is changed in place only if ``born >= map.generation``, for ever; node 0 of both kinds is empty and
never changed; an image begun by ``switch`` gets each node's bytes as they were at the switch; an entry with the private
bit, in a leaf that may be changed in place, is the only one of the pool that names its block; the row of an absent node
reads as zeros, so what is not zero is always true, and a zero is believed only of nodes that are there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from blockstore.layout import (
    BLOCK_MASK,
    LEAF_BYTES,
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PAGE_BYTES,
    PAGE_ENTRIES,
    PAGE_NODE,
    PAGE_SHIFT,
    PRIVATE_BIT,
    UNIT_SHIFT,
)
from blockstore.nodes import (
    ABSENT,
    CLEAN,
    DIRTY,
    FREE,
    RETIRED,
    SAVED,
    TO_SAVE,
    Ids,
    Leaves,
    Nodes,
    Pages,
)
from blockstore.records import (
    CloneMap,
    Crcs,
    CreateMap,
    DeleteMap,
    MapEdit,
    ResizeMap,
    RollbackMap,
    SnapMap,
    Trim,
    Write,
)

LEAF_MASK = LEAF_ENTRIES - 1
PAGE_MASK = PAGE_ENTRIES - 1
PAGE_GRAIN_SHIFT = LEAF_SHIFT + PAGE_SHIFT  # grains to pages

_RAMP = np.arange(LEAF_ENTRIES, dtype=np.uint64)
Marks = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Map:
    """One volume's, or one frozen, map. Mutable; owned by BlockMap."""

    number: int
    size: int
    generation: int
    """Nodes born before it are shared with another map, or may be."""
    root: array[int] = field(default_factory=lambda: array("I"))
    """Page ids; 0: nothing mapped in these 8 GiB."""
    mapped: int = 0
    """Grains that are mapped."""


def pages_for(size: int) -> int:
    """Root entries of a map of ``size`` bytes."""
    return -(-size >> (UNIT_SHIFT + PAGE_GRAIN_SHIFT))  # rounded up


class BlockMap:
    """All maps of a pool, their nodes, and the generation. ``capacity``: leaves that may exist at once;
    ``private_frees``: whether a block is freed as soon as the only entry that names it is replaced. Without, the sweep
    finds all that is free."""

    def __init__(self, capacity: int, *, private_frees: bool = True) -> None:
        self.leaves = Leaves(capacity)
        self.pages = Pages(capacity // 16)
        self._spare = capacity // 256
        self.gone: list[int] = []  # ids of retired nodes that the next image must delete
        self.maps: dict[int, Map] = {}
        self.generation = 1
        self.next_map = 1
        self.dropped = 0  # entries replaced or trimmed that only a sweep can judge: what it may bring back, at most
        self.lost = 0  # leaves that were trimmed away as a whole: their ids and rows are what a sweep brings back
        self.freed = array("Q")  # blocks that lost their only reference since ``take_freed``
        self._private = PRIVATE_BIT if private_frees else 0
        self.dirty_maps: set[int] = set()
        self.deleted_maps: list[int] = []
        self.copy_aside: Callable[[int, int, bytes], None] = _no_image
        """(node id, born, body): a node of the image being made is about to change or go."""

    # ------------------------------------------------------------------------------------------------ look-up

    def leaf_of(self, of: Map, grain: int) -> int:
        page = of.root[grain >> PAGE_GRAIN_SHIFT]
        return self.pages.ids[page << PAGE_SHIFT | (grain >> LEAF_SHIFT & PAGE_MASK)]

    def entry(self, of: Map, grain: int) -> tuple[int, int]:
        """(entry without the private bit, crc32c) of a grain: what its stored bytes are."""
        at = self.leaf_of(of, grain) << LEAF_SHIFT | (grain & LEAF_MASK)
        return self.leaves.entries[at] & ~PRIVATE_BIT, self.leaves.crcs[at]

    @property
    def absent(self) -> int:
        """Nodes that are not in memory. While it is 0, nobody need ask for ``absent_nodes``."""
        return self.leaves.absent + self.pages.absent

    @property
    def held_bytes(self) -> int:
        """Memory of all rows."""
        return self.leaves.held * LEAF_BYTES + self.pages.held * PAGE_BYTES

    @property
    def dirty_bytes(self) -> int:
        """Memory of rows that the next image must save before they can be evicted."""
        return len(self.leaves.dirty) * LEAF_BYTES + len(self.pages.dirty) * PAGE_BYTES

    def absent_nodes(self, of: Map, grain: int, count: int) -> list[int]:
        """Stored ids of nodes that must be there before these grains are looked up or changed. Where a page is
        absent, its leaves are not known yet: ask again when it is there."""
        leaves, pages = self.leaves.state, self.pages.state
        found: dict[int, None] = {}
        for index in range(grain >> LEAF_SHIFT, (grain + count + LEAF_MASK) >> LEAF_SHIFT):
            page = of.root[index >> PAGE_SHIFT]
            if pages[page] == ABSENT:
                found[PAGE_NODE + page] = None
                continue
            leaf = self.pages.ids[page << PAGE_SHIFT | (index & PAGE_MASK)]
            if leaves[leaf] == ABSENT:
                found[leaf] = None
        return list(found)

    def nodes_under(self, of: Map, grain: int, count: int) -> Iterator[int]:
        """Stored ids of the nodes of these grains, as far as they are known; the map may have become smaller."""
        end = min((grain + count + LEAF_MASK) >> LEAF_SHIFT, len(of.root) << PAGE_SHIFT)
        for index in range(grain >> LEAF_SHIFT, end):
            page = of.root[index >> PAGE_SHIFT]
            yield PAGE_NODE + page
            yield self.pages.ids[page << PAGE_SHIFT | (index & PAGE_MASK)]

    def kind_of(self, stored: int) -> tuple[Leaves | Pages, int]:
        """The nodes and the id among them of an id in ``meta.db``."""
        return (self.pages, stored - PAGE_NODE) if stored >= PAGE_NODE else (self.leaves, stored)

    def is_absent(self, stored: int) -> bool:
        nodes, node = self.kind_of(stored)
        return nodes.state[node] == ABSENT

    def take_in(self, stored: int, born: int, body: memoryview) -> bool:
        """A row as ``meta.db`` has it. It is of use only if the node is still absent: it may have been retired
        meanwhile, and its id reused. False: a page that names leaves which do not exist, and stays absent, because
        they would read as zeros."""
        nodes, node = self.kind_of(stored)
        if nodes.state[node] == ABSENT and nodes.born[node] == born:
            if nodes is self.pages and not _in_use(self.leaves, np.frombuffer(body, np.uint32)).all():
                return False
            nodes.fill(node, body)
        return True

    # ------------------------------------------------------------------------------------------------ changes

    def can_take(self, leaves: int, pages: int, *, healing: bool) -> bool:
        """Whether so many nodes can be made. The last ones are for batches that only trim: they heal a full map."""
        spare = 0 if healing else self._spare
        return self.leaves.available >= leaves + spare and self.pages.available >= pages + spare

    def write_one(self, to: Map, grain: int, entry: int, crc: int) -> None:
        """Map one grain. Fast path: bench/store.py; ``write`` does the same for any run, and a test says so."""
        leaf = self.leaf_of(to, grain)
        leaves = self.leaves
        if leaves.born[leaf] < to.generation or leaves.state[leaf] != DIRTY:
            leaf = self._writable_leaf(to, grain)
        at = leaf << LEAF_SHIFT | (grain & LEAF_MASK)
        old = leaves.entries[at]  # after the copy-on-write, which makes every entry a shared one
        if old & self._private:
            self.freed.append(old & BLOCK_MASK)
        elif old:
            self.dropped += 1
        else:
            to.mapped += 1
            self.dirty_maps.add(to.number)
        leaves.entries[at] = entry | self._private
        leaves.crcs[at] = crc

    def write(self, to: Map, grain: int, entry: int, crcs: Crcs) -> None:
        """Map consecutive grains to consecutive blocks."""
        done, count = 0, len(crcs)
        while done < count:
            leaf = self._writable_leaf(to, grain + done)
            first = (grain + done) & LEAF_MASK
            piece = min(count - done, LEAF_ENTRIES - first)
            at = leaf << LEAF_SHIFT | first
            entries = self.leaves.entry_array[at : at + piece]
            self._replace(to, entries, gained=piece)
            np.add(_RAMP[:piece], np.uint64(entry + done | self._private), out=entries)
            self.leaves.crc_array[at : at + piece] = crcs[done : done + piece]
            done += piece

    def trim(self, to: Map, grain: int, count: int) -> None:
        """Unmap grains. Whole leaves go by zeroing their parent's entry; the sweep finds them."""
        end = grain + count
        while grain < end:
            leaf = self.leaf_of(to, grain)
            piece = min(end - grain, LEAF_ENTRIES - (grain & LEAF_MASK))
            if leaf == 0:
                grain = self._skip_unmapped(to, grain, end)
                continue
            if piece == LEAF_ENTRIES:
                at = leaf << LEAF_SHIFT
                own = self.leaves.born[leaf] >= to.generation  # a frozen leaf may live on under another map
                self._replace(to, self.leaves.entry_array[at : at + piece], gained=0, own=own)
                self.lost += own
                page = self._writable_page(to, grain >> PAGE_GRAIN_SHIFT)
                self.pages.ids[page << PAGE_SHIFT | (grain >> LEAF_SHIFT & PAGE_MASK)] = 0
            else:
                self._trim_in_leaf(to, grain, piece)
            grain += piece

    def apply(self, record: MapEdit | Write | Trim) -> None:
        """Carry out a record of a committed batch, in journal order; replay does exactly the same."""
        match record:
            case Write(number, grain, entry, crcs):
                if len(crcs) == 1:  # most of a journal of random writes
                    self.write_one(self.maps[number], grain, entry, int(crcs[0]))
                else:
                    self.write(self.maps[number], grain, entry, crcs)
            case Trim(number, grain, count):
                self.trim(self.maps[number], grain, count)
            case CreateMap(number, size):
                self._add(Map(number, size, self.generation, array("I", bytes(4 * pages_for(size)))))
            case SnapMap(number, source) | CloneMap(number, source):
                self._share(number, self.maps[source])
            case RollbackMap(number, source):
                self._roll_back(self.maps[number], self.maps[source])
            case ResizeMap(number, size):
                self._resize(self.maps[number], size)
            case DeleteMap(number):
                self.dropped += self.maps.pop(number).mapped
                self.dirty_maps.discard(number)
                self.deleted_maps.append(number)

    def _add(self, new: Map) -> None:
        self.maps[new.number] = new
        self.next_map = max(self.next_map, new.number + 1)
        self.dirty_maps.add(new.number)

    def _share(self, number: int, source: Map) -> None:
        self.generation += 1
        source.generation = self.generation
        self._add(Map(number, source.size, self.generation, source.root[:], source.mapped))
        self.dirty_maps.add(source.number)

    def _roll_back(self, to: Map, source: Map) -> None:
        self.generation += 1
        self.dropped += to.mapped
        to.root, to.size, to.mapped = source.root[:], source.size, source.mapped
        to.generation = source.generation = self.generation
        self.dirty_maps.update((to.number, source.number))

    def _resize(self, to: Map, size: int) -> None:
        to.root.extend([0] * (pages_for(size) - len(to.root)))
        to.size = size
        self.dirty_maps.add(to.number)

    def _replace(self, to: Map, entries: npt.NDArray[np.uint64], *, gained: int, own: bool = True) -> None:
        """These entries of a leaf are about to go. ``own``: nobody but ``to`` has the leaf."""
        replaced = int(np.count_nonzero(entries))
        if own and replaced:
            private = entries[entries & np.uint64(self._private) != 0]
            self.freed.frombytes((private & np.uint64(BLOCK_MASK)).tobytes())
            self.dropped -= len(private)
        self.dropped += replaced
        if gained != replaced:
            to.mapped += gained - replaced
            self.dirty_maps.add(to.number)

    def take_freed(self) -> npt.NDArray[np.uint64]:
        """Blocks that lost their only reference since the last call."""
        freed, self.freed = self.freed, array("Q")
        return np.frombuffer(freed, np.uint64)

    def _trim_in_leaf(self, to: Map, grain: int, count: int) -> None:
        at = self.leaf_of(to, grain) << LEAF_SHIFT | (grain & LEAF_MASK)
        if not self.leaves.entry_array[at : at + count].any():
            return
        at = self._writable_leaf(to, grain) << LEAF_SHIFT | (grain & LEAF_MASK)
        entries = self.leaves.entry_array[at : at + count]
        self._replace(to, entries, gained=0)
        entries[:] = 0
        self.leaves.crc_array[at : at + count] = 0

    def _skip_unmapped(self, of: Map, grain: int, end: int) -> int:
        """The first grain behind the unmapped leaf, or page, that holds ``grain``."""
        shift = PAGE_GRAIN_SHIFT if of.root[grain >> PAGE_GRAIN_SHIFT] == 0 else LEAF_SHIFT
        return min(end, ((grain >> shift) + 1) << shift)

    # ------------------------------------------------------------------------------------------------ copy-on-write

    def _writable_leaf(self, to: Map, grain: int) -> int:
        """The id of a leaf for ``grain`` that may be changed in place now."""
        leaves, leaf = self.leaves, self.leaf_of(to, grain)
        if leaves.born[leaf] >= to.generation:
            self._touch(leaves, leaf, 0)
            return leaf
        page = self._writable_page(to, grain >> PAGE_GRAIN_SHIFT)
        new = leaves.take(self.generation)
        leaves.copy(leaf, new)
        self.pages.ids[page << PAGE_SHIFT | (grain >> LEAF_SHIFT & PAGE_MASK)] = new
        return new

    def _writable_page(self, to: Map, index: int) -> int:
        pages, page = self.pages, to.root[index]
        if pages.born[page] >= to.generation:
            self._touch(pages, page, PAGE_NODE)
            return page
        new = pages.take(self.generation)
        pages.copy(page, new)
        to.root[index] = new
        self.dirty_maps.add(to.number)
        return new

    def _touch(self, nodes: Leaves | Pages, node: int, base: int) -> None:
        """``node`` is about to change in place: the image being made must have its old bytes."""
        state = nodes.state[node]
        if state == DIRTY:
            return
        assert state != ABSENT, f"{nodes.what} {node} is changed, but not there"
        if state == TO_SAVE:
            self.copy_aside(base + node, nodes.born[node], nodes.blob(node))
        nodes.state[node] = DIRTY
        nodes.used[node] = 1
        nodes.dirty.append(node)

    def retire(self, stored: int) -> None:
        """Nothing references this node any more, given by its id in ``meta.db``; the id waits for ``recycle``."""
        nodes, node = self.kind_of(stored)
        if nodes.state[node] == TO_SAVE:
            self.copy_aside(stored, nodes.born[node], nodes.blob(node))
        elif nodes.state[node] == ABSENT:
            nodes.absent -= 1
        nodes.state[node] = RETIRED
        self.gone.append(stored)

    def recycle(self, gone: list[int]) -> None:
        """No image names these retired nodes any more."""
        ids = np.array(gone, np.int64)
        for nodes, own in ((self.leaves, ids[ids < PAGE_NODE]), (self.pages, ids[ids >= PAGE_NODE] - PAGE_NODE)):
            nodes.states[own] = FREE
            nodes.free_ids += own.tolist()

    # ------------------------------------------------------------------------------------------------ the image

    def switch(self, nodes: Nodes) -> npt.NDArray[np.uint32]:
        """Begin an image: the ids that it must save. Until saved, a change copies the node aside first."""
        ids: npt.NDArray[np.uint32] = np.array(nodes.dirty, np.uint32)
        ids = ids[nodes.states[ids] == DIRTY]
        nodes.states[ids] = TO_SAVE
        nodes.dirty = array("I")
        return ids

    def committed(self, nodes: Nodes, ids: npt.NDArray[np.uint32]) -> None:
        """The image that holds these is the last one now."""
        nodes.states[ids[nodes.states[ids] == SAVED]] = CLEAN

    def forget_dirty(self) -> None:
        """Everything was saved at once (recovery)."""
        for nodes in (self.leaves, self.pages):
            for node in nodes.dirty:
                nodes.state[node] = CLEAN
            nodes.dirty = array("I")
        self.dirty_maps, self.deleted_maps = set(), []

    def missing_pages(self) -> Iterator[str]:
        """Roots that name pages which do not exist. They would read as zeros, so nobody may."""
        for one in self.maps.values():
            root = np.asarray(one.root, np.int64)
            there = _in_use(self.pages, root)
            if not there.all():
                yield f"map {one.number}: root names page {root[~there][0]}, which is not there"

    def missing_leaves(self, page: int) -> Iterator[str]:
        """A page in memory that names leaves which do not exist."""
        ids = self.pages.row(page)
        if not _in_use(self.leaves, ids).all():
            yield f"page {page} names a leaf that is not there"

    def missing_nodes(self) -> Iterator[str]:
        """Both, when all pages are in memory."""
        yield from self.missing_pages()
        seen = np.zeros(self.pages.top, np.bool_)  # snapshots share most pages: each is looked into once
        for one in self.maps.values():
            seen[[page for page in one.root if page < len(seen)]] = True
        for page in np.flatnonzero(seen).tolist():
            yield from self.missing_leaves(page)

    def reachable(self) -> tuple[Ids, Ids]:
        """(page ids, leaf ids) that some map references."""
        seen_pages = np.zeros(self.pages.top, np.bool_)
        for one in self.maps.values():
            root = np.frombuffer(one.root, np.uint32)
            seen_pages[root[root != 0]] = True  # most of a large volume's root is zero: 15 us for 256 TiB
        page_ids = np.flatnonzero(seen_pages)
        seen = np.zeros(self.leaves.top, np.bool_)
        for page in page_ids.tolist():
            seen[self.pages.row(page)] = True
        seen[0] = False
        return page_ids, np.flatnonzero(seen)


def _in_use(nodes: Nodes, ids: npt.NDArray[np.int64] | npt.NDArray[np.uint32]) -> Marks:
    """Which of ``ids`` are nodes that exist; node 0 always does."""
    there: Marks = (ids < nodes.capacity) & (nodes.states[np.minimum(ids, nodes.capacity - 1)] != FREE)
    return there


def _no_image(node: int, born: int, body: bytes) -> None:
    raise AssertionError(f"node {node} is to be saved, but no image is being made")
