"""Freed blocks on their way back to the allocator: in lists, sorted by helpers, held by pins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from blockstore import space
from blockstore.api import Volume
from tests.blockstore.support import MIB, PERMIT, Answer, Driver, Store, pattern


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool")
    yield store
    store.prove_whole()


def fill(driver: Driver, volume: Volume, seed: int) -> None:
    for at in range(0, 24 * MIB, 4 * MIB):
        driver.write(volume, at, pattern(seed, 4 * MIB))


def commit_up_to_the_sorting(driver: Driver) -> None:
    """A checkpoint, whose frees are being made into runs then."""
    done = driver.pool.checkpoint()
    while not done.done():
        assert driver.runner.tick() or driver.runner.run_thread_work()


def free_blocks(driver: Driver) -> int:
    return driver.engine._space.allocator.free


def test_helpers_that_end_out_of_order_give_no_block_back_twice(store: Store) -> None:
    driver = store.open()
    volume = driver.group(size=24 * MIB).volumes[0]
    fill(driver, volume, 1)
    fill(driver, volume, 2)
    commit_up_to_the_sorting(driver)
    go_on = driver.runner.set_work_aside()  # a helper that is slow
    fill(driver, volume, 3)
    driver.wait(driver.pool.checkpoint())
    driver.wait(driver.pool.sweep())
    go_on()
    driver.runner.settle()
    driver.wait(driver.pool.checkpoint())
    driver.runner.settle()
    assert driver.pool.statistics().used == 24 * MIB
    runs = sorted(map(tuple, driver.engine._space.allocator.free_runs().tolist()))
    assert all(first + count <= after for (first, count), (after, _) in pairwise(runs))


def test_a_write_waits_while_all_that_was_freed_is_held_by_a_reader(tmp_path: Path) -> None:
    store = Store(tmp_path / "full", size_limit=3 * MIB)
    driver = store.open()
    driver.runner.settle()
    volume = driver.group(size=8 * MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 2 * MIB))
    driver.wait(driver.pool.sweep())
    pin = driver.engine._space.pin()  # a cold read
    driver.write(volume, 0, pattern(2, MIB // 2))
    driver.wait(driver.pool.checkpoint())
    answer = Answer()
    volume.write(4 * MIB, pattern(3, 3 * MIB // 4), PERMIT, answer)
    driver.runner.advance(1)
    assert not answer.answered
    pin.release()
    driver.runner.advance(1)
    assert answer.ok
    store.prove_whole()


@pytest.mark.slow
def test_leaves_that_were_trimmed_away_come_back_without_being_asked_for(store: Store) -> None:
    driver = store.open()
    volume = driver.group(size=24 * MIB).volumes[0]
    for i in range(330):
        driver.write(volume, 0, pattern(i, 2 * MIB))
        driver.discard(volume, 0, 2 * MIB)
        driver.runner.advance(10)
    assert driver.engine.blockmap.leaves.in_use < 300


def test_a_pool_closes_although_a_helper_had_no_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store.open()
    volume = driver.group(size=24 * MIB).volumes[0]
    fill(driver, volume, 1)
    fill(driver, volume, 2)

    def no_memory(blocks: object) -> None:
        raise MemoryError("nothing left")

    with monkeypatch.context() as patch:
        patch.setattr(space, "runs_of", no_memory)
        driver.pool.checkpoint()
        with pytest.raises(MemoryError):
            driver.runner.settle()
    driver.wait(driver.pool.sweep())
    assert driver.pool.statistics().used == 24 * MIB
    store.close()
    store.open()
