"""The futures that verbs return: made in one way, so that no caller can break the round that answers it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from blockstore.api import StoreError

T = TypeVar("T")


def new_future() -> Future[T]:
    """One that its owner cannot cancel: the verb goes on all the same, and answering it must not raise among others
    that wait for the same round."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    return future


def resolve(future: Future[T], error: StoreError | None, result: T) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
