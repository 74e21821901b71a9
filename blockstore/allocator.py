"""Which blocks of the data file are free to be written. Not which are referenced: that is the sweep's question.

Free space is never stored: it is rebuilt after every start by the sweep, so a crash cannot leak or corrupt it. Large
requests get long runs, single blocks fill short ones, and the most recently freed come first (their pages are warm).

Invariants: free runs are disjoint, lie below ``blocks`` and never contain block 0; ``free`` is their sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np

LONG_RUN = 256  # blocks (1 MiB): below that a large write would be cut into many; also the least worth punching

_MOST_COALESCED = 1 << 16  # runs joined in one go: about 10 ms, and nothing may hold the loop for longer

Run = tuple[int, int]
"""(first block, number of blocks)."""


class Allocator:
    """``first``: blocks below it are taken until the sweep says otherwise; ``blocks``: blocks in the data file;
    ``never_below``: blocks below it are not handed out, whatever the sweep says."""

    def __init__(self, first: int, blocks: int, *, never_below: int = 1) -> None:
        first = max(first, never_below)
        self.blocks = blocks
        self.never_below = never_below
        self.free = 0
        self.high_water = first  # every block ever handed out lies below
        self._long: list[Run] = []  # stacks: the last one is used first
        self._short: list[Run] = []
        self._cold: list[Run] = []  # long, and without pages in the host's memory or on its disk: last choice
        self._next = 0  # the run being used: _next up to _end
        self._end = 0
        if first < blocks:
            self.release(first, blocks - first)

    def allocate(self, count: int) -> list[Run]:
        """Runs of ``count`` blocks together, one where possible; empty if there are too few."""
        start = self._next
        if self._end - start >= count:  # the common case: the run in use still has room
            self._next = start + count
            self.free -= count
            if self._next > self.high_water:
                self.high_water = self._next
            return [(start, count)]
        return self._allocate_pieces(count) if self.free >= count else []

    def release(self, start: int, count: int) -> None:
        """These blocks are free from now on."""
        self.free += count
        (self._long if count >= LONG_RUN else self._short).append((start, count))

    def grow(self, blocks: int) -> None:
        """The data file has ``blocks`` blocks now."""
        if blocks > self.blocks:
            start, self.blocks = self.blocks, blocks
            self.free += blocks - start
            self._cold.append((start, blocks - start))

    def take_long_runs(self, keep: int) -> list[Run]:
        """Take long runs out, oldest first, as long as ``keep`` free blocks remain (for punching)."""
        taken: list[Run] = []
        while self._long and self.free - self._long[0][1] >= keep:
            run = self._long.pop(0)
            self.free -= run[1]
            taken.append(run)
        return taken

    def put_back_cold(self, runs: Iterable[Run]) -> None:
        """Give back what ``take_long_runs`` took."""
        for run in runs:
            self.free += run[1]
            self._cold.append(run)

    def free_runs(self) -> list[Run]:
        """All free runs, in no order, and what is never handed out: what a sweep must not find."""
        never = [(1, self.never_below - 1)] if self.never_below > 1 else []
        current = [(self._next, self._end - self._next)] if self._end > self._next else []
        return self._long + self._short + self._cold + current + never

    def coalesce(self) -> None:
        """Join neighbouring runs: what several sweeps freed piece by piece is one run again."""
        warm = self._long + self._short
        if not 1 < len(warm) <= _MOST_COALESCED:
            return
        runs = np.fromiter(chain.from_iterable(warm), np.int64, 2 * len(warm)).reshape(-1, 2)
        runs = runs[np.argsort(runs[:, 0])]
        ends = runs.sum(axis=1)
        first = np.flatnonzero(np.concatenate(([True], runs[1:, 0] != ends[:-1])))
        last = np.concatenate((first[1:], [len(runs)])) - 1
        starts, lengths = runs[first, 0], ends[last] - runs[first, 0]
        joined = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        self._long = [run for run in joined if run[1] >= LONG_RUN]
        self._short = [run for run in joined if run[1] < LONG_RUN]

    def _allocate_pieces(self, count: int) -> list[Run]:
        runs: list[Run] = []
        self._choose_run(count)
        while count:
            if self._next == self._end:
                self._choose_run(count)
            piece = min(count, self._end - self._next)
            runs.append((self._next, piece))
            self._next += piece
            self.high_water = max(self.high_water, self._next)
            self.free -= piece
            count -= piece
        return runs

    def _choose_run(self, count: int) -> None:
        """Put the run in use aside and take a better one. Large requests look for one run that holds them."""
        if self._end > self._next:
            left = (self._next, self._end - self._next)
            (self._long if left[1] >= LONG_RUN else self._short).append(left)
            self._next = self._end
        stacks = (self._short, self._long, self._cold) if count == 1 else (self._long, self._cold, self._short)
        self._next, length = next(stack for stack in stacks if stack).pop()
        self._end = self._next + length
