"""diff: what differs between two snapshots, against a model of dicts, and the speed that it promises."""

from __future__ import annotations

import tempfile
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockstore.api import NotFound, Volume
from blockstore.blockmap import BlockMap, Map
from blockstore.diff import changes, join, ranges_of
from blockstore.layout import LEAF_ENTRIES, PAGE_ENTRIES
from tests.blockstore.streaming import diff, fill
from tests.blockstore.support import GRAIN, MIB, Driver, Store

GRAINS = 3 * LEAF_ENTRIES
Steps = list[tuple[int, int, int]]
"""(first grain, grains, seed; 0 unmaps)"""
steps = st.lists(st.tuples(st.integers(0, GRAINS - 1), st.integers(1, 40), st.integers(0, 3)), max_size=10)


@given(before=steps, after=steps)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_diff_names_what_a_model_says(before: Steps, after: Steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "pool")
        driver = store.open()
        group = driver.group(size=GRAINS * GRAIN)
        old = change(driver, group.volumes[0], before)
        driver.wait(group.snapshot("a"))
        written = change(driver, group.volumes[0], after)
        driver.wait(group.snapshot("b"))

        # What was written differs, even by the same bytes: another block holds them. Unmapping nothing changes nothing.
        touched = {grain for grain, seed in written.items() if seed or old.get(grain)}
        assert diff(driver, "db", "a", "b") == {g: "changed" if written[g] else "zero" for g in touched}
        assert diff(driver, "db", "b", "a") == {g: "changed" if old.get(g) else "zero" for g in touched}
        assert diff(driver, "db", "b", "b") == {}
        store.kill()


def change(driver: Driver, volume: Volume, plan: Steps) -> dict[int, int]:
    """Carry out the plan; grain → seed of what was touched."""
    seen: dict[int, int] = {}
    for first, wish, seed in plan:
        count = min(wish, GRAINS - first)
        if seed:
            driver.write(volume, first * GRAIN, bytes([seed]) * (count * GRAIN))
        else:
            driver.discard(volume, first * GRAIN, count * GRAIN)
        seen |= dict.fromkeys(range(first, first + count), seed)
    return seen


def test_a_diff_with_now_follows_the_group(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    fill(driver, group, {1: 1, 2: 2})
    driver.wait(group.snapshot("a"))
    fill(driver, group, {2: 0, 3: 3})

    assert diff(driver, "db", "a", None) == {2: "zero", 3: "changed"}


def test_a_grown_volume_differs_where_it_was_written(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=4 * MIB)
    driver.wait(group.snapshot("a"))
    driver.wait(group.resize(0, 16 << 30))
    driver.write(group.volumes[0], (9 << 30) + GRAIN, b"x" * GRAIN)
    driver.wait(group.snapshot("b"))

    assert diff(driver, "db", "a", "b") == {((9 << 30) >> 12) + 1: "changed"}
    assert diff(driver, "db", "b", "a") == {}


def test_a_diff_with_a_snapshot_that_is_not_there_holds_nothing(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.wait(group.snapshot("a"))

    with pytest.raises(NotFound, match="no snapshot 'b'"):
        diff(driver, "db", "a", "b")
    driver.wait(group.delete_snapshot("a"))


def test_ranges_join_neighbours_in_the_same_state() -> None:
    grains = np.array([3, 4, 5, 6, 9], np.int64)
    zero = np.array([False, False, True, True, True])

    ranges = join([ranges_of(grains[:1], zero[:1]), ranges_of(grains[1:], zero[1:])])

    assert ranges.offsets.tolist() == [3 * GRAIN, 5 * GRAIN, 9 * GRAIN]
    assert ranges.lengths.tolist() == [2 * GRAIN, 2 * GRAIN, GRAIN]
    assert ranges.zero.tolist() == [False, True, True]


@pytest.mark.slow
def test_two_tebibytes_with_a_gibibyte_between_them_are_compared_in_bounded_steps() -> None:
    """4 ms on 2 shared cores, 0.4 s when the gibibyte is scattered over all leaves (aim: 0.5 s); asserted is only what
    no slow machine explains."""
    old, new, blockmap = two_tebibytes(changed_leaves=512)
    began = time.perf_counter()
    sizes = [len(step.grains) for step in changes(blockmap, old, new)]

    assert sum(sizes) == 512 * LEAF_ENTRIES
    assert max(sizes) <= 128 * LEAF_ENTRIES
    assert time.perf_counter() - began < 2


def two_tebibytes(changed_leaves: int) -> tuple[Map, Map, BlockMap]:
    """Two maps of a fully mapped TiB, made by hand: all leaves of the old one are one and the same."""
    pages = 128
    blockmap = BlockMap(max(changed_leaves + 16, 16 * (2 * pages + 2)))
    full = blockmap.leaves.take(1)
    blockmap.leaves.entry_array[full * LEAF_ENTRIES : (full + 1) * LEAF_ENTRIES] = np.arange(1, LEAF_ENTRIES + 1)
    roots = [array("I"), array("I")]
    for _ in range(pages):
        page = blockmap.pages.take(1)
        blockmap.pages.row(page)[:] = full
        for root in roots:
            root.append(page)
    for index in range(-(-changed_leaves // PAGE_ENTRIES)):
        page = blockmap.pages.take(2)
        blockmap.pages.row(page)[:] = full
        for slot in range(min(PAGE_ENTRIES, changed_leaves - index * PAGE_ENTRIES)):
            leaf = blockmap.leaves.take(2)
            at = leaf * LEAF_ENTRIES
            blockmap.leaves.entry_array[at : at + LEAF_ENTRIES] = np.arange(leaf << 20, (leaf << 20) + LEAF_ENTRIES)
            blockmap.pages.row(page)[slot] = leaf
        roots[1][index] = page
    return Map(1, 1 << 40, 2, roots[0]), Map(2, 1 << 40, 2, roots[1]), blockmap
