"""The edits that a journal batch may hold besides writes: what changes maps as a whole, and the catalogue.

Values only: how they lie on the disk is ``layout``'s, what they do to a map ``blockmap``'s, what they mean for groups
``catalog``'s. A *map* number names one block map (a volume's, or a snapshot's of one volume) and is never used twice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CreateMap:
    """A new, empty map of ``size`` bytes."""

    map: int
    size: int


@dataclass(frozen=True, slots=True)
class SnapMap:
    """``map`` becomes a frozen image of ``source``."""

    map: int
    source: int


@dataclass(frozen=True, slots=True)
class CloneMap:
    """``map`` becomes a writable copy of ``source``."""

    map: int
    source: int


@dataclass(frozen=True, slots=True)
class RollbackMap:
    """``map`` gets the content and size of ``source``."""

    map: int
    source: int


@dataclass(frozen=True, slots=True)
class ResizeMap:
    """``map`` grows to ``size`` bytes."""

    map: int
    size: int


@dataclass(frozen=True, slots=True)
class DeleteMap:
    """``map`` is gone; what only it referenced comes back by the sweep."""

    map: int


@dataclass(frozen=True, slots=True)
class Put:
    """The catalogue's value of (``kind``, ``key``) is ``value`` from now on."""

    kind: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """The catalogue holds nothing at (``kind``, ``key``) any more."""

    kind: str
    key: str


MapEdit = CreateMap | SnapMap | CloneMap | RollbackMap | ResizeMap | DeleteMap
CatalogEdit = Put | Delete
Edit = MapEdit | CatalogEdit
