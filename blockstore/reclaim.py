"""The sweep: which blocks and nodes nothing references any more. Slow, and always right.

It marks, in slices on the loop thread, everything that some map references, and what is free or pending already; the
rest is unreferenced. Maps change meanwhile, and that is allowed: a reference never moves from a place that is still to
be read to one that was (a copy-on-write leaves its source as it was; only a shared node is copied, and shared nodes are
never changed). So an unmarked block lost its last reference before the sweep ended. What is found goes to the pending
frees, never directly to the allocator: an older image, or a batch that may be replayed, can still name it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from blockstore.allocator import Run
from blockstore.api import Runner
from blockstore.blockmap import CLEAN, TO_SAVE, BlockMap, Ids, Leaves, Pages
from blockstore.layout import BLOCK_MASK, LEAF_ENTRIES, PAGE_NODE
from blockstore.space import Space

_LEAVES_PER_SLICE = 128  # 64 Ki entries, about 1 ms; more would need memory that the host must supply first
_RUNS_PER_SLICE = 8192
_NODES_PER_SLICE = 8192
_BLOCKS_PER_SLICE = 1 << 20
_PAUSE = 0.001  # seconds between slices: the loop's other work comes first; a sweep takes half of the loop at most

Marks = npt.NDArray[np.bool_]


class Sweep:
    """One sweep. ``start`` at a tick boundary; ``done(blocks freed)`` when it is over, not called after ``stop``."""

    def __init__(self, runner: Runner, blockmap: BlockMap, space: Space, done: Callable[[int], None]) -> None:
        self._runner = runner
        self._blockmap = blockmap
        self._space = space
        self._done = done
        self._stopped = False
        self._freed = 0

    def start(self) -> None:
        blockmap = self._blockmap
        # What was never handed out is not marked: a device has blocks for a byte each of many GiB of memory.
        self._marks: Marks = np.zeros(max(1, self._space.allocator.high_water), np.bool_)
        self._marks[0] = True
        self._dropped = blockmap.dropped
        self._not_ours = deque(self._space.unavailable_runs())
        pages, self._leaves = blockmap.reachable()
        self._lost_leaves = _unreachable(blockmap.leaves, self._leaves)
        self._lost_pages = _unreachable(blockmap.pages, pages)
        self._step(self._mark_unavailable)

    def stop(self) -> None:
        self._stopped = True

    def _step(self, function: Callable[[], None]) -> None:
        self._runner.call_later(_PAUSE, lambda: None if self._stopped else function())

    def _mark_unavailable(self) -> None:
        for _ in range(min(_RUNS_PER_SLICE, len(self._not_ours))):
            start, count = self._not_ours.popleft()
            self._marks[start : start + count] = True
        self._step(self._mark_unavailable if self._not_ours else self._mark_leaves)

    def _mark_leaves(self) -> None:
        """Mark what the next leaves reference now. Leaves made since the start hold only copies of entries that are
        still in older leaves, and blocks that were not taken at the start."""
        ids, self._leaves = self._leaves[:_LEAVES_PER_SLICE], self._leaves[_LEAVES_PER_SLICE:]
        rows = self._blockmap.leaves.entry_array.reshape(-1, LEAF_ENTRIES)[ids]
        blocks = rows.ravel() & np.uint64(BLOCK_MASK)
        self._marks[blocks[blocks < len(self._marks)]] = True
        if len(self._leaves):
            self._step(self._mark_leaves)
        else:
            self._at = 0
            self._step(self._collect)

    def _collect(self) -> None:
        end = min(self._at + _BLOCKS_PER_SLICE, len(self._marks))
        runs = runs_of_false(self._marks[self._at : end], self._at)
        self._freed += sum(run[1] for run in runs)
        self._space.free_later(runs)
        self._at = end
        self._step(self._collect if end < len(self._marks) else self._retire_leaves)

    def _retire_leaves(self) -> None:
        ids, self._lost_leaves = self._lost_leaves[:_NODES_PER_SLICE], self._lost_leaves[_NODES_PER_SLICE:]
        for leaf in ids.tolist():
            self._blockmap.retire(self._blockmap.leaves, leaf, 0)
        self._step(self._retire_leaves if len(self._lost_leaves) else self._finish)

    def _finish(self) -> None:
        blockmap = self._blockmap
        for page in self._lost_pages.tolist():
            blockmap.retire(blockmap.pages, page, PAGE_NODE)
        blockmap.dropped -= self._dropped
        self._done(self._freed)


def _unreachable(nodes: Leaves | Pages, reachable: Ids) -> Ids:
    """Nodes in use that no map references."""
    states = np.frombuffer(nodes.state, np.uint8, nodes.top)
    lost = (states >= CLEAN) & (states <= TO_SAVE)
    lost[reachable] = False
    lost[0] = False
    return np.flatnonzero(lost)


def runs_of_false(marks: Marks, base: int) -> list[Run]:
    """Where nothing is marked, as (first, count); ``base`` is the number of the first mark."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], marks, [True])).view(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    return list(zip((starts + base).tolist(), (ends - starts).tolist(), strict=True))
