"""The store's Runner on a real event loop: end of tick, timers, helper threads.

Not a scheduler: it only maps ``blockstore.api.Runner`` to asyncio's calls (uvloop in production).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

HELPER_THREADS = 6
"""Guessed: one flusher, one saver, one for preallocation, the rest for cold reads (each blocks on one preadv)."""


class LoopRunner:
    """Lives as long as the loop. ``close`` waits for what the helper threads still do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(HELPER_THREADS, thread_name_prefix="store")

    def call_soon(self, function: Callable[[], None]) -> None:
        self._loop.call_soon(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        return self._loop.call_later(seconds, function).cancel

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        def landed(future: Future[object]) -> None:
            self._loop.call_soon_threadsafe(then, future.exception())

        self._threads.submit(work).add_done_callback(landed)

    def now(self) -> float:
        return self._loop.time()

    def close(self) -> None:
        self._threads.shutdown(wait=True)
