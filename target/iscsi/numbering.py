"""Command numbering: which CmdSN is next, which wait, which are ignored (RFC 7143 4.2.2.1).

Invariant: ``exp_cmd_sn`` and ``max_cmd_sn`` never go back in serial order, and ``max_cmd_sn`` is at least
``exp_cmd_sn`` - 1 (then the window is closed). Numbers held are all inside the window and after ``exp_cmd_sn``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from target.iscsi.serial import MASK, add, less, less_or_equal


class Place(Enum):
    """Where a non-immediate command's CmdSN lies."""

    NEXT = "next"
    AHEAD = "ahead"
    OUTSIDE = "outside"  # or received before: ignored without an answer


class CommandNumbering:
    """ExpCmdSN, MaxCmdSN, and the commands that arrived before their turn."""

    __slots__ = ("_held", "_held_bytes", "exp_cmd_sn", "max_cmd_sn", "window")

    def __init__(self, cmd_sn: int, window: int) -> None:
        self.exp_cmd_sn = cmd_sn
        self.window = window
        self.max_cmd_sn = add(cmd_sn, window - 1)
        self._held: dict[int, Callable[[], None] | None] = {}
        self._held_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether commands wait for a gap to be filled."""
        return bool(self._held)

    def waiting_bytes(self, amount: int) -> int:
        """Bytes of request data that wait, ``amount`` more included from now on; 0 when nothing waits."""
        self._held_bytes = self._held_bytes + amount if self._held else 0
        return self._held_bytes

    def place(self, cmd_sn: int) -> Place:
        if not self.inside(cmd_sn) or cmd_sn in self._held:
            return Place.OUTSIDE
        return Place.NEXT if cmd_sn == self.exp_cmd_sn else Place.AHEAD

    def inside(self, cmd_sn: int) -> bool:
        """Whether ``cmd_sn`` is in [ExpCmdSN, MaxCmdSN]."""
        return less_or_equal(self.exp_cmd_sn, cmd_sn) and less_or_equal(cmd_sn, self.max_cmd_sn)

    def receive(self, cmd_sn: int, action: Callable[[], None]) -> None:
        """Run ``action`` in its turn: now, with those that waited for it, or when the gap before it is filled."""
        if cmd_sn != self.exp_cmd_sn:
            self._held[cmd_sn] = action
            return
        self.exp_cmd_sn = (cmd_sn + 1) & MASK
        action()
        if self._held:
            self._run_held()

    def plug(self, cmd_sn: int) -> None:
        """Count ``cmd_sn`` (inside the window) as received; its command, if it waits or comes later, is ignored."""
        self._held[cmd_sn] = None
        self._run_held()

    def _run_held(self) -> None:
        while self.exp_cmd_sn in self._held:
            action = self._held.pop(self.exp_cmd_sn)
            self.exp_cmd_sn = (self.exp_cmd_sn + 1) & MASK
            if action is not None:
                action()

    def grant(self, in_progress: int) -> None:
        """Open the window for as many commands as ``in_progress`` leaves room for."""
        new = (self.exp_cmd_sn + self.window - in_progress - 1) & MASK
        if less(self.max_cmd_sn, new):
            self.max_cmd_sn = new
