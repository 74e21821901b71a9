"""The nouns of a group's move to another pool, and the one rule about copies: which of several is the group.

While a group moves, and for a moment after it, two pools have a copy of it. Invariant: ``owner`` names at most one of
them, and never one that is leaving; where it names none, the group is answered "try again".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from pydantic import Field

from blockyard.model import Group, Value

P = TypeVar("P")


def owner(copies: Sequence[tuple[P, Group]]) -> tuple[P, Group] | None:
    """The copy that is the group: the one of the highest generation. None where that one is leaving, and whether it has
    arrived is not known; None, too, if two have the same: somebody copied a pool, and neither may be written."""
    newest = max((group.generation for _, group in copies), default=0)
    found = [(pool, group) for pool, group in copies if group.generation == newest]
    return found[0] if len(found) == 1 and found[0][1].leaving is None else None


class ChainLink(Value):
    """A snapshot of a group that moves."""

    name: str
    uuid: UUID
    identity: UUID
    """The same for all copies of its content."""
    sizes: dict[int, int]
    """Bytes of each volume, by LUN."""
    record: str
    """All of it, as one pool's catalogue tells the other's; nothing for the daemon to read."""


class ChainPage(Value):
    """Part of a group's snapshots, oldest first."""

    links: tuple[ChainLink, ...]
    next: str | None


class Departed(Value):
    """What the source has said when it stopped serving."""

    record: str = Field(repr=False)
    """The group's, with its CHAP secrets; nothing for the daemon to read."""
    generation: int
    last: ChainLink


class Arriving(Value):
    """A group that is on its way into a pool, and how far it has come."""

    group: UUID
    name: str


class ArrivalState(Value):
    snapshots: tuple[UUID, ...]
    """Those that are there."""
    digest: str
    """Of ``snapshots``, as ``LeaveGroup`` compares it."""
    staged: UUID | None
    """Identity of the one that is half there."""
    staged_base: UUID | None
    token: str | None
    """Where it goes on."""


class MoveReport(Value):
    """A move's end."""

    group: str
    source: str
    to: str
    generation: int
    moved: bool
    """False: it was there already."""
    copied: int = 0
    """Bytes of streams, after compression."""
    snapshots: int = 0
    """That were copied, the move's own included."""
    seconds: float = 0.0
    stalled: float = 0.0
    """Seconds from the end of serving here to its beginning there."""
