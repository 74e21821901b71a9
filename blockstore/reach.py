"""Which nodes the maps of a pool reference, found in slices while the maps go on changing.

For the sweep, which must never take for lost what is referenced. A reference may move while this looks: a snapshot,
clone or rollback copies a root, a copy-on-write copies a page. So roots are visited until none is left that was not (a
rollback makes a new root object, which counts as not visited); a copied page's source stays as it was, frozen, and is
read later.
Invariant: after ``step`` returned False, every node that existed at the start and is referenced is marked.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from blockstore.blockmap import BlockMap
from blockstore.layout import PAGE_ENTRIES

_ENTRIES_PER_SLICE = 1 << 19  # root and page entries marked in one go, about 2 ms
_PRICE_OF_A_ROOT = 1 << 8  # entries that could be marked in the time that turning to another root takes
_PAGES_PER_SLICE = _ENTRIES_PER_SLICE // PAGE_ENTRIES

Marks = npt.NDArray[np.bool_]


class Reach:
    """``pages`` and ``leaves``: by node id, whether something references it. Nodes made later are not in them."""

    def __init__(self, blockmap: BlockMap) -> None:
        self._blockmap = blockmap
        self.pages: Marks = np.zeros(blockmap.pages.top, np.bool_)
        self.leaves: Marks = np.zeros(blockmap.leaves.top, np.bool_)
        self._visited: dict[int, array[int]] = {}  # by map: the root that was read; kept, so that no other is its twin
        self._roots = list(blockmap.maps.values())
        self._page_ids: npt.NDArray[np.int64] | None = None

    def step(self) -> bool:
        """Do one slice; whether there is more to do."""
        if self._page_ids is None:
            self._visit_roots()
            return True
        ids, self._page_ids = self._page_ids[:_PAGES_PER_SLICE], self._page_ids[_PAGES_PER_SLICE:]
        rows = self._blockmap.pages.id_array.reshape(-1, PAGE_ENTRIES)[ids]
        _mark(self.leaves, rows.ravel())
        if len(self._page_ids):
            return True
        self.leaves[0] = False
        return False

    def _visit_roots(self) -> None:
        budget = _ENTRIES_PER_SLICE
        while self._roots and budget > 0:
            one = self._roots.pop()
            self._visited[one.number] = one.root
            _mark(self.pages, np.frombuffer(one.root, np.uint32))
            budget -= len(one.root) + _PRICE_OF_A_ROOT
        if not self._roots:
            maps, visited = self._blockmap.maps, self._visited
            self._roots = [one for one in maps.values() if visited.get(one.number) is not one.root]
        if not self._roots:
            self.pages[0] = False
            self._page_ids = np.flatnonzero(self.pages)


def _mark(marks: Marks, ids: npt.NDArray[np.uint32]) -> None:
    """Ids behind the end are of nodes made since: nobody takes these for lost."""
    marks[ids if not len(ids) or int(ids.max()) < len(marks) else ids[ids < len(marks)]] = True
