"""The sweep (``blockstore/reclaim.py``): on the loop, in slices, over the maps as they are while it runs.

The design's sweep reads a committed image in a helper process; the code's marks live leaves. Its list of leaves is made
at the start; a leaf is read at its turn. What is found waits in the pending frees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import rules
from tests.model.maps import World
from tests.model.state import SWEEPS, State, Sweep, spend

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def begin_sweep(m: Model, s: State, out: Steps) -> None:
    """``Sweep.start``: what is free, or known to become free, is not to be found again."""
    if s.sweep or not s.budget[SWEEPS]:
        return
    room = s.room
    marks = 1 | room.free | room.pending | room.sealed
    if m.broken == rules.SWEEP_TAKES_NEW:
        marks = 1 | room.pending | room.sealed
    elif m.broken == rules.SWEEP_FREES_TWICE:
        marks = 1 | room.free
    world: World = m.maps.worlds.items[s.world]
    if m.broken == rules.SWEEP_WALKS_MAPS:
        todo = sum(1 << number for number, _, _ in world.maps)
    elif m.broken == rules.SWEEP_LIVE_ONLY:
        todo = sum({1 << leaf for number, _, leaf in world.maps if leaf and number in m.volumes})
    else:
        todo = sum({1 << leaf for _, _, leaf in world.maps if leaf})
    begun = Sweep(marks, todo, m.maps.unreachable(s.world))
    out.append(("a sweep begins", s._replace(sweep=begun, budget=spend(s.budget, SWEEPS))))


def sweep_on(m: Model, s: State, out: Steps) -> None:
    sweep = s.sweep
    if sweep.todo:
        turn = sweep.todo & -sweep.todo
        leaf = turn.bit_length() - 1
        world: World = m.maps.worlds.items[s.world]
        if m.broken == rules.SWEEP_WALKS_MAPS:
            leaf = next((leaf for number, _, leaf in world.maps if number == turn.bit_length() - 1), 0)
        blocks = sum({1 << block for block, _ in world.leaves[leaf - 1][2]}) if leaf else 0
        read = sweep._replace(marks=sweep.marks | blocks, todo=sweep.todo & ~turn)
        out.append((("the sweep reads leaf", leaf), s._replace(sweep=read)))
        return
    found = (1 << m.scope.blocks) - 1 & ~sweep.marks
    room = s.room._replace(pending=s.room.pending | found)
    if m.broken == rules.SWEEP_FREES_NOW:
        room = s.room._replace(free=s.room.free | found)
    world_now, aside = m.maps.retire(s.world, sweep.lost)
    saver = s.saver
    if aside:
        saver = saver._replace(image=m.maps.with_rows(saver.image, aside))
    gone = s.gone if m.broken == rules.IDS_REUSED_NOW else s.gone | sweep.lost
    ended = s._replace(room=room, world=world_now, saver=saver, sweep=None, gone=gone)
    out.append((("the sweep ends; blocks found", found), ended))
