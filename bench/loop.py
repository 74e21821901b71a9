"""A loop for benches that need no network: the real clock, real helper threads, and a watch on who holds it.

Not an event loop: nothing waits for sockets here. Invariant: every callback runs on the thread that turns it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class ClockedRunner:
    """api.Runner over the real clock and real helper threads, which measures how long each callback holds the loop."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()
        self._later: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._order = itertools.count()
        self._landed: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._helpers = ThreadPoolExecutor(6)
        self.held = self.held_cpu = 0.0
        self.holder = ""

    def call_soon(self, function: Callable[[], None]) -> None:
        self._soon.append(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        cell = [function]
        heapq.heappush(self._later, (self.now() + seconds, next(self._order), cell))
        return cell.clear

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        def land(future: Future[object]) -> None:
            self._landed.put(lambda: then(future.exception()))

        self._helpers.submit(work).add_done_callback(land)

    def now(self) -> float:
        return time.monotonic()

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` as the loop would."""
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return function()
        finally:
            held = time.perf_counter() - began
            self.held_cpu = max(self.held_cpu, time.thread_time() - cpu)
            if held > self.held:
                self.held, self.holder = held, getattr(function, "__qualname__", repr(function))

    def wait(self, start: Callable[[], Future[T]]) -> T:
        """Start a verb and turn the loop until it is answered."""
        future = self.run(start)
        while not future.done():
            self._turn(0.05)
        return future.result(0)

    def wait_all(self, starts: list[Callable[[], Future[T]]]) -> None:
        futures = [self.run(start) for start in starts]
        while not all(future.done() for future in futures):
            self._turn(0.05)
        for future in futures:
            future.result(0)

    def turn_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._turn(0.05)

    def turn_for(self, seconds: float) -> None:
        """Let the loop live for so long."""
        end = self.now() + seconds
        self.turn_until(lambda: self.now() >= end)

    def _turn(self, patience: float) -> None:
        due, self._soon = self._soon, deque()
        for function in due:
            self.run(function)
        while self._later and self._later[0][0] <= self.now():
            _, _, cell = heapq.heappop(self._later)
            if cell:
                self.run(cell[0])
        if due or self._soon:
            patience = 0.0  # what was due may be what somebody waits for
        elif self._later:
            patience = min(patience, max(0.0, self._later[0][0] - self.now()))
        try:
            self.run(self._landed.get(timeout=patience) if patience else self._landed.get_nowait())
        except Empty:
            return
