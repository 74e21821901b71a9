"""The block maps in small (``blockstore/blockmap.py``): maps, leaves shared by copy-on-write, and the image's nodes.

A map is one root with one leaf; pages are left out (they obey the leaves' rules). Every operation is a pure function of
interned values and remembered, since thousands of states share each of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model import rules
from tests.model.state import Interned, Scope

FREE, CLEAN, DIRTY, TO_SAVE, RETIRED = range(5)

WRITE, TRIM, SNAP, DELETE, ROLLBACK = "WRITE", "TRIM", "SNAP", "DELETE", "ROLLBACK"
Entry = tuple[int, int]
"""(block, value that its checksum belongs to)."""
Leaf = tuple[int, int, tuple[Entry, ...]]
"""(state, born, entries)."""
Row = tuple[int, int, tuple[Entry, ...]]
"""A node of an image: (id, born, entries)."""
Record = tuple[Any, ...]


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


class NoLeaf(Exception):
    """All leaf ids are taken."""


class Maps:
    def __init__(self, scope: Scope, broken: str) -> None:
        self._empty = ((0, 0),) * scope.grains
        self._capacity = scope.leaves
        self._broken = broken
        self.worlds = Interned()
        self.images = Interned()
        self.contents = Interned()
        self._applied: dict[tuple[int, tuple[Record, ...]], tuple[int, tuple[Row, ...]] | None] = {}
        self._looks: dict[int, tuple[int, tuple[Entry, ...], int]] = {}
        self._expected: dict[tuple[int, tuple[Record, ...]], int] = {}
        self._switched: dict[int, tuple[int, int]] = {}
        self._copied: dict[int, tuple[int, Row | None]] = {}
        self._loaded: dict[int, int] = {}

    # ------------------------------------------------------------------------------------------------ look-up

    def look(self, number: int) -> tuple[int, tuple[Entry, ...], int]:
        """(what all maps hold, as a number; every entry that a map references; their blocks as bits)."""
        found = self._looks.get(number)
        if found is None:
            world: World = self.worlds.items[number]
            rows = {map_: self._entries(world, leaf) for map_, _, leaf in world.maps}
            values = tuple((map_, tuple(value for _, value in row)) for map_, row in rows.items())
            entries = tuple(sorted({entry for row in rows.values() for entry in row if entry[0]}))
            blocks = sum({1 << block for block, _ in entries})
            found = self._looks[number] = self.contents(values), entries, blocks
        return found

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
                    case ("SNAP" | "ROLLBACK", number, source):
                        values[number] = values[source]
                    case ("DELETE", number):
                        del values[number]
            self._expected[key] = self.contents(tuple(sorted(values.items())))
        return self._expected[key]

    # ------------------------------------------------------------------------------------------------ changes

    def apply(self, number: int, records: tuple[Record, ...]) -> tuple[int, tuple[Row, ...]] | None:
        """(world afterwards, nodes copied aside), or None when no leaf is left."""
        key = number, records
        if key not in self._applied:
            world: World = self.worlds.items[number]
            aside: list[Row] = []
            try:
                for record in records:
                    world = self._change(world, record, aside)
                self._applied[key] = self.worlds(world), tuple(aside)
            except NoLeaf:
                self._applied[key] = None
        return self._applied[key]

    def _change(self, world: World, record: Record, aside: list[Row]) -> World:
        match record:
            case ("WRITE", number, grain, block, value):
                return self._set(world, number, grain, (block, value), aside)
            case ("TRIM", number, grain):
                leaf = next(leaf for map_, _, leaf in world.maps if map_ == number)
                mapped = self._entries(world, leaf)[grain][0]
                return self._set(world, number, grain, (0, 0), aside) if mapped else world
            case ("SNAP", number, source):
                return self._snap(world, number, source)
            case ("DELETE", number):
                return world._replace(maps=tuple(one for one in world.maps if one[0] != number))
            case ("ROLLBACK", number, source):
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

    def _set(self, world: World, number: int, grain: int, entry: Entry, aside: list[Row]) -> World:
        generation, old = next((one[1], one[2]) for one in world.maps if one[0] == number)
        entries = list(self._entries(world, old))
        entries[grain] = entry
        leaves = list(world.leaves)
        if old and leaves[old - 1][1] >= generation:  # writable in place
            state, born, before = leaves[old - 1]
            if state == TO_SAVE and self._broken != rules.FUZZY_NODES:
                aside.append((old, born, before))
                state = DIRTY
            leaves[old - 1] = (DIRTY if state == CLEAN else state), born, tuple(entries)
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
                    self._copied[number] = self.set_state(number, 1 << i, CLEAN), (i, born, entries)
                    break
        return self._copied[number]

    def set_state(self, number: int, nodes: int, state: int, of: tuple[int, ...] = tuple(range(5))) -> int:
        """Give those of ``nodes`` (ids as bits) that are in one of ``of`` another state."""
        world: World = self.worlds.items[number]
        blank: Leaf = (FREE, 0, self._empty)
        leaves = tuple(
            (blank if state == FREE else (state, *leaf[1:])) if nodes >> i & 1 and leaf[0] in of else leaf
            for i, leaf in enumerate(world.leaves, 1)
        )
        return self.worlds(world._replace(leaves=leaves))

    def retire(self, number: int, nodes: int) -> tuple[int, tuple[Row, ...]]:
        """Nothing references these leaves: (world afterwards, those copied aside for the image being made)."""
        leaves = self.worlds.items[number].leaves
        aside = tuple(
            (i, leaf[1], leaf[2]) for i, leaf in enumerate(leaves, 1) if nodes >> i & 1 and leaf[0] == TO_SAVE
        )
        return self.set_state(number, nodes, FREE if self._broken == rules.IDS_REUSED_NOW else RETIRED), aside

    def unreachable(self, number: int) -> int:
        """Leaves in use that no map references, as bits."""
        world: World = self.worlds.items[number]
        reachable = {leaf for _, _, leaf in world.maps}
        return sum(
            1 << i
            for i, leaf in enumerate(world.leaves, 1)
            if leaf[0] in (CLEAN, DIRTY, TO_SAVE) and i not in reachable
        )

    def with_rows(self, image: int, rows: tuple[Row, ...]) -> int:
        if not rows:
            return image
        old: Image = self.images.items[image]
        nodes = {row[0]: row for row in (*old.nodes, *rows)}
        return self.images(old._replace(nodes=tuple(sorted(nodes.values()))))

    def without(self, nodes: tuple[Row, ...], gone: int) -> tuple[Row, ...]:
        return tuple(row for row in nodes if not gone >> row[0] & 1)

    def load(self, number: int) -> int:
        """The world that an image describes."""
        if number not in self._loaded:
            image: Image = self.images.items[number]
            leaves: list[Leaf] = [(FREE, 0, self._empty)] * self._capacity
            for node, born, entries in image.nodes:
                leaves[node - 1] = (CLEAN, born, entries)
            generation = 1 if self._broken == rules.GENERATION_LOST else image.generation
            self._loaded[number] = self.worlds(World(generation, image.next_map, image.roots, tuple(leaves)))
        return self._loaded[number]

    def rows(self, number: int) -> tuple[Row, ...]:
        """All leaves in use, as an image stores them."""
        leaves = self.worlds.items[number].leaves
        return tuple((i, leaf[1], leaf[2]) for i, leaf in enumerate(leaves, 1) if leaf[0] not in (FREE, RETIRED))
