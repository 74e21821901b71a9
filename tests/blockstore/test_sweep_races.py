"""Maps that change while a sweep runs, at each of its steps: what they reference is never given away.

The dangerous case is a node that is copied on write and then referenced by nobody: its copy is younger than the sweep,
so only the source, which was reachable when the sweep began, tells of the blocks that both name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstore.api import Group
from tests.blockstore.support import GRAIN, MIB, Driver, Store, pattern

STEPS = range(14)
LEAF = 512 * GRAIN
PAUSE = 0.001  # seconds; a sweep rests so long between its steps


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


def copy_the_leaf(driver: Driver, group: Group) -> None:
    driver.write(group.volumes[0], 3 * GRAIN, pattern(100))


def snapshot_write_delete(driver: Driver, group: Group) -> None:
    driver.wait(group.snapshot("short"))
    copy_the_leaf(driver, group)
    driver.wait(group.delete_snapshot("short"))


def roll_back(driver: Driver, group: Group) -> None:
    driver.wait(group.snapshot("short"))
    copy_the_leaf(driver, group)
    before = driver.wait(group.rollback("short"))
    copy_the_leaf(driver, group)
    driver.wait(group.delete_snapshot(before.name))
    driver.wait(group.delete_snapshot("short"))


@pytest.mark.slow
@pytest.mark.parametrize("page_is_writable", [False, True], ids=["frozen page", "writable page"])
@pytest.mark.parametrize("change", [copy_the_leaf, snapshot_write_delete, roll_back])
@pytest.mark.parametrize("steps", STEPS)
def test_what_changes_during_a_sweep_keeps_its_blocks(
    store: Store, steps: int, change: Callable[[Driver, Group], None], page_is_writable: bool
) -> None:
    driver = store.open()
    group = prepare(driver)
    volume = group.volumes[0]
    if page_is_writable:
        driver.write(volume, LEAF + 3 * GRAIN, pattern(60))
    sweep = driver.pool.sweep()
    for _ in range(steps):
        driver.runner.settle()
        driver.runner.elapse(PAUSE)
    change(driver, group)
    driver.wait(sweep)
    driver.wait(driver.pool.checkpoint())
    driver.wait(driver.pool.checkpoint())
    for grain in range(600):  # takes whatever was given back
        driver.write(volume, 4 * MIB + grain * GRAIN, pattern(1000 + grain))
    seen = [driver.read(volume, grain * GRAIN, GRAIN) for grain in range(4)]
    assert seen == [pattern(0), pattern(1), pattern(2), pattern(100)]
