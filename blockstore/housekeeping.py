"""When to checkpoint and when to sweep: the pool's background decisions, and who waits for their outcome.

How an image is made is ``saver``'s, how the unreferenced is found ``reclaim``'s. Invariants: one sweep at a time; after
``stop`` nothing is begun any more; what a sweep must not find is noted at every switch while one looks for its image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from blockstore.api import OutOfSpace, Runner, StoreError
from blockstore.blockmap import BlockMap
from blockstore.futures import new_future, resolve
from blockstore.journal import Journal
from blockstore.layout import UNIT_SHIFT
from blockstore.reclaim import Kept, Marker, Sweep
from blockstore.residency import Residency
from blockstore.saver import Checkpointer
from blockstore.space import Space
from blockstore.stats import Counters
from blockstore.writer import BatchWriter

T = TypeVar("T")
_log = logging.getLogger(__name__)

_PERIOD = 1.0  # seconds between looks at what should be done
_SPARED = 5.0  # seconds between checkpoints that are made only to give freed blocks back; guessed
_SWEEP_SHARE = 20  # a sweep is followed by at least so many times its own duration without one
_FAILED_REST = 60.0  # seconds after a sweep that failed, if no write waits; guessed
_SWEEP_LEAST = 256  # dropped blocks (1 MiB), or lost leaves (1.5 MiB of meta.db): fewer are no reason to sweep
_KEPT = 3  # switches of which it is noted what was unavailable: a sweep finds one of the newest images
_WAL_LIMIT = 1 << 30  # bytes of SQLite's log at which a sweep lets go of the image that keeps it from being reused


class Housekeeper:
    """``checkpointer``, ``residency`` and ``space`` are given after construction: they ask this one in turn."""

    checkpointer: Checkpointer
    residency: Residency
    space: Space

    def __init__(
        self,
        runner: Runner,
        writer: BatchWriter,
        journal: Journal,
        blockmap: BlockMap,
        counters: Counters,
        *,
        checkpoint_interval: float,
        make_marker: Callable[[], Marker],
        log_bytes: Callable[[], int],
    ) -> None:
        """``log_bytes``: how large SQLite's log is."""
        self._runner = runner
        self._writer = writer
        self._journal = journal
        self._blockmap = blockmap
        self._counters = counters
        self._checkpoint_interval = checkpoint_interval
        self._make_marker = make_marker
        self._log_bytes = log_bytes
        self._sweep: Sweep | None = None
        self._kept: dict[int, Kept] = {}  # by epoch
        self._let_go = 0  # times that this sweep had to
        self._opening_sweep_done = False
        self._sweep_failed: float | None = None  # when the last one did
        self._sweep_waiters: list[Future[int]] = []
        self._next_sweep_waiters: list[Future[int]] = []
        self._sweep_began = self._sweep_ended = self._checkpointed = runner.now()
        self._checkpoint_due = False
        self._reclaim_due = False
        self.stopped = False
        self._cancel_timer = runner.call_later(_PERIOD, self._look)

    def note_opened(self, epoch: int) -> None:
        """The image of ``epoch`` is recovery's own: the opening sweep may use it."""
        self._kept[epoch] = self._note()

    def seal(self, epoch: int) -> int:
        """The journal was switched for the image of ``epoch``. Returns the high water."""
        high_water = self.space.seal()
        if self._sweep is not None:
            self._kept[epoch] = self._note()
            for old in sorted(self._kept)[:-_KEPT]:
                del self._kept[old]
        return high_water

    def _note(self) -> Kept:
        return Kept(self.space.unavailable(), self.space.serial, self._blockmap.dropped, self._blockmap.lost)

    def _take_kept(self, epoch: int) -> Kept | None:
        kept = self._kept.get(epoch)
        self._kept.clear()
        return kept

    def stop(self) -> None:
        """No sweep and no checkpoint is begun any more; a sweep that runs ends without a result."""
        self.stopped = True
        self._cancel_timer()
        if self._sweep is not None:
            self._sweep.stop()

    def refuse_all(self, error: StoreError) -> None:
        """Those who wait for a sweep get ``error``."""
        waiters = self._sweep_waiters + self._next_sweep_waiters
        self._sweep_waiters, self._next_sweep_waiters = [], []
        for future in waiters:
            future.set_exception(error)

    def sweep(self) -> Future[int]:
        """A sweep that begins after this call; the result is the bytes that it freed, once they are reusable."""
        future: Future[int] = new_future()
        (self._sweep_waiters if self._sweep is None else self._next_sweep_waiters).append(future)
        self.begin_sweep()
        return future

    def need_checkpoint(self) -> None:
        if not (self._checkpoint_due or self.checkpointer.running):
            self._checkpoint_due = True
            self._runner.call_soon(self._checkpoint_now)

    def _checkpoint_now(self) -> None:
        self._checkpoint_due = False
        if not self.stopped and not self.checkpointer.running:
            self.checkpointer.start(self._checkpoint_ended)

    def _checkpoint_ended(self, error: StoreError | None) -> None:
        if isinstance(error, OutOfSpace):
            self.space.refuse_all(error)

    def checkpoint_committed(self) -> None:
        self._checkpointed = self._runner.now()
        if self._sweep is not None and self._log_bytes() > _WAL_LIMIT << self._let_go:
            self._let_go += 1  # next time it may take twice as long
            self._sweep.interrupt()
        self.space.release()
        self._runner.call_soon(self._writer.resume)

    def reclaim(self) -> bool:
        """Writes wait for space: whether some may come without anybody freeing any."""
        if self.stopped:
            return False
        if self._sweep is not None or self.checkpointer.running or self._checkpoint_due or self._reclaim_due:
            return True
        if self.space.has_pending:
            self.need_checkpoint()
            return True
        if self._sweep_failed is not None and self._runner.now() < self._sweep_failed + _PERIOD:
            return True  # ``_look`` asks again
        if self._blockmap.dropped or not self._opening_sweep_done:
            self._reclaim_due = True
            self._runner.call_soon(self.begin_sweep)
            return True
        return False

    def begin_sweep(self) -> None:
        self._reclaim_due = False
        if self._sweep is None and not self.stopped:
            self._sweep_began = self._runner.now()
            self._let_go = 0
            self._sweep = Sweep(
                self._runner,
                self._blockmap,
                self.space,
                self._make_marker,
                checkpoint=self.checkpointer.start,
                kept=self._take_kept,
                done=self._swept,
            )
            self._sweep.start(newest=self._opening_sweep_done)

    def _swept(self, freed: int, error: StoreError | None) -> None:
        self._sweep = None
        self._kept.clear()
        self._sweep_ended = self._runner.now()
        self._checkpoint_ended(error)
        self._sweep_failed = None if error is None else self._sweep_ended
        if error is not None:
            _log.warning("sweep: nothing was freed: %s", error)
        else:
            self._opening_sweep_done = True
            self._counters.sweeps += 1
            self._counters.swept_bytes += freed << UNIT_SHIFT
        waiters, self._sweep_waiters, self._next_sweep_waiters = self._sweep_waiters, self._next_sweep_waiters, []
        if self._blockmap.gone:
            self.need_checkpoint()
        for future in waiters:
            resolve(future, error, freed << UNIT_SHIFT)
        self.space.changed()
        if self._sweep_waiters:
            self.begin_sweep()

    def _look(self) -> None:
        """Once a second: a checkpoint when the last one is old, a sweep when enough was dropped, or lost."""
        now = self._runner.now()
        self._cancel_timer = self._runner.call_later(_PERIOD, self._look)
        if self.stopped:
            return
        self.residency.relieve()
        age = now - self._checkpointed
        freed = self.space.pending_blocks >= max(_SWEEP_LEAST, self.space.used >> 4)
        if (age >= self._checkpoint_interval and self._journal.position) or (age >= _SPARED and freed):
            self.need_checkpoint()
        if self._sweep_failed is not None:
            self.space.changed()  # who still waits wants the next one now
        rest = _SWEEP_SHARE * (self._sweep_ended - self._sweep_began) if self._sweep_failed is None else _FAILED_REST
        rested = now - self._sweep_ended >= rest
        dropped = self._blockmap.dropped >= max(_SWEEP_LEAST, self.space.used >> 6)
        lost = self._blockmap.lost >= max(_SWEEP_LEAST, self._blockmap.leaves.in_use >> 3)
        if (dropped or lost) and rested:
            self.begin_sweep()
