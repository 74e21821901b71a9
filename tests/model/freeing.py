"""Blocks freed by the private bit, until they may be used again; and pins (``blockstore/space.py``).

The rule: a block is allocatable when an image begun after its last reference was dropped has committed, and no pin is
older than its free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import rules
from tests.model.state import PINS, Pin, State, bits, spend

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def free_later(m: Model, s: State, blocks: int) -> State | str:
    """``Space.free_later``: a batch dropped the only references to these blocks."""
    room = s.room
    if blocks & (room.free | room.pending | room.sealed):
        return f"of the blocks {bits(blocks)} some are free twice: {room}"
    if m.broken == rules.FREE_NOW:
        return s._replace(room=room._replace(free=room.free | blocks))
    if m.broken == rules.ONE_LIST and s.saver:
        return s._replace(room=room._replace(sealed=room.sealed | blocks))
    return s._replace(room=room._replace(pending=room.pending | blocks))


def release(m: Model, s: State) -> State:
    """``Space.release``: an image has committed. What was freed since a pin began waits for a later one."""
    released = s.room.sealed
    if s.pin and m.broken != rules.PIN_UNSEEN_BY_COMMIT:
        released &= s.pin.before
    room = s.room._replace(free=s.room.free | released, sealed=s.room.sealed & ~released)
    return s._replace(room=room, pin=s.pin and s.pin._replace(before=s.pin.before & ~released))


def pins(m: Model, s: State, out: Steps) -> None:
    """A reader (a token, a send) begins to hold all that is mapped, or lets go of it."""
    if s.pin:
        kept = tuple(kept._replace(pinned=False) for kept in s.kept)
        out.append(("the pin ends", s._replace(pin=None, kept=kept)))
    elif s.budget[PINS]:
        blocks = m.maps.look(s.world, s.meta.medium)[2]
        pin = Pin(blocks, s.room.pending | s.room.sealed)
        out.append((("a pin holds blocks", bits(blocks)), s._replace(pin=pin, budget=spend(s.budget, PINS))))
