"""Room for new blocks: growing the data file ahead, holding freed blocks until they may be reused, waiting writers.

The rule that makes reuse safe: a block becomes allocatable only when a checkpoint whose switch came after its last
reference was dropped has committed, and no pin is older than its free. So frees go into a new list after every switch.
Which blocks are unreferenced is told by the map (private entries that were replaced) and by ``reclaim`` (the rest).
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from blockstore.allocator import Allocator, Run
from blockstore.api import Busy, OutOfSpace, Runner, StoreError
from blockstore.blockmap import BlockMap
from blockstore.device import File
from blockstore.layout import UNIT
from blockstore.punching import Puncher

if TYPE_CHECKING:
    from blockstore.writer import Member

Blocks = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
"""Runs: rows of (first, count)."""

_PATIENCE = 5.0  # seconds a write waits for space before Busy: below the initiators' command timeout of 30 s
_SMALLEST_STEP = 256  # blocks (1 MiB): a host with less than that left is full
_FULL_FOR = 1.0  # seconds before a full host is asked again: somebody may have deleted something; guessed
_RELEASE_SLICE = 4096  # runs given back in one go, about 1 ms
_SORTED_HERE = 4096  # blocks: fewer are made into runs at once, more in a helper thread


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What a sweep of the image of this switch must not find: free already, or known to become free."""

    blocks: int
    """All that were ever handed out lie below."""
    runs: Sequence[Rows]
    single: Sequence[Blocks]


class Pin:
    """A reader of blocks that no map may name any more: while it lives, nothing freed since it began is reused."""

    __slots__ = ("_space", "since")

    def __init__(self, space: Space, since: int) -> None:
        self._space = space
        self.since = since

    def release(self) -> None:
        self._space.unpin(self)


class Space:
    """``limit``: blocks that the data file may have, or None; ``step``: blocks it grows by; ``keep``: free blocks that
    stay allocated in the host. ``reclaim`` asks for space to be found: True if something will come of it."""

    def __init__(
        self,
        runner: Runner,
        data: File,
        allocator: Allocator,
        blockmap: BlockMap,
        *,
        limit: int | None,
        step: int,
        keep: int,
        join: Callable[[Member], None],
        drop: Callable[[list[Member], StoreError], None],
        reclaim: Callable[[], bool],
    ) -> None:
        self._runner = runner
        self._data = data
        self.allocator = allocator
        self._blockmap = blockmap
        self._limit = limit
        self._step = step
        self._join = join
        self._drop = drop
        self._reclaim = reclaim
        self._serial = 0  # of the list that blocks freed now will be in
        self._sealed: deque[tuple[int, Blocks]] = deque()  # (serial, blocks), oldest first
        self._committed = -1  # lists up to this one are held by pins alone
        self._pins: Counter[int] = Counter()  # by serial
        self._sorting: dict[int, list[Blocks]] = {}  # being made into runs, by the serial of the last list
        self._releasing: deque[Rows] = deque()
        self._releasing_blocks = 0
        self._puncher = Puncher(runner, data, allocator, keep=keep, changed=self.changed)
        self._growing = False
        self._host_full_until = 0.0
        self._hungry: deque[tuple[float, Member]] = deque()  # (deadline, write), in order
        self._afterwards: list[Callable[[], None]] = []  # run when no write waits any more
        self._timer = False
        self._stopped = False

    def stop(self) -> None:
        """Nothing is grown or punched any more."""
        self._stopped = True
        self._puncher.stop()

    @property
    def used(self) -> int:
        """Blocks taken, those that wait to be free included; what never holds data is not counted."""
        return self.allocator.blocks - self.allocator.never_below - self.allocator.free - self._puncher.blocks

    @property
    def pending_blocks(self) -> int:
        """Unreferenced, not yet reusable."""
        return len(self._blockmap.freed) + sum(map(len, self._in_lists())) + self._releasing_blocks

    @property
    def has_pending(self) -> bool:
        """Whether a checkpoint would bring some back, or they are on their way."""
        return bool(self._blockmap.freed) or self._sealed_unheld() or bool(self._sorting or self._releasing)

    @property
    def punched_bytes(self) -> int:
        """Given back to the host since the pool was opened."""
        return self._puncher.punched * UNIT

    def allocate(self, count: int) -> list[Run]:
        """Runs of ``count`` blocks together; empty if there are too few now."""
        runs = self.allocator.allocate(count)
        self.prepare()
        return runs

    def prepare(self) -> None:
        """Grow if little is free, before the first write asks."""
        if self.allocator.free < self._step >> 1:
            self._grow()

    def wait(self, members: list[Member]) -> None:
        """These writes found no space: they join again once there is some, or are refused. Invariant: they stay in the
        pending index."""
        deadline = self._runner.now() + _PATIENCE
        for member in members:
            self._hungry.append((deadline, member))
            member[0].index_pending(member[1], member[2])  # a ragged write into the same grain must wait for it
        if self._hungry and not self._timer:
            self._timer = True
            self._runner.call_later(_PATIENCE, self._out_of_patience)
        self.changed()

    def changed(self) -> None:
        """Space came, or a search for it ended: serve who waits, search on, or refuse."""
        room = self.allocator.free
        while self._hungry and self._hungry[0][1][2] <= room:
            member = self._hungry.popleft()[1]
            refusal = member[0].refusal(member[1], member[2])
            if refusal is not None:  # removed, or rolled back to a smaller size, while this waited
                self._drop([member], refusal)
                continue
            room -= member[2]
            self._join(member)
        if self._hungry and not (
            self._growing
            or self._releasing
            or self._puncher.runs
            or self._grow()
            or self._reclaim()
            or (self._sealed and self._pins)  # a cold read that ends soon holds them
        ):
            self.refuse_all(OutOfSpace(f"no block is free of {self.allocator.blocks}, and none will come back"))
        self._go_on()

    def waiting_members(self) -> list[Member]:
        return [member for _, member in self._hungry]

    def after_waiting(self, action: Callable[[], None]) -> None:
        """Run ``action`` when the writes that wait have joined again, or were refused."""
        self._afterwards.append(action)
        self._go_on()

    def refuse_all(self, error: StoreError) -> None:
        hungry, self._hungry = self.waiting_members(), deque()
        self._drop(hungry, error)
        self._go_on()

    def _go_on(self) -> None:
        if not self._hungry:
            actions, self._afterwards = self._afterwards, []
            for action in actions:
                action()

    def _out_of_patience(self) -> None:
        self._timer = False
        now = self._runner.now()
        tired = [member for deadline, member in self._hungry if deadline <= now]
        self._hungry = deque(item for item in self._hungry if item[0] > now)
        self._drop(tired, Busy("space is still being counted"))
        self._go_on()
        if self._hungry:
            self._timer = True
            self._runner.call_later(self._hungry[0][0] - now, self._out_of_patience)

    # ------------------------------------------------------------------------------------------------ freeing

    def unavailable(self) -> Unavailable:
        """Everything that is free, or known to become free, at a switch: behind ``seal``. What was never handed out is
        not looked at: a device has blocks for a byte each of many GiB of memory."""
        punching = np.array(self._puncher.runs, np.int64).reshape(-1, 2)
        runs = [self.allocator.free_runs(), punching, *self._releasing]
        return Unavailable(self.allocator.high_water, runs, self._in_lists())

    def _in_lists(self) -> list[Blocks]:
        sorting = (blocks for lists in self._sorting.values() for blocks in lists)
        return [*(blocks for _, blocks in self._sealed), *sorting]

    def seal(self) -> int:
        """The journal was switched: frees so far are released by this checkpoint's commit. Returns the high water."""
        freed = self._blockmap.take_freed()
        if len(freed):
            self._sealed.append((self._serial, freed))
        self._serial += 1
        return self.allocator.high_water

    def release(self) -> None:
        """The checkpoint committed."""
        self._committed = self._serial - 1
        if not self._release_unheld():
            self.changed()

    def free(self, runs: Rows) -> None:
        """What a sweep found: its image has committed, so these may be reused, soon: there may be millions."""
        idle = not self._releasing
        if len(runs):
            self._releasing.append(runs)
            self._releasing_blocks += int(runs[:, 1].sum())
        if idle:
            self._release_slice()

    @property
    def releasing(self) -> bool:
        """Whether some of what is free by now is not yet with the allocator."""
        return bool(self._releasing)

    def pin(self) -> Pin:
        """Keep every block that is referenced now from being reused, until ``Pin.release``."""
        self._pins[self._serial] += 1
        return Pin(self, self._serial)

    def unpin(self, pin: Pin) -> None:
        self._pins[pin.since] -= 1
        if not self._pins[pin.since]:
            del self._pins[pin.since]
            if self._sealed:
                self._release_unheld()

    def pinned_before(self, serial: int) -> bool:
        """Whether a pin is older than the switch behind which frees got ``serial``."""
        return bool(self._pins) and min(self._pins) < serial

    @property
    def serial(self) -> int:
        """Of the frees from now to the next switch."""
        return self._serial

    def _sealed_unheld(self) -> bool:
        return bool(self._sealed) and self._sealed[0][0] < min(self._pins, default=self._serial)

    def _release_unheld(self) -> bool:
        """Give back the lists that neither an image nor a pin holds; False if there is none."""
        freed: list[Blocks] = []
        last = 0
        while self._sealed_unheld() and self._sealed[0][0] <= self._committed:
            last, blocks = self._sealed.popleft()
            freed.append(blocks)
        if sum(map(len, freed)) <= _SORTED_HERE:
            if freed:
                self.free(runs_of(freed))
            return bool(freed)
        self._sorting[last] = freed
        found: list[Rows] = []

        def sorted_out(error: BaseException | None) -> None:
            del self._sorting[last]  # this one: helpers may end in any order
            if error is not None:  # no memory
                self._blockmap.dropped += sum(map(len, freed))  # the next sweep finds them
                raise error
            self.free(found[0])

        self._runner.in_thread(lambda: found.append(runs_of(freed)), sorted_out)
        return True

    def _release_slice(self) -> None:
        left = _RELEASE_SLICE
        while left and self._releasing:
            runs = self._releasing.popleft()
            if len(runs) > left:
                self._releasing.appendleft(runs[left:])
            starts, counts = runs[:left, 0].tolist(), runs[:left, 1].tolist()  # no object per run: the collector's work
            for start, count in zip(starts, counts, strict=True):
                self.allocator.release(start, count)
                self._releasing_blocks -= count
            left -= min(left, len(runs))
        if self._releasing:
            self._runner.call_soon(self._release_slice)
            return
        self.allocator.coalesce(self._runner.in_thread)
        self.changed()
        self._puncher.start()

    # ------------------------------------------------------------------------------------------------ the host

    def _grow(self) -> bool:
        """Make the data file longer in a helper thread. False if it cannot be."""
        if self._growing:
            return True
        blocks = self.allocator.blocks
        step = self._step if self._limit is None else min(self._step, self._limit - blocks)
        if step <= 0 or self._stopped or self._runner.now() < self._host_full_until:
            return False
        self._growing = True
        grown = [blocks]

        def work() -> None:
            grown[0] = blocks + allocate_step(self._data, blocks, step)

        self._runner.in_thread(work, lambda error: self._grew(grown[0], error))
        return True

    def _grew(self, blocks: int, error: BaseException | None) -> None:
        self._growing = False
        if error is not None or blocks == self.allocator.blocks:
            self._host_full_until = self._runner.now() + _FULL_FOR
        self.allocator.grow(blocks)
        self.changed()


def runs_of(blocks: Sequence[Blocks]) -> Rows:
    """Single blocks, each named once, as runs."""
    ordered = np.sort(np.concatenate(blocks)).astype(np.int64)
    starts = np.flatnonzero(np.concatenate(([True], np.diff(ordered) != 1)))
    lengths = np.diff(np.concatenate((starts, [len(ordered)])))
    return np.stack((ordered[starts], lengths), axis=1)


def allocate_step(data: File, blocks: int, step: int) -> int:
    """Reserve ``step`` blocks behind the first ``blocks``, or as many as the host has; how many it was."""
    while True:
        try:
            data.allocate(blocks * UNIT, step * UNIT)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if step <= _SMALLEST_STEP:
                return 0
            step = max(_SMALLEST_STEP, step >> 1)
        else:
            return step
