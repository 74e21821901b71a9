"""Which leaves are in memory (``blockstore/residency.py``): eviction, and loading by a helper thread.

An absent leaf is read from the committed image. Whoever looks at the maps loads it first; ``maps.look`` reads it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import rules
from tests.model.maps import ABSENT, CLEAN, SAVED, Image, World
from tests.model.state import EVICTIONS, LOADS, Load, State, spend

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def evict(m: Model, s: State, out: Steps) -> None:
    """Only what a committed image has goes, and not while a row that was read before may still come."""
    if not s.budget[EVICTIONS]:
        return
    states = (CLEAN, SAVED) if m.broken == rules.SAVED_EVICTED else (CLEAN,)
    loading = 0 if m.broken == rules.EVICTED_LOADING else sum({1 << load.leaf for load in s.loads})
    evictable = m.maps.in_state(s.world, states) & ~loading
    for leaf in _reachable(m, s):
        if evictable >> leaf & 1:
            world = m.maps.set_state(s.world, 1 << leaf, ABSENT)
            out.append((("evict leaf", leaf), s._replace(world=world, budget=spend(s.budget, EVICTIONS))))


def load(m: Model, s: State, out: Steps) -> None:
    """The helper thread's part: several may be under way, of the same leaf too."""
    if not s.budget[LOADS]:
        return
    absent = m.maps.in_state(s.world, (ABSENT,))
    if absent:
        image: Image = m.maps.images.items[s.meta.medium]
        for row in image.nodes:
            if absent >> row[0] & 1 and row[0] in _reachable(m, s):
                loads = tuple(sorted((*s.loads, Load(*row))))
                out.append((("read the row of leaf", row[0]), s._replace(loads=loads, budget=spend(s.budget, LOADS))))


def take_in(m: Model, s: State, out: Steps) -> None:
    """The loop's part: a row of a leaf that is no longer absent, or is another one by now, is dropped."""
    for i, row in enumerate(s.loads):
        world: World = m.maps.worlds.items[s.world]
        state, born, _ = world.leaves[row.leaf - 1]
        left = s._replace(loads=(*s.loads[:i], *s.loads[i + 1 :]))
        absent = state == ABSENT or m.broken == rules.LOADED_STATE
        if absent and (born == row.born or m.broken == rules.LOADED_BORN):
            taken = left._replace(world=m.maps.take_in(s.world, row.leaf, row.entries))
            out.append((("take in leaf", row.leaf), taken))
        else:
            out.append((("drop the row of leaf", row.leaf), left))


def _reachable(m: Model, s: State) -> list[int]:
    world: World = m.maps.worlds.items[s.world]
    return sorted({leaf for _, _, leaf in world.maps if leaf})
