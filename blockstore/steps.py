"""Long work on the loop thread, written as a generator that yields the futures it waits for.

Not a scheduler: each step runs when the future before it is answered, on the loop thread, so that state needs no lock.
Used by what takes minutes (send, receive, scrub, diff); the data path has callbacks. Invariant: a step holds the loop
no longer than the work between two ``yield``s; bytes are read, checked and packed in helper threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from blockstore.api import Done, Runner
from blockstore.futures import new_future

T = TypeVar("T")
Steps = Generator[Future[Any], Any, T]
"""Yields futures, is sent their results (``Any``: each yield waits for another type), returns a ``T``."""


def run(steps: Steps[T]) -> Future[T]:
    """The future of what ``steps`` returns or raises. Cancelling it has no effect: close what it works on instead."""
    result: Future[T] = new_future()

    def advance(waited: Future[Any] | None) -> None:
        while True:
            try:
                waiting = _resume(steps, waited)
            except StopIteration as end:
                result.set_result(end.value)
                return
            except Exception as error:  # whatever it is, it belongs to the one who waits for the result
                result.set_exception(error)
                return
            if not waiting.done():
                waiting.add_done_callback(advance)
                return
            waited = waiting

    advance(None)
    return result


def _resume(steps: Steps[T], waited: Future[Any] | None) -> Future[Any]:
    if waited is None:
        return next(steps)
    error = waited.exception()
    return steps.send(waited.result()) if error is None else steps.throw(error)


def pause(runner: Runner, seconds: float = 0.0) -> Future[None]:
    """Answered at the end of this tick, or after ``seconds``: the loop's other work comes first."""
    future: Future[None] = Future()
    if seconds > 0:
        runner.call_later(seconds, lambda: future.set_result(None))
    else:
        runner.call_soon(lambda: future.set_result(None))
    return future


def in_thread(runner: Runner, work: Callable[[], T]) -> Future[T]:
    """The result of ``work``, which keeps to bytes handed to it, in a helper thread."""
    future: Future[T] = Future()
    found: list[T] = []

    def then(error: BaseException | None) -> None:
        if error is None:
            future.set_result(found[0])
        else:
            future.set_exception(error)

    runner.in_thread(lambda: found.append(work()), then)
    return future


def answered(start: Callable[[Done], None]) -> Future[None]:
    """``start(done)`` as a future."""
    future: Future[None] = Future()

    def done(error: Exception | None) -> None:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    start(done)
    return future
