"""Maps that are larger than the memory they may have: everything works as if they were not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.api import OutOfRange
from blockstore.diff import SnapshotDiff
from blockstore.fingerprint import Verifier
from blockstore.nodes import ABSENT, SAVED
from blockstore.scrub import Scrub
from tests.blockstore.support import GRAIN, MIB, PERMIT, TUNING, Answer, Driver, Store, pattern

LEAF = 512 * GRAIN
ROW = 6144
FEW = 12 * ROW  # a few leaves; there are some hundred
SIZE = 256 * MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool", tuning=replace(TUNING, map_memory=FEW))
    yield store
    store.prove_whole()


def spread(driver: Driver, count: int = 100) -> None:
    """A grain in each of many leaves."""
    volume = driver.group(size=SIZE).volumes[0]
    for i in range(count):
        driver.write(volume, i * LEAF, pattern(i))
    evict(driver)


def evict(driver: Driver) -> None:
    driver.wait(driver.pool.checkpoint())
    driver.runner.advance(3)


def absent(driver: Driver) -> int:
    return driver.engine.blockmap.leaves.absent


def test_leaves_of_an_image_leave_memory_above_the_budget(store: Store) -> None:
    driver = store.open()
    spread(driver)
    assert absent(driver) >= 88
    assert driver.engine.blockmap.held_bytes <= FEW + 16384
    assert driver.pool.statistics().counters["map_nodes_evicted"] >= 88


def test_what_is_absent_is_read_and_never_taken_for_zeros(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    into = memoryview(bytearray(GRAIN))
    would_block = [i for i in range(100) if not volume.read_now(i * LEAF, into)]
    assert len(would_block) >= 88
    for i in range(100):
        assert driver.read(volume, i * LEAF, GRAIN) == pattern(i)
        assert driver.read(volume, i * LEAF + GRAIN, GRAIN) == bytes(GRAIN)


def test_what_is_absent_is_changed_after_it_was_read(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    answers = [Answer() for _ in range(100)]
    for i, answer in enumerate(answers):  # all of one tick
        volume.write(i * LEAF + GRAIN, pattern(1000 + i), PERMIT, answer)
    driver.runner.advance(1)  # so much is dirty then that answers are held back
    assert all(answer.ok for answer in answers)
    evict(driver)
    for i in range(100):
        assert driver.read(volume, i * LEAF, 3 * GRAIN) == pattern(i) + pattern(1000 + i) + bytes(GRAIN)


def test_a_ragged_write_into_an_absent_leaf_keeps_what_is_around_it(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    first, second = Answer(), Answer()
    volume.write(512, b"x" * 512, PERMIT, first)
    volume.write(1024, b"y" * 512, PERMIT, second)
    driver.runner.settle()
    assert first.ok
    assert second.ok
    assert driver.read(volume, 0, GRAIN) == pattern(0, 512) + b"x" * 512 + b"y" * 512 + pattern(0, GRAIN - 1536)


def test_trims_over_absent_leaves_free_what_they_unmap(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    driver.discard(volume, GRAIN, SIZE - GRAIN)
    assert driver.pool.groups["db"].mapped_bytes(0) == GRAIN
    driver.wait(driver.pool.checkpoint())
    driver.runner.settle()
    assert driver.pool.statistics().used == GRAIN
    assert driver.read(volume, 50 * LEAF, GRAIN) == bytes(GRAIN)


def test_a_write_waits_for_its_leaf_while_its_volume_shrinks(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=LEAF)
    driver.wait(group.snapshot("small"))
    driver.wait(group.resize(0, SIZE))
    for i in range(100):
        driver.write(group.volumes[0], i * LEAF, pattern(i))
    evict(driver)
    answer = Answer()
    group.volumes[0].write(3 * LEAF, pattern(5), PERMIT, answer)
    driver.runner.tick()
    assert not answer.answered
    group.rollback("small")
    driver.runner.settle()
    assert isinstance(answer.error, OutOfRange)


def test_a_revoked_write_that_waits_for_its_leaf_never_lands(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    permit, answer = type(PERMIT)(), Answer()
    volume.write(0, pattern(999), permit, answer)
    driver.runner.tick()
    assert not answer.answered
    permit.revoked = True
    barrier = Answer()
    driver.pool.barrier(barrier)
    driver.runner.settle()
    assert barrier.ok
    assert answer.error is not None
    assert driver.read(volume, 0, GRAIN) == pattern(0)


def test_which_blocks_are_mapped_is_told_of_absent_leaves_too(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    offset = next(i * LEAF for i in range(100) if volume.unmapped_run(i * LEAF) is None)
    driver.finish(lambda answer: volume.load_map(offset, answer))
    assert volume.unmapped_run(offset) == (True, GRAIN)


def test_nothing_is_evicted_before_its_image_is_committed(store: Store) -> None:
    driver = store.open()
    volume = driver.group(size=SIZE).volumes[0]
    for i in range(100):
        volume.write(i * LEAF, pattern(i), PERMIT, Answer())
    driver.runner.tick()
    checkpoint = driver.pool.checkpoint()
    leaves = driver.engine.blockmap.leaves
    while not checkpoint.done():
        assert absent(driver) == 0
        driver.engine.residency.relieve()
        driver.runner.tick()
        driver.runner.run_thread_work()
    assert SAVED not in leaves.state[: leaves.top].tolist()
    driver.runner.advance(3)
    assert absent(driver) > 0


def test_opening_reads_no_node_that_the_journal_does_not_touch(store: Store) -> None:
    driver = store.open()
    spread(driver)
    store.close()
    driver = store.open()
    assert absent(driver) == 100
    volume = driver.pool.groups["db"].volumes[0]
    driver.write(volume, 0, pattern(77))
    driver = store.reopen()
    leaves = driver.engine.blockmap.leaves
    assert absent(driver) == 99
    assert ABSENT in leaves.state[: leaves.top].tolist()
    volume = driver.pool.groups["db"].volumes[0]
    for i in range(100):
        assert driver.read(volume, i * LEAF, GRAIN) == pattern(77 if i == 0 else i)


def test_snapshots_diffs_streams_and_scrubs_see_absent_nodes(store: Store) -> None:
    driver = store.open()
    spread(driver)
    group = driver.pool.groups["db"]
    driver.wait(group.snapshot("a"))
    for i in range(0, 100, 7):
        driver.write(group.volumes[0], i * LEAF + GRAIN, pattern(2000 + i))
    driver.wait(group.snapshot("b"))
    evict(driver)
    diff = SnapshotDiff(driver.engine, "db", "a", "b")
    found = driver.wait(diff.all_ranges(0))
    diff.close()
    assert found.offsets.tolist() == [i * LEAF + GRAIN for i in range(0, 100, 7)]
    verifier = Verifier(driver.engine, "db", "b", lambda done, total: None)
    assert driver.wait(verifier.verify()).volumes[0].mapped == 115 * GRAIN
    verifier.close()
    scrub = Scrub(driver.engine, rate=None, progress=lambda done, errors: None)
    report = driver.wait(scrub.scrub())
    scrub.close()
    assert (report.blocks, report.error_count) == (115, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_work_on_maps_that_do_not_fit(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    store.tuning = replace(store.tuning, map_memory=30 * ROW)
    driver = store.open()
    group = driver.group(size=SIZE)
    volume, expected, frozen = group.volumes[0], dict[int, int](), dict[str, dict[int, int]]()
    for step in range(300):
        action = rng.random()
        grain = rng.randrange(100) * 512 + rng.randrange(3)
        if action < 0.6:
            driver.write(volume, grain * GRAIN, pattern(step + 1))
            expected[grain] = step + 1
        elif action < 0.7:
            first, count = grain, rng.choice([1, 512, 3000])
            driver.discard(volume, first * GRAIN, min(count * GRAIN, SIZE - first * GRAIN))
            expected = {at: value for at, value in expected.items() if not first <= at < first + count}
        elif action < 0.9:
            value = expected.get(grain)
            assert driver.read(volume, grain * GRAIN, GRAIN) == (pattern(value) if value else bytes(GRAIN))
        elif action < 0.93:
            driver.wait(group.snapshot(f"s{step}"))
            frozen[f"s{step}"] = dict(expected)
        elif action < 0.95 and frozen:
            name = rng.choice(list(frozen))
            driver.wait(group.rollback(name))
            expected = dict(frozen[name])
        elif action < 0.97 and frozen:
            frozen.pop(name := rng.choice(list(frozen)))
            driver.wait(group.delete_snapshot(name))
        elif action < 0.98:
            driver = store.reopen()
            group = driver.pool.groups["db"]
            volume = group.volumes[0]
        else:
            driver.wait(rng.choice([driver.pool.checkpoint, driver.pool.sweep])())
    for grain in range(100 * 512):
        if grain % 512 < 3:
            value = expected.get(grain)
            assert driver.read(volume, grain * GRAIN, GRAIN) == (pattern(value) if value else bytes(GRAIN))


def test_a_ragged_write_waits_for_the_write_before_it_and_not_for_all_others(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    runner = driver.runner
    whole, ragged = Answer(), Answer()
    volume.write(0, pattern(500), PERMIT, whole)
    runner.tick()
    volume.write(512, b"x" * 512, PERMIT, ragged)
    for i in range(1, 90):
        volume.write(i * LEAF, pattern(i), PERMIT, Answer())
        runner.tick()
        runner.run_thread_work()
        runner.tick()
        assert driver.engine.writer._parked, "there is always a write that waits for its leaf"
        runner.elapse(0.2)  # so much is dirty that answers are held back
    assert whole.ok
    assert ragged.ok


def test_reads_of_a_pool_that_stopped_keep_to_the_budget(store: Store) -> None:
    driver = store.open()
    spread(driver)
    volume = driver.pool.groups["db"].volumes[0]
    driver.engine._fail_stop("an error of the disk")
    for i in range(100):
        assert driver.read(volume, i * LEAF, GRAIN) == pattern(i)
    assert driver.engine.blockmap.held_bytes <= FEW + 16 * ROW + 16384
