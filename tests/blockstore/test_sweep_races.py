"""Maps that change while a sweep runs, before and after each of its steps: what they reference is never given away.

The sweep marks a committed image, so the dangerous cases are what was allocated or freed between that image's switch
and the sweep's end, and nodes that are copied on write meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstore.api import Group
from tests.blockstore.support import GRAIN, MIB, PERMIT, Answer, Driver, Store, pattern

STEPS = range(16)
LEAF = 512 * GRAIN
Change = Callable[[Driver, Group], list[Callable[[], object]]]
"""What is done, one thing before each step of the sweep."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool")
    yield store
    store.prove_whole()


def prepare(driver: Driver) -> Group:
    """Two leaves of content in one page, both frozen by a snapshot that is gone: referenced by the volume alone."""
    group = driver.group(size=8 * MIB)
    for grain in range(4):
        driver.write(group.volumes[0], grain * GRAIN, pattern(grain))
        driver.write(group.volumes[0], LEAF + grain * GRAIN, pattern(50 + grain))
    driver.wait(group.snapshot("gone"))
    driver.wait(group.delete_snapshot("gone"))
    return group


def copy_the_leaf(driver: Driver, group: Group) -> list[Callable[[], object]]:
    return [lambda: group.volumes[0].write(3 * GRAIN, pattern(100), PERMIT, Answer())]


def overwrite_twice(driver: Driver, group: Group) -> list[Callable[[], object]]:
    """The first block is private when the second write frees it."""
    again = copy_the_leaf(driver, group)
    return [lambda: group.volumes[0].write(3 * GRAIN, pattern(99), PERMIT, Answer()), *again]


def overwrite_and_checkpoint(driver: Driver, group: Group) -> list[Callable[[], object]]:
    return [*overwrite_twice(driver, group), driver.pool.checkpoint, *overwrite_twice(driver, group)]


def snapshot_write_delete(driver: Driver, group: Group) -> list[Callable[[], object]]:
    return [
        lambda: group.snapshot("short"),
        *copy_the_leaf(driver, group),
        lambda: group.delete_snapshot("short"),
    ]


def roll_back(driver: Driver, group: Group) -> list[Callable[[], object]]:
    return [
        lambda: group.snapshot("short"),
        *copy_the_leaf(driver, group),
        lambda: group.rollback("short"),
        *copy_the_leaf(driver, group),
        lambda: group.delete_snapshot(next(name for name in group.snapshots if name != "short")),
        lambda: group.delete_snapshot("short"),
    ]


def trim_the_leaf(driver: Driver, group: Group) -> list[Callable[[], object]]:
    return [
        lambda: group.volumes[0].write(LEAF, pattern(98), PERMIT, Answer()),
        lambda: group.volumes[0].discard(LEAF, LEAF, PERMIT, Answer()),
        *copy_the_leaf(driver, group),
    ]


CHANGES = [copy_the_leaf, overwrite_twice, overwrite_and_checkpoint, snapshot_write_delete, roll_back, trim_the_leaf]


def step(driver: Driver) -> None:
    """As little as can be done."""
    if not (driver.runner.tick() or driver.runner.run_thread_work()):
        driver.runner.elapse(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("page_is_writable", [False, True], ids=["frozen page", "writable page"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("steps", STEPS)
def test_what_changes_during_a_sweep_keeps_its_blocks(
    store: Store, steps: int, change: Change, page_is_writable: bool
) -> None:
    driver = store.open()
    group = prepare(driver)
    volume = group.volumes[0]
    if page_is_writable:
        driver.write(volume, LEAF + 3 * GRAIN, pattern(60))
    sweep = driver.pool.sweep()
    for _ in range(steps):
        step(driver)
    for action in change(driver, group):
        action()
        step(driver)
    driver.wait(sweep)
    driver.wait(driver.pool.checkpoint())
    driver.wait(driver.pool.checkpoint())
    driver.write(volume, 4 * MIB, pattern(1000, 600 * GRAIN))  # takes whatever was given back
    seen = [driver.read(volume, grain * GRAIN, GRAIN) for grain in range(4)]
    assert seen == [pattern(0), pattern(1), pattern(2), pattern(100)]
