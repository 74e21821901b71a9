"""Block maps against plain dicts: writes, trims, sharing, images."""

from __future__ import annotations

import mmap
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.blockmap import BlockMap, Map, pages_for
from blockstore.layout import LEAF_ENTRIES
from blockstore.records import CloneMap, CreateMap, DeleteMap, ResizeMap, RollbackMap, SnapMap

GIB = 1 << 30


def new_map(size: int = GIB) -> tuple[BlockMap, Map]:
    blockmap = BlockMap(1 << 12)
    blockmap.apply(CreateMap(1, size))
    return blockmap, blockmap.maps[1]


def crcs(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


def content(blockmap: BlockMap, one: Map, grains: range) -> dict[int, tuple[int, int]]:
    entries = {grain: blockmap.entry(one, grain) for grain in grains}
    return {grain: entry for grain, entry in entries.items() if entry[0]}


@pytest.mark.parametrize(
    ("size", "pages"), [(4096, 1), (8 << 30, 1), ((8 << 30) + 4096, 2), (16 << 30, 2), (256 << 40, 32768)]
)
def test_a_root_has_a_page_for_each_begun_eight_gibibytes(size: int, pages: int) -> None:
    assert pages_for(size) == pages


def test_one_grain_and_a_run_of_one_are_the_same() -> None:
    """The fast path equals the plain one, in map, counts and dirt."""
    rng = random.Random(1)
    (fast, to_fast), (plain, to_plain) = new_map(), new_map()
    for i in range(3000):
        grain, entry, crc = rng.randrange(GIB >> 12), i + 1, rng.getrandbits(32)
        fast.write_one(to_fast, grain, entry, crc)
        plain.write(to_plain, grain, entry, crcs(crc))
        if i % 500 == 0:
            for each in (fast, plain):
                each.apply(SnapMap(100 + i, 1))
    assert content(fast, to_fast, range(GIB >> 12)) == content(plain, to_plain, range(GIB >> 12))
    assert (to_fast.mapped, fast.dropped) == (to_plain.mapped, plain.dropped)
    assert fast.leaves.dirty == plain.leaves.dirty
    assert fast.dirty_maps == plain.dirty_maps


def test_a_run_over_leaves_maps_consecutive_blocks() -> None:
    blockmap, one = new_map()
    blockmap.write(one, LEAF_ENTRIES - 2, 1000, crcs(1, 2, 3, 4))
    assert content(blockmap, one, range(2 * LEAF_ENTRIES)) == {
        510: (1000, 1),
        511: (1001, 2),
        512: (1002, 3),
        513: (1003, 4),
    }
    assert one.mapped == 4


def test_a_snapshot_keeps_its_entries_and_shares_its_nodes() -> None:
    blockmap, one = new_map()
    blockmap.write(one, 0, 10, crcs(1, 2))
    blockmap.apply(SnapMap(2, 1))
    used = blockmap.leaves.in_use
    assert used == 1
    blockmap.write_one(one, 0, 50, 5)
    assert blockmap.leaves.in_use == used + 1
    assert content(blockmap, blockmap.maps[2], range(4)) == {0: (10, 1), 1: (11, 2)}
    assert content(blockmap, one, range(4)) == {0: (50, 5), 1: (11, 2)}


def test_an_older_map_of_the_same_pool_stays_writable_in_place() -> None:
    blockmap, _ = new_map()
    blockmap.apply(CreateMap(5, GIB))
    blockmap.write_one(blockmap.maps[5], 0, 10, 1)
    used = blockmap.leaves.in_use
    blockmap.apply(SnapMap(2, 1))
    blockmap.write_one(blockmap.maps[5], 0, 11, 1)
    assert blockmap.leaves.in_use == used


def test_trimming_whole_leaves_forgets_them_and_frozen_ones_stay() -> None:
    blockmap, one = new_map()
    blockmap.write(one, 0, 10, crcs(*range(1, 1025)))
    blockmap.apply(SnapMap(2, 1))
    blockmap.trim(one, 0, 600)
    assert one.mapped == 1024 - 600
    assert blockmap.leaf_of(one, 0) == 0
    assert len(content(blockmap, blockmap.maps[2], range(1024))) == 1024


def test_trimming_nothing_makes_no_node() -> None:
    blockmap, one = new_map(64 * GIB)
    blockmap.trim(one, 100, (64 * GIB >> 12) - 200)
    assert blockmap.leaves.in_use == blockmap.pages.in_use == 0


def test_an_image_gets_each_node_as_it_was_at_the_switch() -> None:
    blockmap, one = new_map()
    blockmap.write_one(one, 0, 10, 1)
    aside: list[tuple[int, int, bytes]] = []
    blockmap.copy_aside = lambda node, born, body: aside.append((node, born, body))
    leaf = blockmap.leaf_of(one, 0)
    before = blockmap.leaves.blob(leaf)
    assert blockmap.switch(blockmap.leaves) == [leaf]
    blockmap.write_one(one, 0, 20, 2)
    blockmap.write_one(one, 0, 30, 3)
    assert [(node, body) for node, _, body in aside] == [(leaf, before)]
    assert blockmap.switch(blockmap.leaves) == [leaf]


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "trim", "snap", "clone", "rollback", "delete", "resize"]),
        st.integers(0, 2**16),
        st.integers(0, 1300),
        st.integers(1, 700),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_maps_behave_like_dicts(steps: list[tuple[str, int, int, int]]) -> None:
    blockmap, _ = new_map(8 << 20)
    model: dict[int, dict[int, int]] = {1: {}}
    block = 1
    for kind, pick, grain, count in steps:
        number = sorted(model)[pick % len(model)]
        one = blockmap.maps[number]
        if kind == "write":
            blockmap.write(one, grain, block, crcs(*range(count)))
            model[number].update({grain + i: block + i for i in range(count)})
            block += count
        elif kind == "trim":
            blockmap.trim(one, grain, count)
            model[number] = {at: entry for at, entry in model[number].items() if not grain <= at < grain + count}
        elif kind in ("snap", "clone"):
            new = blockmap.next_map
            blockmap.apply((SnapMap if kind == "snap" else CloneMap)(new, number))
            model[new] = dict(model[number])
        elif kind == "rollback":
            source = sorted(model)[count % len(model)]
            if source != number:
                blockmap.apply(RollbackMap(number, source))
                model[number] = dict(model[source])
        elif kind == "delete" and len(model) > 1:
            blockmap.apply(DeleteMap(number))
            del model[number]
        elif kind == "resize":
            blockmap.apply(ResizeMap(number, one.size + (8 << 30)))
    for number, expected in model.items():
        one = blockmap.maps[number]
        assert {at: entry for at, (entry, _) in content(blockmap, one, range(2048)).items()} == expected
        assert one.mapped == len(expected)


def test_maps_need_no_kernel_that_knows_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_NOHUGEPAGE", 9999)  # as to a kernel without them, or a real-time one
    assert BlockMap(1 << 10).leaves.available
