"""The sweep (``blockstore/reclaim.py``): a helper process reads a committed image, the loop releases what it found.

The helper reads in one transaction, hence in one step. The loop keeps what was unavailable when an image was begun, by
epoch, once: a second sweep of the same image, or of one begun before the first was applied, would find the same again.
What is found was unreferenced at an image that has committed, so no image and no batch that recovery may replay names
it: it is free at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import rules
from tests.model.maps import ABSENT, CLEAN, FREE, RETIRED, SAVED, Image
from tests.model.state import SWEEPS, Kept, Room, State, Sweep, bits, spend

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def unavailable(m: Model, room: Room) -> int:
    """What a sweep must not find: free, or known to become free."""
    if m.broken == rules.SWEEP_FINDS_PENDING:
        return room.free
    return room.free | room.pending | room.sealed


def keep(m: Model, s: State, epoch: int) -> tuple[Kept, ...]:
    """An image of ``epoch`` begins. One that was given up has the same epoch, and never committed."""
    if not s.sweep and not s.budget[SWEEPS]:
        return ()
    if m.broken == rules.KEPT_AT_SWITCH and any(kept.epoch == epoch for kept in s.kept):
        return s.kept
    now = Kept(epoch, unavailable(m, s.room), s.pin is not None)
    return (*(kept for kept in s.kept if kept.epoch != epoch), now)


def without_old(s: State, epoch: int) -> tuple[Kept, ...]:
    """The image of ``epoch`` has committed: no sweep begins to read an older one."""
    read = s.sweep.epoch if s.sweep else epoch
    return tuple(kept for kept in s.kept if kept.epoch >= epoch or kept.epoch == read)


def begin_sweep(m: Model, s: State, out: Steps) -> None:
    """The helper sees what is committed, and says which epoch that is."""
    if s.sweep or not s.budget[SWEEPS]:
        return
    number = s.meta.cache if m.broken == rules.SWEEP_UNCOMMITTED else s.meta.medium
    image: Image = m.maps.images.items[number]
    if m.broken != rules.SWEEP_OTHER_EPOCH and not any(kept.epoch == image.epoch for kept in s.kept):
        return  # its result would be discarded
    sweep = Sweep(image.epoch, *m.maps.reach(number))
    begun = s._replace(sweep=sweep, budget=spend(s.budget, SWEEPS))
    out.append((("a sweep reads the image of epoch", image.epoch), begun))


def end_sweep(m: Model, s: State, out: Steps) -> None:
    """The helper's result reaches the loop."""
    kept = _kept(m, s)
    if kept is None or (kept.pinned and s.pin and m.broken != rules.PIN_UNSEEN_BY_SWEEP):
        return
    not_ours = unavailable(m, s.room) if m.broken == rules.UNAVAILABLE_AT_END else kept.unavailable
    found = (1 << m.scope.blocks) - 2 & ~(s.sweep.marks | not_ours)
    label = "the sweep ends; found: blocks", bits(found), "leaves", bits(s.sweep.lost)
    if found & s.room.free:
        out.append((label, f"of the blocks {bits(found)} some are free twice: {s.room}"))
        return
    if s.sweep.lost & ~m.maps.in_state(s.world, (CLEAN, SAVED, ABSENT)):
        out.append((label, f"of the leaves {bits(s.sweep.lost)} some are retired twice, or changed since"))
        return
    at_once = m.broken == rules.IDS_REUSED_NOW
    ended = s._replace(
        room=s.room._replace(free=s.room.free | found),
        world=m.maps.set_state(s.world, s.sweep.lost, FREE if at_once else RETIRED),
        sweep=None,
        kept=_still_kept(m, s, kept),
        gone=s.gone if at_once else s.gone | s.sweep.lost,
    )
    out.append((label, ended))


def _still_kept(m: Model, s: State, used: Kept) -> tuple[Kept, ...]:
    """Nothing: images begun before now do not know what was just released."""
    if m.broken == rules.KEPT_ON:
        return s.kept
    return tuple(kept for kept in s.kept if kept != used) if m.broken == rules.KEPT_DURING else ()


def _kept(m: Model, s: State) -> Kept | None:
    if m.broken == rules.SWEEP_OTHER_EPOCH:
        return s.kept[-1] if s.kept else None
    return next((kept for kept in s.kept if kept.epoch == s.sweep.epoch), None)
