"""Long work on the loop thread, written as a generator that yields the futures it waits for.

Not a scheduler: each step runs when the future before it is answered, on the loop thread, so that state needs no lock.
Used by what takes minutes (send, receive, scrub, diff); the data path has callbacks. Invariant: a step holds the loop
no longer than the work between two ``yield``s; bytes are read, checked and packed in helper threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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


def all_answered(starts: Sequence[Callable[[Done], None]]) -> Future[None]:
    """Start all of them at once; answered when the last of them is, with the first error if there was any."""
    future: Future[None] = Future()
    left = len(starts)
    first: Exception | None = None

    def done(error: Exception | None) -> None:
        nonlocal left, first
        left -= 1
        first = first or error
        if left == 0:
            if first is None:
                future.set_result(None)
            else:
                future.set_exception(first)

    if not starts:
        future.set_result(None)
    for start in starts:
        start(done)
    return future
