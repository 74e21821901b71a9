"""What a journal batch may hold: writes and trims of grains, changes of maps as a whole, and of the catalogue.

Values only: how they lie on the disk is ``layout``'s, what they do to a map ``blockmap``'s, what they mean for groups
``catalog``'s. A *map* number names one block map (a volume's, or a snapshot's of one volume) and is never used twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Crcs = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Write:
    """Grains ``grain``... of ``map`` are stored at ``entry``... (consecutive blocks), with these checksums."""

    map: int
    grain: int
    entry: int
    crcs: Crcs


@dataclass(frozen=True, slots=True)
class Trim:
    """``count`` grains of ``map`` from ``grain`` are unmapped: they read as zeros."""

    map: int
    grain: int
    count: int


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
Record = Write | Trim | Edit
