"""Everything that a simulated world does is a step, and a process can be killed at each of them.

A killed process does nothing more: whatever its ``finally`` still tries is refused, as a real kill would have it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Killed(BaseException):
    """The process is dead. Not an Exception, so that nothing catches it by accident."""


class Moment(StrEnum):
    BEFORE = "before"
    HALFWAY = "halfway"
    """Where a step has a state in between, else as ``BEFORE``."""
    AFTER = "after"


class Steps:
    """Shared by a host and its target. ``kill_at`` counts from 1."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self._kill_at = 0
        self._moment = Moment.BEFORE
        self._dead = False

    def plan(self, kill_at: int, moment: Moment) -> None:
        self.restart()
        self._kill_at, self._moment = kill_at, moment

    def restart(self) -> None:
        """Another process begins, which nobody kills."""
        self.count, self._kill_at, self._dead = 0, 0, False
        self.names = []

    def do(self, name: str, effect: Callable[[], T], halfway: Callable[[], object] | None = None) -> T:
        self.look()
        self.count += 1
        self.names.append(name)
        if self.count != self._kill_at:
            return effect()
        self._dead = True
        if self._moment is Moment.HALFWAY and halfway is not None:
            halfway()
        elif self._moment is Moment.AFTER:
            effect()
        raise Killed(f"killed {self._moment} step {self.count}, {name}")

    def look(self) -> None:
        """Reading changes nothing, but the dead don't read."""
        if self._dead:
            raise Killed("dead already")
