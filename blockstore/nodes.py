"""The nodes of the block maps: leaves and pages, each kind in an arena of plain typed memory.

A node's id is its place in the arena, so a look-up needs no object and no indirection. Arenas are address space that
the kernel backs page by page as rows are touched, and takes back row by row. Which map names which node is
``blockmap``'s; when a row is given up is ``residency``'s. Invariants: node 0 of both kinds is empty and never changed;
the row of an absent or evicted node reads as zeros.
"""

from __future__ import annotations

import mmap
from array import array
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from blockstore.api import OutOfSpace
from blockstore.layout import (
    LEAF_BYTES,
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PAGE_BYTES,
    PAGE_ENTRIES,
    PAGE_NODE,
    PAGE_SHIFT,
    PRIVATE_BIT,
)

FREE, CLEAN, DIRTY, TO_SAVE, SAVED, RETIRED, ABSENT = range(7)
"""A node's state: unused; as the last image has it; changed since; changed before the switch and not yet copied into
the image being made; copied into it, and that not yet committed; unreferenced, its id not yet reusable; as the last
image has it, and in memory no more."""

_MAP_NORESERVE = 0x4000  # Linux: reserve addresses, not memory; CPython names it from 3.13 on only
_SHARED = np.uint64(~PRIVATE_BIT & (1 << 64) - 1)  # what a copied leaf keeps of its entries
Ids = npt.NDArray[np.int64]


def _reserve(length: int) -> mmap.mmap:
    """Zeroed memory that the kernel supplies page by page as it is touched, so arenas never move or copy."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with suppress(OSError):  # a kernel without huge pages knows no such advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # or a huge page would stay as long as one of its rows is there
    return memory


class Nodes:
    """Ids, ages, states and memory of the nodes of one kind. Rows of content belong to the subclasses."""

    what = "node"
    row_bytes = 0
    first_stored = 0
    """Of these nodes' ids in ``meta.db``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.top = 1  # ids from here on were never used
        self.free_ids: list[int] = []
        self.born = memoryview(_reserve(capacity * 8)).cast("Q")
        self.state = memoryview(_reserve(capacity))
        self.used = memoryview(_reserve(capacity))  # 1: looked at since the clock of ``residency`` passed
        self.states = np.frombuffer(self.state, np.uint8)
        self._in_memory = np.frombuffer(_reserve(capacity), np.bool_)
        self.held = 0  # rows that have memory
        self.absent = 0
        self.dirty = array("I")
        self.state[0] = CLEAN

    @property
    def available(self) -> int:
        return self.capacity - self.top + len(self.free_ids)

    @property
    def in_use(self) -> int:
        return self.top - 1 - len(self.free_ids)

    def take(self, generation: int) -> int:
        """A new node's id, dirty; its row holds anything. The caller has made sure that one is available."""
        if self.free_ids:
            node = self.free_ids.pop()
        elif self.top < self.capacity:
            node = self.top
            self.top += 1
        else:  # a replay with less map memory than the pool was served with
            raise OutOfSpace(f"{self.what} id {self.top}: map memory is sized for {self.capacity}")
        self.born[node] = generation
        self.state[node] = DIRTY
        self.dirty.append(node)
        self._hold(node)
        return node

    def note(self, node: int, born: int) -> None:
        """A node that an image holds, absent as yet; afterwards ``finish_loading``."""
        if not 0 < node < self.capacity:
            raise OutOfSpace(f"{self.what} id {node}: map memory is sized for {self.capacity}")
        self.born[node] = born
        self.state[node] = ABSENT
        self.absent += 1
        self.top = max(self.top, node + 1)

    def finish_loading(self) -> None:
        self.free_ids = np.flatnonzero(self.states[: self.top] == FREE)[::-1].tolist()

    def fill(self, node: int, body: memoryview) -> None:
        """The row of an absent node, as the last image has it."""
        self._set_row(node, body)
        self.state[node] = CLEAN
        self.absent -= 1
        self._hold(node)

    def evict(self, ids: Ids) -> None:
        """Give the memory of these back: clean ones become absent, free ones stay free."""
        clean = ids[self.states[ids] == CLEAN]
        self.states[clean] = ABSENT
        self.absent += len(clean)
        self._in_memory[ids] = False
        self.held -= len(ids)
        self._drop_rows(ids)

    def victims(self, first: int, count: int, most: int) -> tuple[Ids, int]:
        """(ids that may be evicted, the id to go on with), of at most ``count`` ids from ``first`` on. A clean row that
        was looked at since the last turn stays for this one."""
        window = slice(first, min(first + count, self.top))
        states, there = self.states[window], self._in_memory[window]
        clean = there & (states == CLEAN)
        used = np.frombuffer(self.used, np.bool_)[window]
        found = np.flatnonzero((clean & ~used) | (there & (states == FREE)))[:most]
        passed = int(found[-1]) + 1 if len(found) == most else len(states)
        used[:passed][clean[:passed]] = False
        return found + first, first + passed

    def blob(self, node: int) -> bytes:
        """The node's body as it is stored."""
        raise AssertionError("each kind has its own")

    def _set_row(self, node: int, body: memoryview) -> None:
        raise AssertionError("each kind has its own")

    def _drop_rows(self, ids: Ids) -> None:
        raise AssertionError("each kind has its own")

    def _hold(self, node: int) -> None:
        self.used[node] = 1
        if not self._in_memory[node]:
            self._in_memory[node] = True
            self.held += 1


def _drop(memory: mmap.mmap, pages: Ids, size: int) -> None:
    """Give pieces of ``size`` bytes, by number, rising, back to the kernel: they read as zeros from now on."""
    if not len(pages):
        return
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(pages)]))
    for first, count in zip(pages[starts].tolist(), (ends - starts).tolist(), strict=True):
        memory.madvise(mmap.MADV_DONTNEED, first * size, count * size)


class Leaves(Nodes):
    what = "leaf"
    row_bytes = LEAF_BYTES

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._entries, self._crcs = _reserve(capacity * LEAF_ENTRIES * 8), _reserve(capacity * LEAF_ENTRIES * 4)
        self.entries = memoryview(self._entries).cast("Q")
        self.crcs = memoryview(self._crcs).cast("I")
        self.entry_array = np.frombuffer(self._entries, np.uint64)
        self.crc_array = np.frombuffer(self._crcs, np.uint32)

    def copy(self, source: int, to: int) -> None:
        """Two leaves name the same blocks from now on, so none of them is private to the copy."""
        at, of = to << LEAF_SHIFT, source << LEAF_SHIFT
        entries = self.entry_array
        np.bitwise_and(entries[of : of + LEAF_ENTRIES], _SHARED, out=entries[at : at + LEAF_ENTRIES])
        self.crc_array[at : at + LEAF_ENTRIES] = self.crc_array[of : of + LEAF_ENTRIES]

    def blob(self, node: int) -> bytes:
        at = node << LEAF_SHIFT
        return self.entry_array[at : at + LEAF_ENTRIES].tobytes() + self.crc_array[at : at + LEAF_ENTRIES].tobytes()

    def _set_row(self, node: int, body: memoryview) -> None:
        at = node << LEAF_SHIFT
        self.entry_array[at : at + LEAF_ENTRIES] = np.frombuffer(body, np.uint64, LEAF_ENTRIES)
        self.crc_array[at : at + LEAF_ENTRIES] = np.frombuffer(body, np.uint32, LEAF_ENTRIES, LEAF_ENTRIES * 8)

    def _drop_rows(self, ids: Ids) -> None:
        _drop(self._entries, ids, LEAF_ENTRIES * 8)
        pairs = np.unique(ids >> 1)  # the checksums of two leaves share a page
        both = ~(self._in_memory[pairs << 1] | self._in_memory[pairs << 1 | 1])
        if both.any():
            _drop(self._crcs, pairs[both], LEAF_ENTRIES * 8)


class Pages(Nodes):
    what = "page"
    row_bytes = PAGE_BYTES
    first_stored = PAGE_NODE

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._ids = _reserve(capacity * PAGE_ENTRIES * 4)
        self.ids = memoryview(self._ids).cast("I")
        self.id_array = np.frombuffer(self._ids, np.uint32)

    def copy(self, source: int, to: int) -> None:
        at, of = to << PAGE_SHIFT, source << PAGE_SHIFT
        self.id_array[at : at + PAGE_ENTRIES] = self.id_array[of : of + PAGE_ENTRIES]

    def row(self, node: int) -> npt.NDArray[np.uint32]:
        return self.id_array[node << PAGE_SHIFT : (node + 1) << PAGE_SHIFT]

    def blob(self, node: int) -> bytes:
        return self.row(node).tobytes()

    def _set_row(self, node: int, body: memoryview) -> None:
        self.row(node)[:] = np.frombuffer(body, np.uint32)

    def _drop_rows(self, ids: Ids) -> None:
        _drop(self._ids, ids, PAGE_BYTES)
