"""Room for new blocks: growing the data file ahead, holding freed blocks until they may be reused, waiting writers.

The rule that makes reuse safe: a block becomes allocatable only when a checkpoint whose switch came after its last
reference was dropped has committed. So frees are two lists: after the last switch (``_pending``), and before it
(``_sealed``). Which blocks are unreferenced is ``reclaim``'s finding.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from blockstore.allocator import Allocator, Run
from blockstore.api import Busy, OutOfSpace, Runner, StoreError
from blockstore.device import File
from blockstore.layout import UNIT
from blockstore.punching import Puncher

if TYPE_CHECKING:
    from blockstore.writer import Member

_PATIENCE = 5.0  # seconds a write waits for space before Busy: below the initiators' command timeout of 30 s
_SMALLEST_STEP = 256  # blocks (1 MiB): a host with less than that left is full
_FULL_FOR = 1.0  # seconds before a full host is asked again: somebody may have deleted something; guessed
_RELEASE_SLICE = 4096  # runs given back in one go, about 1 ms


class Space:
    """``limit``: blocks that the data file may have, or None; ``step``: blocks it grows by; ``keep``: free blocks that
    stay allocated in the host. ``reclaim`` asks for space to be found: True if something will come of it."""

    def __init__(
        self,
        runner: Runner,
        data: File,
        allocator: Allocator,
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
        self._limit = limit
        self._step = step
        self._join = join
        self._drop = drop
        self._reclaim = reclaim
        self._pending: list[Run] = []
        self._sealed: list[Run] = []
        self._releasing: deque[Run] = deque()
        self._puncher = Puncher(runner, data, allocator, keep=keep, changed=self.changed)
        self._growing = False
        self._host_full_until = 0.0
        self._hungry: deque[tuple[float, Member]] = deque()  # (deadline, write), in order
        self._afterwards: list[Callable[[], None]] = []  # run when no write waits any more
        self._timer = False
        self.pending_blocks = 0
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
    def has_pending(self) -> bool:
        return bool(self._pending or self._sealed or self._releasing)

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
            self._growing or self._releasing or self._puncher.runs or self._grow() or self._reclaim()
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

    def free_later(self, runs: list[Run]) -> None:
        """Nothing references these blocks from now on."""
        self._pending += runs
        self.pending_blocks += sum(run[1] for run in runs)

    def unavailable_runs(self) -> list[Run]:
        """Everything that is free, or known to become free: what a sweep beginning now must not find again."""
        waiting = self._pending + self._sealed + list(self._releasing) + self._puncher.runs
        return self.allocator.free_runs() + waiting

    def seal(self) -> int:
        """The journal was switched: frees so far are released by this checkpoint's commit. Returns the high water."""
        self._sealed += self._pending
        self._pending = []
        return self.allocator.high_water

    def release(self) -> None:
        """The checkpoint committed."""
        self._releasing.extend(self._sealed)
        self._sealed = []
        self._release_slice()

    def _release_slice(self) -> None:
        for _ in range(min(_RELEASE_SLICE, len(self._releasing))):
            start, count = self._releasing.popleft()
            self.allocator.release(start, count)
            self.pending_blocks -= count
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
