"""Which blocks of the data file are free to be written. Not which are referenced: that is the sweep's question.

Free space is never stored: it is rebuilt after every start by the sweep, so a crash cannot leak or corrupt it. Large
requests get long runs, single blocks fill short ones, and the most recently freed come first (their pages are warm).
Neighbouring runs are joined in a helper thread when there are many: it gets columns that nobody changes meanwhile, and
if everything else is used up before it is done they are taken back and its result is dropped.

Invariants: free runs are disjoint, lie from ``never_below`` to ``blocks``, and ``free`` is their sum.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

LONG_RUN = 256  # blocks (1 MiB): below that a large write would be cut into many; also the least worth punching

_JOIN_AT_ONCE = 1 << 13  # runs joined on the loop: bench/allocator.py, 2 ms, and nothing may hold the loop for longer
_JOIN_SHARE = 8  # more than that are joined when one in so many is new: a join that finds nothing costs as much
_LOOK_AT = 8  # long runs that a large request looks at for one that holds it; guessed

Run = tuple[int, int]
"""(first block, number of blocks)."""
Column = npt.NDArray[np.int64]
InThread = Callable[[Callable[[], object], Callable[[BaseException | None], None]], None]
"""``api.Runner.in_thread``."""


class _Stack:
    """Runs in two columns, 16 bytes each: there may be millions. The last one is used first."""

    __slots__ = ("counts", "starts")

    def __init__(self, starts: array[int] | None = None, counts: array[int] | None = None) -> None:
        self.starts = array("q") if starts is None else starts
        self.counts = array("q") if counts is None else counts

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Run]:
        return zip(self.starts, self.counts, strict=True)

    def push(self, start: int, count: int) -> None:
        self.starts.append(start)
        self.counts.append(count)

    def pop(self, at: int = -1) -> Run:
        return self.starts.pop(at), self.counts.pop(at)

    def pile(self, other: _Stack) -> None:
        """Put ``other`` on top."""
        self.starts.extend(other.starts)
        self.counts.extend(other.counts)

    def columns(self) -> tuple[Column, Column]:
        """Views: the stack must not change as long as they live."""
        return np.frombuffer(self.starts, np.int64), np.frombuffer(self.counts, np.int64)


class _Join:
    """One joining of long and short runs, which belong to it while it runs."""

    def __init__(self, long: _Stack, short: _Stack) -> None:
        self.long, self.short = long, short
        self.joined_long, self.joined_short = _Stack(), _Stack()

    def run(self) -> None:
        """In any thread."""
        starts, counts, ages = self._in_order()
        ends = starts + counts
        first = np.flatnonzero(np.concatenate(([True], starts[1:] != ends[:-1])))
        last = np.concatenate((first[1:], [len(starts)])) - 1
        youngest = np.minimum.reduceat(ages, first)
        order = np.argsort(-youngest, kind="stable")  # a joined run is as recent as its most recent part
        starts, counts = starts[first][order], (ends[last] - starts[first])[order]
        is_long = counts >= LONG_RUN
        self.joined_long = _stack_of(starts[is_long], counts[is_long])
        self.joined_short = _stack_of(starts[~is_long], counts[~is_long])

    def _in_order(self) -> tuple[Column, Column, Column]:
        """(starts, counts, how many runs of its stack are more recent), by address."""
        parts = [self.long.columns(), self.short.columns()]
        starts = np.concatenate([part[0] for part in parts])
        counts = np.concatenate([part[1] for part in parts])
        ages = np.concatenate([np.arange(len(part[0]) - 1, -1, -1) for part in parts])
        order = np.argsort(starts, kind="stable")  # mostly sorted: a sweep's finds come by address
        return starts[order], counts[order], ages[order]


class Allocator:
    """``first``: blocks below it are taken until the sweep says otherwise; ``blocks``: blocks in the data file;
    ``never_below``: blocks below it are not handed out, whatever the sweep says."""

    def __init__(self, first: int, blocks: int, *, never_below: int = 1) -> None:
        first = max(first, never_below)
        self.blocks = blocks
        self.never_below = never_below
        self.free = 0
        self.high_water = first  # every block ever handed out lies below
        self._long = _Stack()
        self._short = _Stack()
        self._cold = _Stack()  # without pages in the host's memory or on its disk: last choice
        self._cold_blocks = 0
        self._join: _Join | None = None
        self._unjoined = 0  # runs that came since the last join began
        self._next = 0  # the run being used: _next up to _end
        self._end = 0
        self._in_use_is_cold = False
        if first < blocks:
            self.put_back_cold([(first, blocks - first)])

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
        self._unjoined += 1
        (self._long if count >= LONG_RUN else self._short).push(start, count)

    def grow(self, blocks: int) -> None:
        """The data file has ``blocks`` blocks now."""
        if blocks > self.blocks:
            start, self.blocks = self.blocks, blocks
            self.put_back_cold([(start, blocks - start)])

    def take_long_runs(self, keep: int, most: int) -> list[Run]:
        """Take long runs out, oldest first and ``most`` blocks at most, as long as ``keep`` warm ones remain (for
        punching)."""
        spare = min(most, self.free - self._cold_blocks - keep)
        taken: list[Run] = []
        for start, count in self._long:
            if spare < LONG_RUN:
                break
            taken.append((start, min(count, spare)))
            spare -= count
        if taken:
            start, count = taken[-1]
            rest = self._long.counts[len(taken) - 1] - count
            del self._long.starts[: len(taken)], self._long.counts[: len(taken)]
            if rest:
                (self._long if rest >= LONG_RUN else self._short).push(start + count, rest)
            self.free -= sum(run[1] for run in taken)
        return taken

    def put_back_cold(self, runs: Iterable[Run]) -> None:
        """Give back what ``take_long_runs`` took."""
        for start, count in runs:
            self.free += count
            self._cold_blocks += count
            self._cold.push(start, count)

    def free_runs(self) -> Column:
        """All free runs, in no order, and what is never handed out: rows of (first, count)."""
        stacks = [self._long, self._short, self._cold]
        if self._join is not None:
            stacks += [self._join.long, self._join.short]
        others = [run for run in ((self._next, self._end - self._next), (0, self.never_below)) if run[1]]
        rows = np.empty((sum(map(len, stacks)) + len(others), 2), np.int64)
        rows[: len(others)] = np.array(others, np.int64).reshape(-1, 2)
        at = len(others)
        for stack in stacks:
            rows[at : at + len(stack), 0], rows[at : at + len(stack), 1] = stack.columns()
            at += len(stack)
        return rows

    # ------------------------------------------------------------------------------------------------ joining

    def coalesce(self, in_thread: InThread) -> None:
        """Join neighbouring runs: what several sweeps freed piece by piece is one run again. Many are joined by
        ``in_thread``, without making anybody wait."""
        runs = len(self._long) + len(self._short)
        if self._join is not None or runs < 2 or not self._unjoined:
            return
        if runs <= _JOIN_AT_ONCE:
            join = self._begin_join()
            join.run()
            self._end_join(join, None)
        elif self._unjoined * _JOIN_SHARE >= runs:
            join = self._begin_join()
            in_thread(join.run, lambda error: self._end_join(join, error))

    def _begin_join(self) -> _Join:
        join = self._join = _Join(self._long, self._short)
        self._long, self._short = _Stack(), _Stack()
        self._unjoined = 0
        return join

    def _end_join(self, join: _Join, error: BaseException | None) -> None:
        if join is not self._join:
            return  # its runs were needed before
        if error is not None:
            self._abandon_join()
            return
        self._join = None
        self._lay_under(join.joined_long, join.joined_short)

    def _abandon_join(self) -> None:
        """It failed, or nothing else is left: its runs are used as they are. They are copied, for the helper, or the
        traceback of its failure, still holds views of them."""
        join, self._join = self._join, None
        assert join is not None, "fewer blocks are free than were counted"
        self._lay_under(*(_Stack(stack.starts[:], stack.counts[:]) for stack in (join.long, join.short)))

    def _lay_under(self, long: _Stack, short: _Stack) -> None:
        """What came meanwhile is more recent."""
        long.pile(self._long)
        short.pile(self._short)
        self._long, self._short = long, short

    # ------------------------------------------------------------------------------------------------ choosing

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
            self._put_aside(self._next, self._end - self._next)
            self._next = self._end
        stacks = (self._short, self._long, self._cold) if count == 1 else (self._long, self._cold, self._short)
        stack = next((stack for stack in stacks if stack), None)
        if stack is None:
            self._abandon_join()
            self._choose_run(count)
            return
        self._next, length = stack.pop(_recent_that_holds(stack, count) if stack is self._long else -1)
        self._end = self._next + length
        self._in_use_is_cold = stack is self._cold
        if self._in_use_is_cold:
            self._cold_blocks -= length

    def _put_aside(self, start: int, count: int) -> None:
        if self._in_use_is_cold:
            self._cold_blocks += count
            self._cold.push(start, count)
        else:
            (self._long if count >= LONG_RUN else self._short).push(start, count)


def _recent_that_holds(stack: _Stack, count: int) -> int:
    """Where the most recent run of ``count`` blocks is, as far as one looks; else the most recent one."""
    for at in range(-1, -min(_LOOK_AT, len(stack)) - 1, -1):
        if stack.counts[at] >= count:
            return at
    return -1


def _stack_of(starts: Column, counts: Column) -> _Stack:
    stack = _Stack()
    stack.starts.frombytes(starts.tobytes())
    stack.counts.frombytes(counts.tobytes())
    return stack
