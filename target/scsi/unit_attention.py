"""Unit attention conditions of one logical unit, kept for each I_T nexus (SAM-5, Unit attention conditions)."""

from __future__ import annotations

from target.scsi.nexus import Nexus
from target.scsi.sense import Condition

_RESET_ASC = 0x29


class UnitAttentions:
    """Invariant: ``pending`` has only nexuses with at least one condition, so that an empty dict means "none"."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: dict[Nexus, list[Condition]] = {}

    def establish(self, nexus: Nexus, condition: Condition) -> None:
        """Queue a condition once. Resets come first, and a reset takes the place of an earlier one (SAM-5, unit
        attention precedence: the lower qualifier says more)."""
        waiting = self.pending.setdefault(nexus, [])
        if condition.asc != _RESET_ASC:
            if condition not in waiting:
                waiting.append(condition)
            return
        if waiting and waiting[0].asc == _RESET_ASC:
            waiting[0] = min(waiting[0], condition, key=lambda reset: reset.ascq)
        else:
            waiting.insert(0, condition)

    def take(self, nexus: Nexus) -> Condition | None:
        """The next condition for ``nexus``; it is reported by the caller and so cleared."""
        waiting = self.pending.get(nexus)
        if waiting is None:
            return None
        condition = waiting.pop(0)
        if not waiting:
            del self.pending[nexus]
        return condition

    def clear(self, nexus: Nexus, condition: Condition) -> None:
        """Forget a condition that was learnt otherwise."""
        waiting = self.pending.get(nexus, [])
        if condition in waiting:
            waiting.remove(condition)
            if not waiting:
                del self.pending[nexus]

    def forget(self, nexus: Nexus) -> None:
        """The nexus is gone."""
        self.pending.pop(nexus, None)
