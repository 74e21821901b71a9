"""Snapshots and clones by the thousand: taken, reopened, deleted in any order, contents kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.api import Group
from tests.blockstore.support import GRAIN, MIB, PERMIT, TUNING, Answer, Driver, Store, pattern
from tests.scale import SEED

MANY = 2000
SPAN = 8  # grains that the tests write to


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """As everywhere, with map memory for that many pages."""
    store = Store(tmp_path / "pool", tuning=replace(TUNING, map_leaves=1 << 16))
    yield store
    store.prove_whole()


def content(driver: Driver, group: Group, lun: int = 0) -> bytes:
    return driver.read(group.volumes[lun], 0, SPAN * GRAIN)


def take(driver: Driver, group: Group, count: int) -> list[bytes]:
    """``count`` snapshots ``s0``... with a write before each; what each holds."""
    held, expected = bytearray(content(driver, group)), []
    for i in range(count):
        at = i % SPAN * GRAIN
        held[at : at + GRAIN] = pattern(i)
        group.volumes[0].write(at, pattern(i), PERMIT, Answer())
        group.snapshot(f"s{i}")  # it commits the write first; all that were asked for share a flush
        expected.append(bytes(held))
        if i % 100 == 99:
            driver.runner.settle()
    driver.runner.settle()
    assert len(group.snapshots) == count
    return expected


def look(driver: Driver, group: Group, name: str) -> bytes:
    """What a snapshot holds, seen through a clone."""
    clone = driver.wait(driver.pool.clone_group(group.record.name, name, "look", iqn="look", clients=[]))
    seen = content(driver, clone)
    driver.wait(driver.pool.delete_group("look"))
    return seen


@pytest.mark.slow
def test_two_thousand_snapshots_are_there_after_a_kill_and_go_in_any_order(store: Store) -> None:
    driver = store.open()
    expected = take(driver, driver.group(size=2 * MIB), MANY)
    driver = store.reopen()
    group = driver.pool.groups["db"]
    assert list(group.snapshots) == [f"s{i}" for i in range(MANY)]
    order = random.Random(SEED).sample(range(MANY), MANY)
    left = set(order)
    for done, i in enumerate(order):
        group.delete_snapshot(f"s{i}")
        left.discard(i)
        if done % 400 == 399 and left:
            driver.wait(driver.pool.sweep())
            for other in sorted(left)[:: max(1, len(left) // 5)]:
                assert look(driver, group, f"s{other}") == expected[other]
    driver.runner.settle()
    assert content(driver, group) == expected[-1]
    driver.wait(driver.pool.sweep())
    assert driver.pool.statistics().used == SPAN * GRAIN


@pytest.mark.slow
def test_a_group_with_two_thousand_snapshots_goes_as_a_whole(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=2 * MIB)
    take(driver, group, MANY)
    clone = driver.wait(driver.pool.clone_group("db", "s1000", "c", iqn="c", clients=[]))
    before = content(driver, clone)
    driver.wait(driver.pool.delete_group("db"))
    assert list(driver.pool.groups) == ["c"]
    driver.wait(driver.pool.sweep())
    assert content(driver, clone) == before
    assert driver.pool.statistics().used == SPAN * GRAIN


@pytest.mark.slow
def test_a_kill_while_a_group_is_deleted_leaves_it_to_be_deleted_again(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=2 * MIB)
    expected = take(driver, group, 600)
    driver.pool.delete_group("db")
    driver.runner.tick()
    driver = store.reopen()
    group = driver.pool.groups["db"]
    assert 0 < len(group.snapshots) < 600
    assert content(driver, group) == expected[-1]
    assert look(driver, group, "s599") == expected[-1]
    driver.wait(driver.pool.delete_group("db"))
    assert not driver.pool.groups


@pytest.mark.slow
def test_clones_of_clones_and_their_snapshots_outlive_what_they_came_from(store: Store) -> None:
    driver = store.open()
    group, held = driver.group(size=2 * MIB), bytearray(SPAN * GRAIN)
    expected: dict[str, bytes] = {}
    for depth in range(12):
        at = depth % SPAN * GRAIN
        held[at : at + GRAIN] = pattern(1000 + depth)
        driver.write(group.volumes[0], at, pattern(1000 + depth))
        driver.wait(group.snapshot("s"))
        expected[group.record.name] = bytes(held)
        name = f"c{depth}"
        group = driver.wait(driver.pool.clone_group(group.record.name, "s", name, iqn=name, clients=[]))
    names = list(expected)
    random.Random(SEED).shuffle(names)
    for name in names[:-3]:
        driver.wait(driver.pool.delete_group(name))
        driver.wait(driver.pool.sweep())
    driver = store.reopen()
    for name in names[-3:]:
        assert look(driver, driver.pool.groups[name], "s") == expected[name]
    assert content(driver, driver.pool.groups["c11"]) == bytes(held)


def test_a_sweep_that_nothing_disturbs_finds_every_lost_node(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=2 * MIB)
    take(driver, group, 20)
    assert driver.engine.blockmap.leaves.in_use == 20
    for name in list(group.snapshots):
        driver.wait(group.delete_snapshot(name))
    driver.wait(driver.pool.sweep())
    assert (driver.engine.blockmap.leaves.in_use, driver.engine.blockmap.pages.in_use) == (1, 1)
