"""Store operations one after another: how a long command is cut so that it neither blocks the loop nor floods it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blockstore.api import Done, Revoked, StoreError
from target.scsi.errors import translate
from target.scsi.result import GOOD
from target.scsi.task import Completion

Step = Callable[[Done], None]
"""Begins one operation; its end goes to the Done."""


class Steps:
    """Takes the next step when the last one is done, and ends the completion after the last, at the first error, or
    when the task is revoked. Steps that are done at once are taken in a loop, not by recursion."""

    __slots__ = ("_completion", "_ready", "_running", "_steps")

    def __init__(self, steps: Iterator[Step], completion: Completion) -> None:
        self._steps = steps
        self._completion = completion
        self._running = False
        self._ready = False

    def run(self, error: StoreError | None = None) -> None:
        """Begin; and the Done of every step."""
        if error is None and self._completion.task.revoked:
            error = Revoked("the task was aborted between two of its steps")
        if error is not None:
            self._completion.end(translate(error))
            return
        self._ready = True
        if self._running:
            return
        self._running = True
        while self._ready:
            self._ready = False
            step = next(self._steps, None)
            if step is None:
                self._completion.end(GOOD)
            else:
                step(self.run)
        self._running = False
