"""Whom a block belongs to: the smallest of map, volume's snapshots, group's snapshots, group or pool that holds every
reference to it.

These form a tree, so the owner of a block is the lowest common ancestor of the maps that reference it, and what
deleting something frees is what its subtree owns. A snapshot of several volumes is the sum of its maps: no block is
shared between two LUNs of one group, because clones and rollbacks keep LUNs (a future COPY between them would make a
snapshot's figure too small, never too large). Invariant: a parent's number is less than its children's.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import numpy as np
import numpy.typing as npt

from blockstore.api import GroupUsage, SnapshotUsage, VolumeUsage
from blockstore.catalog import Catalog
from blockstore.layout import UNIT

POOL = 0
NOBODY = (1 << 32) - 1  # owner of what nothing references (so far)

Owners = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class OwnerTree:
    """The owners that a catalogue makes possible. ``of_map``: the leaf of the tree for each map that a group or
    snapshot names; others (of an unfinished receive) are the pool's: what they share is nobody else's own."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._parents = [POOL]
        groups = [entry.record.uuid for entry in catalog.groups.values()]
        self._groups = {group: self._add(POOL) for group in groups}
        self._snapshots = {group: self._add(owner) for group, owner in self._groups.items()}
        self._volumes: dict[tuple[UUID, int], int] = {}  # owner of what only snapshots of that LUN reference
        for group in groups:
            luns = {lun for snapshot in catalog.snapshots.get(group, {}).values() for lun in snapshot.maps}
            self._volumes.update({(group, lun): self._add(self._snapshots[group]) for lun in sorted(luns)})
        self.of_map: dict[int, int] = {}
        for entry in catalog.groups.values():
            for number in entry.maps.values():
                self.of_map[number] = self._add(self._groups[entry.record.uuid])
            for snapshot in catalog.snapshots.get(entry.record.uuid, {}).values():
                for lun, number in snapshot.maps.items():
                    self.of_map[number] = self._add(self._volumes[snapshot.group, lun])
        self.parents: Owners = np.array(self._parents, np.uint32)

    def _add(self, parent: int) -> int:
        self._parents.append(parent)
        return len(self._parents) - 1

    def __len__(self) -> int:
        return len(self._parents)

    def meet(self, one: Owners, other: Owners) -> Owners:
        """Elementwise, the lowest owner that holds both."""
        while True:
            apart = one != other
            if not apart.any():
                return one
            below = one > other  # the greater number is never an ancestor of the other: it goes up
            one, other = (
                np.where(apart & below, self.parents[one], one),
                np.where(apart & ~below, self.parents[other], other),
            )

    def meet_one(self, one: int, other: int) -> int:
        """As ``meet``, of two owners."""
        while one != other:
            one, other = (self._parents[one], other) if one > other else (one, self._parents[other])
        return one

    def join(self, owners: Owners, at: npt.NDArray[np.integer], joining: Owners) -> None:
        """``joining`` references the places ``at``; a place may occur several times."""
        found = owners[at]
        fresh = found == NOBODY
        owners[at if fresh.all() else at[fresh]] = joining if fresh.all() else joining[fresh]
        while True:  # each turn takes some place higher, and the tree has five levels
            found = owners[at]
            apart = np.flatnonzero(found != joining)
            if not len(apart):
                return
            meeting = self.meet(found[apart], joining[apart])
            higher = meeting != found[apart]
            apart = apart[higher]
            owners[at[apart]] = meeting[higher]
            at, joining = at[apart], joining[apart]

    def usage(self, owned: Counts, mapped: Mapping[int, int]) -> dict[UUID, GroupUsage]:
        """``owned``: blocks by owner; ``mapped``: blocks by map."""
        own: list[int] = (owned * UNIT).tolist()
        subtree = own.copy()
        for owner in range(len(self) - 1, POOL, -1):
            subtree[self._parents[owner]] += subtree[owner]
        return {
            entry.record.uuid: GroupUsage(
                exclusive=subtree[self._groups[entry.record.uuid]],
                reclaimable=subtree[self._snapshots[entry.record.uuid]],
                volumes={
                    lun: VolumeUsage(
                        mapped=mapped[number] * UNIT,
                        exclusive=own[self.of_map[number]],
                        reclaimable=self._reclaimable(entry.record.uuid, lun, subtree),
                    )
                    for lun, number in entry.maps.items()
                },
                snapshots={
                    snapshot.record.uuid: SnapshotUsage(
                        mapped=sum(mapped[number] for number in snapshot.maps.values()) * UNIT,
                        exclusive=sum(own[self.of_map[number]] for number in snapshot.maps.values()),
                    )
                    for snapshot in self._catalog.snapshots.get(entry.record.uuid, {}).values()
                },
            )
            for entry in self._catalog.groups.values()
        }

    def _reclaimable(self, group: UUID, lun: int, subtree: list[int]) -> int:
        owner = self._volumes.get((group, lun))
        return 0 if owner is None else subtree[owner]
