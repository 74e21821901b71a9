"""Shared flush rounds: everyone who wants durability while a round runs shares the next one.

A round: S is the last batch appended; sync the data file, then every journal that holds batches up to S, oldest first
(just after a switch that is two), in one helper thread, serially (measured: faster than in parallel); then S is synced
and the waiters are woken. Invariant: nobody is woken with success once any sync of the pool has failed.
"""

from __future__ import annotations

from collections.abc import Callable

from blockstore.api import Done, FailStopped, Runner
from blockstore.device import File, SyncGate
from blockstore.journal import Journal

_TELL_DISK_AFTER = 1.0  # seconds; prescribed: then an empty batch carries synced_seq to the disk


class FlushRounds:
    """``fail_stop``: what to do when a sync failed; ``append_empty``: append an empty batch (refused if stopped)."""

    def __init__(
        self,
        runner: Runner,
        gate: SyncGate,
        data: File,
        journal: Journal,
        *,
        fail_stop: Callable[[str], None],
        append_empty: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._gate = gate
        self._data = data
        self._journal = journal
        self._fail_stop = fail_stop
        self._append_empty = append_empty
        self._waiting: list[Done] = []
        self._running: list[Done] | None = None
        self._cancel_timer: Callable[[], None] | None = None
        self.rounds = 0
        self.unsynced_bytes = 0  # data written since the last round began: what a power cut could lose

    @property
    def running(self) -> bool:
        return self._running is not None

    def join(self, done: Done) -> None:
        """Call ``done`` after a round that covers every batch appended so far."""
        self._waiting.append(done)
        if self._running is None:
            self._start()

    def start_in_background(self) -> None:
        """Begin a round that nobody waits for, unless one is running."""
        if self._running is None:
            self._start()

    def stop(self) -> None:
        """The pool ends: no timers any more."""
        if self._cancel_timer is not None:
            self._cancel_timer()
            self._cancel_timer = None

    def _start(self) -> None:
        self._running, self._waiting = self._waiting, []
        seq = self._journal.last_seq
        files = [self._data, *self._journal.files_to_sync()]
        covered = self.unsynced_bytes

        def work() -> None:
            self._gate.sync(files)

        self._runner.in_thread(work, lambda error: self._finish(error, seq, covered))

    def _finish(self, error: BaseException | None, seq: int, covered: int) -> None:
        waiters, self._running = self._running or [], None
        failure = self._gate.failure or error
        if failure is not None:
            self._fail_stop(f"sync failed: {failure}")
            waiters, self._waiting = waiters + self._waiting, []
            for done in waiters:
                done(FailStopped(f"not durable: sync failed: {failure}"))
            return
        self.rounds += 1
        self.unsynced_bytes -= covered
        self._journal.synced_seq = max(self._journal.synced_seq, seq)
        self._tell_disk_later()
        if self._waiting:
            self._start()
        for done in waiters:
            done(None)

    def _tell_disk_later(self) -> None:
        """If no batch follows within a second, append an empty one, so that the disk knows what was durable."""
        self.stop()
        seq = self._journal.last_seq

        def tell() -> None:
            self._cancel_timer = None
            if self._journal.last_seq == seq:
                self._append_empty()

        if self._journal.told_seq < min(self._journal.synced_seq, self._journal.last_content_seq):
            self._cancel_timer = self._runner.call_later(_TELL_DISK_AFTER, tell)
