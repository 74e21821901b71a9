"""The block maps in small (``blockstore/blockmap.py``): maps, leaves shared by copy-on-write, and the image's nodes.

A map is one root with one leaf; pages are left out (they obey the leaves' rules). Every operation is a pure function of
interned values and remembered, since thousands of states share each of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model import rules
from tests.model.state import Interned, Scope

FREE, CLEAN, DIRTY, TO_SAVE, SAVED, ABSENT, RETIRED = range(7)
"""A leaf's state: unused; as the committed image has it; changed since; changed before the switch and not yet copied
into the image being made; copied there, and that is not committed; as the committed image has it, and only there;
unreferenced, its id not yet reusable."""

Entry = tuple[int, int, bool]
"""(block, value that its checksum belongs to, private: only this leaf names the block)."""
UNMAPPED: Entry = (0, 0, False)
Leaf = tuple[int, int, tuple[Entry, ...]]
"""(state, born, entries)."""
Row = tuple[int, int, tuple[Entry, ...]]
"""A node of an image: (id, born, entries)."""
Record = tuple[Any, ...]
Look = tuple[int, tuple[tuple[int, int], ...], int]
"""(what all maps hold, as a number; (block, value) of every entry that a map references; their blocks as bits)."""


class World(NamedTuple):
    """``BlockMap``: maps are (number, generation, leaf id); leaf n lies at index n - 1."""

    generation: int
    next_map: int
    maps: tuple[tuple[int, int, int], ...]
    leaves: tuple[Leaf, ...]


class Image(NamedTuple):
    """``checkpoint.Superblock`` and the tables."""

    epoch: int
    seed: int
    next_seq: int
    generation: int
    next_map: int
    high: int
    boot: int
    roots: tuple[tuple[int, int, int], ...]
    nodes: tuple[Row, ...]


class Change(NamedTuple):
    """What a batch does to the maps: the world afterwards, nodes copied aside, blocks freed as bits."""

    world: int
    aside: tuple[Row, ...]
    freed: int


class NoLeaf(Exception):
    """All leaf ids are taken."""


class Maps:
    def __init__(self, scope: Scope, broken: str) -> None:
        self._volumes = range(1, scope.volumes + 1)
        self._empty = (UNMAPPED,) * scope.grains
        self._capacity = scope.leaves
        self._broken = broken
        self.worlds = Interned()
        self.images = Interned()
        self.contents = Interned()
        self._applied: dict[tuple[int, tuple[Record, ...]], Change | None] = {}
        self._looks: dict[tuple[int, int], Look] = {}
        self._whole: dict[int, bool] = {}
        self._reached: dict[int, tuple[int, int]] = {}
        self._expected: dict[tuple[int, tuple[Record, ...]], int] = {}
        self._switched: dict[int, tuple[int, int]] = {}
        self._copied: dict[int, tuple[int, Row | None]] = {}
        self._loaded: dict[tuple[int, int], int] = {}

    # ------------------------------------------------------------------------------------------------ look-up

    def look(self, number: int, image: int) -> Look:
        """What a reader of all maps finds: absent leaves are read from the committed ``image``."""
        whole = self._whole.get(number)
        if whole is None:
            whole = all(leaf[0] != ABSENT for leaf in self.worlds.items[number].leaves)
            whole = self._whole[number] = whole or self._broken == rules.ABSENT_READ
        key = (number, 0) if whole else (number, image)
        found = self._looks.get(key)
        if found is None:
            world: World = self.worlds.items[number]
            stored = {} if whole else {row[0]: row[2] for row in self.images.items[image].nodes}
            rows = {map_: self._read(world, leaf, stored) for map_, _, leaf in world.maps}
            values = tuple((map_, tuple(value for _, value, _ in row)) for map_, row in rows.items())
            entries = tuple(sorted({entry[:2] for row in rows.values() for entry in row if entry[0]}))
            found = self._looks[key] = self.contents(values), entries, sum({1 << block for block, _ in entries})
        return found

    def _read(self, world: World, leaf: int, stored: dict[int, tuple[Entry, ...]]) -> tuple[Entry, ...]:
        if leaf and world.leaves[leaf - 1][0] == ABSENT:
            return stored.get(leaf, self._empty)
        return self._entries(world, leaf)

    def is_absent(self, number: int, volume: int) -> bool:
        """Whether the leaf of a volume must be loaded before it is believed."""
        world: World = self.worlds.items[number]
        leaf = next(one[2] for one in world.maps if one[0] == volume)
        return leaf != 0 and world.leaves[leaf - 1][0] == ABSENT

    def _entries(self, world: World, leaf: int) -> tuple[Entry, ...]:
        return world.leaves[leaf - 1][2] if leaf else self._empty

    def expect(self, contents: int, records: tuple[Record, ...]) -> int:
        """What all maps are to hold after a batch, told without leaves or generations: the oracle's own arithmetic."""
        key = contents, records
        if key not in self._expected:
            values = dict(self.contents.items[contents])
            for record in records:
                match record:
                    case ("WRITE", number, grain, _, value):
                        values[number] = (*values[number][:grain], value, *values[number][grain + 1 :])
                    case ("TRIM", number, grain):
                        values[number] = (*values[number][:grain], 0, *values[number][grain + 1 :])
                    case ("DROP", number):
                        values[number] = (0,) * len(values[number])
                    case ("SNAP" | "ROLLBACK", number, source):
                        values[number] = values[source]
                    case ("DELETE", number):
                        del values[number]
            self._expected[key] = self.contents(tuple(sorted(values.items())))
        return self._expected[key]

    # ------------------------------------------------------------------------------------------------ changes

    def apply(self, number: int, records: tuple[Record, ...]) -> Change | None:
        """None when no leaf is left."""
        key = number, records
        if key not in self._applied:
            world: World = self.worlds.items[number]
            aside: list[Row] = []
            freed: set[int] = set()
            try:
                for record in records:
                    world = self._change(world, record, aside, freed)
                self._applied[key] = Change(self.worlds(world), tuple(aside), sum(1 << block for block in freed))
            except NoLeaf:
                self._applied[key] = None
        return self._applied[key]

    def _change(self, world: World, record: Record, aside: list[Row], freed: set[int]) -> World:
        match record:
            case ("WRITE", number, grain, block, value):
                return self._set(world, number, grain, (block, value, True), aside, freed)
            case ("TRIM", number, grain):
                leaf = next(leaf for map_, _, leaf in world.maps if map_ == number)
                mapped = self._entries(world, leaf)[grain][0]
                return self._set(world, number, grain, UNMAPPED, aside, freed) if mapped else world
            case ("DROP", number):
                freed |= self._private(world, number, frozen=self._broken == rules.BIT_IN_FROZEN_DROP)
                maps = ((one[0], one[1], 0) if one[0] == number else one for one in world.maps)
                return world._replace(maps=tuple(maps))
            case ("SNAP", number, source):
                return self._snap(world, number, source)
            case ("DELETE", number):
                if self._broken in (rules.BIT_IN_DELETED, rules.DROPPED_FREES):
                    freed |= self._private(world, number, frozen=self._broken == rules.BIT_IN_DELETED)
                return world._replace(maps=tuple(one for one in world.maps if one[0] != number))
            case ("ROLLBACK", number, source):
                if self._broken == rules.DROPPED_FREES:
                    freed |= self._private(world, number, frozen=False)
                generation = world.generation + 1
                leaf = next(one[2] for one in world.maps if one[0] == source)
                maps = ((one[0], generation, leaf) if one[0] in (number, source) else one for one in world.maps)
                return world._replace(generation=generation, maps=tuple(maps))
        raise AssertionError(record)

    def _snap(self, world: World, number: int, source: int) -> World:
        generation = world.generation + 1
        leaf = next(one[2] for one in world.maps if one[0] == source)
        maps = [one for one in world.maps if one[0] != number]
        if self._broken != rules.SOURCE_NOT_AGED:
            maps = [(source, generation, leaf) if one[0] == source else one for one in maps]
        maps.append((number, generation, leaf))
        return World(generation, max(world.next_map, number + 1), tuple(sorted(maps)), world.leaves)

    def _private(self, world: World, number: int, *, frozen: bool) -> set[int]:
        """The private blocks of a map's leaf, if it is writable in place, or ``frozen`` ones count too."""
        generation, leaf = next((one[1], one[2]) for one in world.maps if one[0] == number)
        if not leaf or (world.leaves[leaf - 1][1] < generation and not frozen):
            return set()
        return {block for block, _, private in world.leaves[leaf - 1][2] if private}

    def _set(self, world: World, number: int, grain: int, entry: Entry, aside: list[Row], freed: set[int]) -> World:
        generation, old = next((one[1], one[2]) for one in world.maps if one[0] == number)
        entries = list(self._entries(world, old))
        early = entries[grain]  # read before the copy-on-write: not to be believed
        in_place = old and world.leaves[old - 1][1] >= generation
        if not in_place and self._broken != rules.BIT_COPIED:
            entries = [(block, value, False) for block, value, _ in entries]
        believed = rules.BIT_IN_FROZEN if entry[0] else rules.BIT_IN_FROZEN_TRIM
        block, _, private = early if self._broken == believed else entries[grain]
        if private:
            freed.add(block)
        entries[grain] = entry
        leaves = list(world.leaves)
        if in_place:
            state, born, before = leaves[old - 1]
            if state == TO_SAVE and self._broken != rules.FUZZY_NODES:
                aside.append((old, born, before))
                state = DIRTY
            stays = state == TO_SAVE or (state == SAVED and self._broken == rules.SAVED_STAYS)
            leaves[old - 1] = (state if stays else DIRTY), born, tuple(entries)
            return world._replace(leaves=tuple(leaves))
        new = next((i for i, leaf in enumerate(leaves, 1) if leaf[0] == FREE), 0)
        if not new:
            raise NoLeaf
        leaves[new - 1] = DIRTY, world.generation, tuple(entries)
        maps = tuple((one[0], one[1], new) if one[0] == number else one for one in world.maps)
        return world._replace(leaves=tuple(leaves), maps=maps)

    # ------------------------------------------------------------------------------------------------ the image

    def switch(self, number: int) -> tuple[int, int]:
        """(world in which dirty leaves are to be saved, their ids as bits)."""
        if number not in self._switched:
            world: World = self.worlds.items[number]
            nodes = sum(1 << i for i, leaf in enumerate(world.leaves, 1) if leaf[0] == DIRTY)
            self._switched[number] = self.set_state(number, nodes, TO_SAVE), nodes
        return self._switched[number]

    def copy_one(self, number: int) -> tuple[int, Row | None]:
        """The next leaf's turn: (world afterwards, its row), or None when all had theirs."""
        if number not in self._copied:
            world: World = self.worlds.items[number]
            self._copied[number] = number, None
            for i, (state, born, entries) in enumerate(world.leaves, 1):
                if state == TO_SAVE:
                    self._copied[number] = self.set_state(number, 1 << i, SAVED), (i, born, entries)
                    break
        return self._copied[number]

    def set_state(self, number: int, nodes: int, state: int, of: tuple[int, ...] = tuple(range(7))) -> int:
        """Give those of ``nodes`` (ids as bits) that are in one of ``of`` another state."""
        world: World = self.worlds.items[number]
        leaves = tuple(
            self._in_state(leaf, state) if nodes >> i & 1 and leaf[0] in of else leaf
            for i, leaf in enumerate(world.leaves, 1)
        )
        return self.worlds(world._replace(leaves=leaves))

    def _in_state(self, leaf: Leaf, state: int) -> Leaf:
        if state == FREE:
            return FREE, 0, self._empty
        return state, leaf[1], self._empty if state == ABSENT else leaf[2]

    def in_state(self, number: int, states: tuple[int, ...]) -> int:
        """Leaves in one of ``states``, as bits."""
        return sum(1 << i for i, leaf in enumerate(self.worlds.items[number].leaves, 1) if leaf[0] in states)

    def reach(self, number: int) -> tuple[int, int]:
        """What an image's roots reach and what they do not: (blocks, leaves), as bits."""
        if number not in self._reached:
            image: Image = self.images.items[number]
            live_only = self._broken == rules.SWEEP_LIVE_ONLY
            roots = {leaf for map_, _, leaf in image.roots if map_ in self._volumes or not live_only}
            blocks = {entry[0] for node, _, row in image.nodes if node in roots for entry in row}
            lost = sum(1 << node for node, _, _ in image.nodes if node not in roots)
            self._reached[number] = sum(1 << block for block in blocks), lost
        return self._reached[number]

    def take_in(self, number: int, node: int, row: tuple[Entry, ...]) -> int:
        """A leaf as the committed image has it."""
        world: World = self.worlds.items[number]
        leaves = list(world.leaves)
        leaves[node - 1] = CLEAN, leaves[node - 1][1], row
        return self.worlds(world._replace(leaves=tuple(leaves)))

    def with_rows(self, image: int, rows: tuple[Row, ...]) -> int:
        if not rows:
            return image
        old: Image = self.images.items[image]
        nodes = {row[0]: row for row in (*old.nodes, *rows)}
        return self.images(old._replace(nodes=tuple(sorted(nodes.values()))))

    def without(self, nodes: tuple[Row, ...], gone: int) -> tuple[Row, ...]:
        return tuple(row for row in nodes if not gone >> row[0] & 1)

    def load(self, number: int, state: int = CLEAN) -> int:
        """The world that an image describes, with its leaves in this state."""
        key = number, state
        if key not in self._loaded:
            image: Image = self.images.items[number]
            leaves: list[Leaf] = [(FREE, 0, self._empty)] * self._capacity
            for node, born, entries in image.nodes:
                leaves[node - 1] = self._in_state((CLEAN, born, entries), state)
            generation = 1 if self._broken == rules.GENERATION_LOST else image.generation
            self._loaded[key] = self.worlds(World(generation, image.next_map, image.roots, tuple(leaves)))
        return self._loaded[key]

    def rows(self, number: int) -> tuple[Row, ...]:
        """All leaves in use, as an image stores them."""
        leaves = self.worlds.items[number].leaves
        return tuple((i, leaf[1], leaf[2]) for i, leaf in enumerate(leaves, 1) if leaf[0] not in (FREE, RETIRED))
