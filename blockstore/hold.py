"""Holding a snapshot: while something reads it in the background, it cannot be deleted.

A send takes hours and names blocks that only its snapshot may keep alive. Deleting that snapshot, or its group, is
refused with InUse meanwhile; the alternative, letting it go from sight and keeping its blocks, would make space that
was deleted stay used for a reason nobody sees. So no rule of reclamation knows of sends: the catalogue still names it.
"""

from __future__ import annotations

from blockstore.api import InUse, NotFound
from blockstore.catalog import Catalog, GroupEntry, SnapshotEntry


class Hold:
    """One reader's hold on one snapshot, from construction to ``release``."""

    def __init__(self, catalog: Catalog, group: str, snapshot: str) -> None:
        """Raises NotFound."""
        self._catalog = catalog
        self.group, self.snapshot = find_snapshot(catalog, group, snapshot)
        self._held = True
        catalog.held[self.snapshot.record.uuid] += 1

    def release(self) -> None:
        """Calling it again has no effect."""
        if self._held:
            self._held = False
            self._catalog.held[self.snapshot.record.uuid] -= 1


def find_snapshot(catalog: Catalog, group: str, snapshot: str) -> tuple[GroupEntry, SnapshotEntry]:
    """Raises NotFound."""
    found = catalog.groups.get(group)
    if found is None:
        raise NotFound(f"no group {group!r}")
    entry = catalog.snapshots.get(found.record.uuid, {}).get(snapshot)
    if entry is None:
        raise NotFound(f"group {group} has no snapshot {snapshot!r}")
    return found, entry


def refuse_held(catalog: Catalog, entry: SnapshotEntry) -> None:
    """Raises InUse while somebody reads the snapshot."""
    if catalog.held[entry.record.uuid] > 0:
        raise InUse(
            f"snapshot {entry.record.name} is being read (sent, received onto, compared or verified): end that first"
        )
