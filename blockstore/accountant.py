"""When to count who uses how much of a pool, and who waits for it. What is counted is ``accounting``'s.

Counting reads a checkpoint in a helper process, so it costs the loop nothing but that checkpoint. An answer stays
exact until the next batch with content; where counting takes long it serves for a while after. Invariants: one count
at a time; who asks while one runs gets the next, unless the running one covers all that was appended.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future

from blockstore.accounting import parse
from blockstore.api import Invalid, PoolUsage, Runner, StoreError
from blockstore.futures import new_future
from blockstore.saver import Checkpointer

_QUICK = 1.0  # seconds: a count that takes less is repeated whenever something changed
_SHARE = 10  # otherwise an answer serves so many times as long as it took


class _CountFailed(StoreError):
    """The helper process did not answer."""


class Accountant:
    """``path``: of ``meta.db``, or empty where no other process can read it; ``covered``: the last batch that changed
    anything."""

    def __init__(self, runner: Runner, path: str, checkpointer: Checkpointer, *, covered: Callable[[], int]) -> None:
        self._runner = runner
        self._path = path
        self._checkpointer = checkpointer
        self._covered = covered
        self._answer: PoolUsage | None = None
        self._next_seq = 0  # the first batch that the answer does not cover
        self._serves_until = 0.0
        self._waiters: list[Future[PoolUsage]] = []
        self._next_waiters: list[Future[PoolUsage]] = []
        self._running = False
        self._helper: subprocess.Popen[str] | None = None
        self._stopped: StoreError | None = None
        self.counts = 0
        self.progress = 0.0
        """Of the count that runs, 0 to 1; 0 if none does."""

    def usage(self) -> Future[PoolUsage]:
        future: Future[PoolUsage] = new_future()
        if not self._path:
            future.set_exception(Invalid("usage is counted by another process, which cannot read this pool"))
        elif self._answer is not None and (self._exact() or self._runner.now() < self._serves_until):
            future.set_result(self._answer)
        elif self._stopped is not None:
            future.set_exception(self._stopped)
        else:
            (self._next_waiters if self._running else self._waiters).append(future)
            self._begin()
        return future

    def stop(self, error: StoreError) -> None:
        """Begin no count any more; who waits gets ``error``."""
        self._stopped = error
        if self._helper is not None:
            self._helper.kill()
        waiters, self._waiters, self._next_waiters = self._waiters + self._next_waiters, [], []
        for future in waiters:
            future.set_exception(error)

    def _exact(self) -> bool:
        return self._covered() < self._next_seq

    def _begin(self) -> None:
        if not self._running and self._stopped is None:
            self._running = True
            asked = time.time()
            self._checkpointer.start(lambda error: self._checkpointed(asked, error))

    def _checkpointed(self, asked: float, error: StoreError | None) -> None:
        if error is not None or self._stopped is not None:
            self._finish(error or self._stopped)
            return
        began = self._runner.now()
        answers: list[tuple[int, PoolUsage]] = []

        def landed(error: BaseException | None) -> None:
            if error is not None:
                self._finish(_CountFailed(f"usage was not counted: {error}"))
                return
            seconds = self._runner.now() - began
            self._next_seq, self._answer = answers[0]
            self._serves_until = 0.0 if seconds < _QUICK else self._runner.now() + _SHARE * seconds
            self.counts += 1
            self._finish(None)

        self._runner.in_thread(lambda: answers.append(self._count(asked)), landed)

    def _count(self, asked: float) -> tuple[int, PoolUsage]:
        """In a helper thread, which only waits: for the process's lines, the last of which is the answer."""
        command = [sys.executable, "-m", "blockstore.accounting", self._path]
        line = ""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as helper:
            self._helper = helper
            if self._stopped is not None:  # said so while the process was started
                helper.kill()
            assert helper.stdout is not None
            for line in helper.stdout:
                if not line.startswith("{"):
                    self.progress = float(line)
        self._helper = None
        if helper.returncode != 0:
            raise OSError(f"the counting process ended with code {helper.returncode}")
        next_seq, groups = parse(line)
        return next_seq, PoolUsage(asked, groups)

    def _finish(self, error: StoreError | None) -> None:
        self._running = False
        self.progress = 0.0
        waiters, self._waiters, self._next_waiters = self._waiters, self._next_waiters, []
        if error is None and self._exact():
            waiters, self._waiters = waiters + self._waiters, []
        for future in waiters:
            if error is not None or self._answer is None:
                future.set_exception(error or _CountFailed("usage was not counted"))
            else:
                future.set_result(self._answer)
        if self._waiters:
            self._begin()
