"""Every state that can be reached within a scope, breadth first: the first one found wrong has the shortest trace."""

from __future__ import annotations

import gc
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.model import durability, freeing, recovering, residency, rules, sweeping, writing
from tests.model.disk import Crashes
from tests.model.maps import Image, Maps
from tests.model.state import (
    APPENDED,
    SERVING,
    STOPPED,
    UNDECIDED,
    WRITTEN,
    Interned,
    JournalFile,
    Meta,
    Scope,
    State,
    bits,
)

Label = Any
"""What happened: a string, or a tuple of words and numbers."""
Steps = list[tuple[Label, State | str]]
"""(what happens, the state then or what is wrong with it)."""


class Model:
    """The store's rules, or all of them but ``broken``, within ``scope``."""

    def __init__(self, scope: Scope, broken: str = "") -> None:
        assert not broken or broken in {**rules.SENTENCES, **rules.BACKED_UP}, f"no such rule: {broken}"
        self.scope = scope
        self.broken = broken
        self.volumes = tuple(range(1, scope.volumes + 1))
        self.grains = tuple(range(scope.grains))
        self.maps = Maps(scope, broken)
        self.batches = Interned()
        self.crashes = Crashes(self.maps, self.batches)

    def start(self) -> State:
        """A pool just created, with empty volumes, that serves."""
        scope = self.scope
        roots = tuple((volume, 1, 0) for volume in self.volumes)
        image = self.maps.images(Image(2, -99, 1, 1, scope.volumes + 1, 1, 0, roots, ()))
        blank = (0,) * scope.blocks
        files = JournalFile(), JournalFile()
        memory = recovering.NOTHING | {"mode": SERVING, "history": (), "must": 0, "budget": scope.budget()}
        return recovering.serving(self, State(blank, blank, 0, files, Meta(image, image), 0, **memory))

    def steps(self, s: State) -> Steps:
        out: Steps = []
        if s.mode == SERVING:
            self._serve(s, out)
        elif s.mode == STOPPED:
            writing.answer_undecided(self, s, out)
        else:
            recovering.recover(self, s, out)
        recovering.crash(self, s, out)
        return out

    def _serve(self, s: State, out: Steps) -> None:
        if s.write is None:
            writing.begin(self, s, out)
            self._background(s, out)
        else:
            writing.go_on(self, s, out)
            self._between(s, out)
        if s.round:
            durability.round_syncs(self, s, out)
        if s.saver:
            durability.saver_syncs(self, s, out)

    def _background(self, s: State, out: Steps) -> None:
        """The loop's other callbacks."""
        durability.begin_round(self, s, out)
        durability.finish_round(self, s, out)
        durability.begin_checkpoint(self, s, out)
        if s.saver:
            durability.saver_on_loop(self, s, out)
        sweeping.begin_sweep(self, s, out)
        if s.sweep:
            sweeping.end_sweep(self, s, out)
        freeing.pins(self, s, out)
        residency.evict(self, s, out)
        residency.load(self, s, out)
        residency.take_in(self, s, out)

    def _between(self, s: State, out: Steps) -> None:
        """What a broken rule lets into the middle of a batch."""
        if self.broken == rules.SWITCH_BEFORE_APPLY and s.write.stage == APPENDED:
            durability.begin_checkpoint(self, s, out)
        if self.broken == rules.SWITCH_IN_BATCH and s.write.stage == WRITTEN:
            durability.begin_checkpoint(self, s, out)

    def problem(self, s: State) -> str | None:
        """What is wrong with a state: maps that hold something else than the oracle, or name damaged blocks."""
        if s.mode not in (SERVING, STOPPED):
            return None
        contents, entries, blocks = self.maps.look(s.world, s.meta.medium)
        cache = s.cache
        for block, value in entries:
            if cache[block] != value:
                return f"a read of block {block} finds value {cache[block]}, its checksum is of {value}"
        room = s.room
        if blocks & (room.free | room.pending | room.sealed):
            return f"of the referenced blocks {bits(blocks)} some are free, or will be: {room}"
        if room.free & (room.pending | room.sealed) or room.pending & room.sealed:
            return f"some blocks are free twice: {room}"
        if s.pin and s.pin.blocks & room.free:
            return f"of the pinned blocks {bits(s.pin.blocks)} some are free: {room}"
        expected = s.history[-2:] if s.write and s.write.stage == UNDECIDED else s.history[-1:]
        if contents not in expected and (not s.write or s.write.stage == UNDECIDED):
            seen, allowed = (self.maps.contents.items[number] for number in (contents, expected[-1]))
            return f"the maps hold {seen}, the oracle {allowed}"
        return None

    def tell(self, label: Label) -> str:
        """A step in words."""
        return label if isinstance(label, str) else " ".join(map(str, label))


@dataclass
class Outcome:
    states: int
    steps: int
    problem: str | None = None
    complete: bool = False
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{i:3} {step}" for i, step in enumerate(self.trace, 1)]
        return "\n".join([*lines, f"    => {self.problem}", f"    ({self.states} states)"])


def explore(model: Model, limit: int = 10_000_000) -> Outcome:
    """All states, or as many as ``limit`` says, or the first wrong one. Nothing here is garbage: without looking for it
    this takes half the time."""
    gc.disable()
    try:
        return _explore(model, limit)
    finally:
        gc.enable()


def _explore(model: Model, limit: int) -> Outcome:
    start = model.start()
    parents: dict[State, tuple[State, Label] | None] = {start: None}
    queue = deque([start])
    steps = 0
    while queue and len(parents) < limit:
        s = queue.popleft()
        for label, t in model.steps(s):
            steps += 1
            if isinstance(t, str):
                return Outcome(len(parents), steps, t, trace=trace(model, parents, s, label))
            if t in parents:
                continue
            parents[t] = s, label
            wrong = model.problem(t)
            if wrong is not None:
                return Outcome(len(parents), steps, wrong, trace=trace(model, parents, s, label))
            queue.append(t)
    return Outcome(len(parents), steps, complete=not queue)


def trace(model: Model, parents: dict[State, tuple[State, Label] | None], s: State, last: Label) -> list[str]:
    words = [model.tell(last)]
    while (came := parents[s]) is not None:
        s, label = came
        words.append(model.tell(label))
    return words[::-1]
