"""The embedded pool over real files: locks, kills, reuse of blocks, full pools, journal switches, growth."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockstore.api import (
    MAX_VOLUME_SIZE,
    Busy,
    CachePolicy,
    Closed,
    Corrupt,
    Invalid,
    Locked,
    NewVolume,
    NotFound,
    OutOfRange,
    OutOfSpace,
)
from blockstore.check import check_pool
from blockstore.dump import dump_pool
from blockstore.pool import Tuning, open_pool
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Answer, Driver, ManualRunner, Store, pattern
from tests.scale import scaled

ROOMY = Tuning(grow_step=64 * MIB, reserve=0, map_leaves=1 << 12)


def first_volume(driver: Driver) -> Any:
    return driver.pool.groups["db"].volumes[0]


# ------------------------------------------------------------------------------------------------- opening


def test_everything_is_there_after_a_clean_close_and_after_a_kill(store: Store) -> None:
    driver = store.open()
    group = driver.group(count=2, cache=CachePolicy.WRITETHROUGH)
    driver.write(group.volumes[0], 0, pattern(1, 100 * KIB))
    driver.write(group.volumes[1], MIB, pattern(2, 100 * KIB))
    driver.wait(group.snapshot("s"))
    driver.write(group.volumes[0], 0, pattern(3))
    record, snapshots = group.record, dict(group.snapshots)
    for leave in (store.close, store.kill):
        leave()
        driver = store.open()
        group = driver.pool.groups["db"]
        assert group.record == record
        assert group.snapshots == snapshots
        assert group.volumes[0].uuid == record.volumes[0].uuid
        assert driver.read(group.volumes[0], 0, 100 * KIB) == pattern(3) + pattern(1, 96 * KIB)
        assert driver.read(group.volumes[1], MIB, 100 * KIB) == pattern(2, 100 * KIB)
        driver.write(group.volumes[0], 0, pattern(3))


def test_a_second_opener_is_refused(store: Store) -> None:
    store.open()
    with pytest.raises(Locked):
        open_pool(store.path, ManualRunner())
    with pytest.raises(Locked):
        check_pool(store.path)


def test_an_interrupted_creation_is_begun_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("blockstore.checkpoint.MetaDb.create", _interrupt)
        with pytest.raises(InterruptedError):
            store.open()
    driver = store.open()
    driver.group()


def _interrupt(*_: object) -> None:
    raise InterruptedError


def test_what_is_no_pool_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="its file system is not mounted"):
        open_pool(tmp_path, ManualRunner())
    (tmp_path / "meta.db").touch()
    with pytest.raises(Corrupt):
        open_pool(tmp_path, ManualRunner())
    with pytest.raises(Invalid):
        open_pool(tmp_path, ManualRunner(), create=True, journal_size=1000)


def test_recovering_again_and_again_changes_nothing(store: Store) -> None:
    driver = store.open()
    driver.write(driver.group().volumes[0], 0, pattern(1, MIB))
    for _ in range(4):
        driver = store.reopen()
        assert driver.read(first_volume(driver), 0, MIB) == pattern(1, MIB)
        driver.write(first_volume(driver), 2 * MIB, pattern(2))


def test_a_dump_tells_of_groups_and_batches_and_no_secret(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1), sync=True)
    store.kill()
    text = "\n".join(dump_pool(store.path))
    assert "1 CreateMap, 1 Put" in text
    assert "1 Write" in text


# ------------------------------------------------------------------------------------------------- the journal


def test_a_journal_that_fills_is_switched_and_nothing_is_lost(store: Store) -> None:
    driver = store.open()
    volume = driver.group().volumes[0]
    for i in range(2000):
        driver.write(volume, i % 700 * GRAIN, pattern(i))
    assert driver.pool.statistics().counters["checkpoints"] >= 4
    driver = store.reopen()
    for i in range(1300, 2000):
        assert driver.read(first_volume(driver), i % 700 * GRAIN, GRAIN) == pattern(i)


def test_writers_meeting_a_full_journal_wait_for_the_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path / "pool", tuning=ROOMY)
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 14 * MIB))
    driver.runner.settle()
    answers = [Answer() for _ in range(3000)]
    for i, answer in enumerate(answers):  # no helper thread runs meanwhile: the checkpoint cannot end
        volume.write(i % 4000 * GRAIN, pattern(i), PERMIT, answer)
        driver.runner.tick()
    assert not answers[-1].answered
    snapshot, barrier, ragged = driver.pool.groups["db"].snapshot("s"), Answer(), Answer()
    driver.pool.barrier(barrier)
    volume.write(2999 * GRAIN + 512, b"r" * 512, PERMIT, ragged)
    assert not barrier.answered
    driver.runner.advance(2)
    assert all(answer.ok for answer in answers)
    assert snapshot.done()
    assert barrier.ok
    assert ragged.ok
    assert driver.read(volume, 2999 * GRAIN, 1024) == pattern(2999, 512) + b"r" * 512
    store.prove_whole()


def test_a_write_right_after_the_switch_survives_a_kill(store: Store) -> None:
    """The first batch of the new journal carries the crc of the last one of the old."""
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.pool.checkpoint()  # the switch is made at once; its helper never runs
    answer = Answer()
    volume.write(GRAIN, pattern(2), PERMIT, answer)
    driver.runner.tick()
    assert answer.ok
    driver = store.reopen()
    assert driver.read(first_volume(driver), 0, 2 * GRAIN) == pattern(1) + pattern(2)
    driver = store.reopen()
    assert driver.read(first_volume(driver), 0, 2 * GRAIN) == pattern(1) + pattern(2)


def test_a_write_that_joined_before_the_switch_is_in_the_image(store: Store) -> None:
    """Append, then switch before apply, cannot happen: the switch commits what joined first."""
    driver = store.open()
    volume = driver.group().volumes[0]
    answer = Answer()
    volume.write(0, pattern(1), PERMIT, answer)
    checkpoint = driver.pool.checkpoint()
    assert answer.ok
    driver.wait(checkpoint)
    driver = store.reopen()
    assert driver.engine.recovered.batches == 0
    assert driver.read(first_volume(driver), 0, GRAIN) == pattern(1)


def test_an_image_has_every_node_as_it_was_at_the_switch(store: Store) -> None:
    """SNAP, write, DELETE, switch, SNAP, write, commit, kill: replay over a fuzzy image would go wrong."""
    driver = store.open()
    group = driver.group()
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1, 2 * GRAIN))
    driver.wait(group.snapshot("a"))
    driver.write(volume, 0, pattern(2))
    driver.wait(group.delete_snapshot("a"))
    checkpoint = driver.pool.checkpoint()
    group.snapshot("b")
    volume.write(0, pattern(3), PERMIT, Answer())
    driver.runner.tick()
    driver.wait(checkpoint)
    driver = store.reopen()
    group = driver.pool.groups["db"]
    assert driver.read(group.volumes[0], 0, 2 * GRAIN) == pattern(3) + pattern(1)
    driver.wait(group.rollback("b"))
    assert driver.read(group.volumes[0], 0, 2 * GRAIN) == pattern(2) + pattern(1)


def test_a_trim_in_a_frozen_leaf_leaves_the_snapshot(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, 4 * GRAIN))
    driver.write(group.volumes[0], 2 * MIB, pattern(2, 2 * MIB))
    driver.wait(group.snapshot("s"))
    driver.discard(group.volumes[0], GRAIN, 2 * GRAIN)
    driver.discard(group.volumes[0], 2 * MIB, 2 * MIB)
    driver.wait(driver.pool.sweep())
    driver = store.reopen()
    group = driver.pool.groups["db"]
    assert driver.read(group.volumes[0], 0, 4 * GRAIN) == pattern(1) + bytes(2 * GRAIN) + pattern(1)
    driver.wait(group.rollback("s"))
    assert driver.read(group.volumes[0], 0, 4 * GRAIN) == pattern(1, 4 * GRAIN)
    assert driver.read(group.volumes[0], 2 * MIB, 2 * MIB) == pattern(2, 2 * MIB)


# ------------------------------------------------------------------------------------------------- space


def small_store(path: Path, limit: int = 4 * MIB) -> Store:
    tuning = Tuning(grow_step=MIB, keep_free=0, reserve=0, map_leaves=1 << 12)
    return Store(path, tuning=tuning, size_limit=limit)


def fill(driver: Driver, volume: Any, count: int) -> int:
    """Write grains until the pool is full; how many landed."""
    for i in range(count):
        try:
            driver.write(volume, i * GRAIN, pattern(i))
        except OutOfSpace:
            return i
    return count


def test_a_full_pool_heals_by_itself_after_a_discard(tmp_path: Path) -> None:
    store = small_store(tmp_path / "pool")
    driver = store.open()
    volume = driver.group().volumes[0]
    landed = fill(driver, volume, 2000)
    assert landed == 4 * MIB // GRAIN - 1
    assert driver.read(volume, 0, GRAIN) == pattern(0)
    driver.discard(volume, 0, MIB)
    driver.write(volume, 8 * MIB, pattern(9, 512 * KIB))
    assert driver.read(volume, 8 * MIB, 512 * KIB) == pattern(9, 512 * KIB)
    assert driver.read(volume, MIB, GRAIN) == pattern(MIB // GRAIN)
    store.prove_whole()


def test_a_full_pool_heals_by_itself_after_a_delete(tmp_path: Path) -> None:
    store = small_store(tmp_path / "pool")
    driver = store.open()
    first, second = driver.group("a"), driver.group("b")
    driver.write(second.volumes[0], 0, pattern(5))
    fill(driver, first.volumes[0], 2000)
    driver.wait(driver.pool.delete_group("a"))
    driver.write(second.volumes[0], 0, pattern(6, 3 * MIB))
    assert driver.read(second.volumes[0], 0, 3 * MIB) == pattern(6, 3 * MIB)
    store.prove_whole()


@pytest.mark.parametrize("private_frees", [True, False])
def test_overwriting_in_a_small_pool_never_runs_out_of_space(tmp_path: Path, private_frees: bool) -> None:
    store = small_store(tmp_path / "pool")
    store.tuning = replace(store.tuning, private_frees=private_frees)
    driver = store.open()
    volume = driver.group().volumes[0]
    for i in range(3000):
        driver.write(volume, i % 300 * GRAIN, pattern(i))
    for i in range(2700, 3000):
        assert driver.read(volume, i % 300 * GRAIN, GRAIN) == pattern(i)
    assert (driver.pool.statistics().counters["sweeps"] > 1) is not private_frees
    store.prove_whole()


def test_private_frees_may_be_switched_off_and_on_between_two_lives(tmp_path: Path) -> None:
    store = small_store(tmp_path / "pool")
    for life in range(4):
        store.tuning = replace(store.tuning, private_frees=life % 2 == 0)
        driver = store.open()
        volume = (driver.pool.groups.get("db") or driver.group()).volumes[0]
        for i in range(600):
            driver.write(volume, i % 300 * GRAIN, pattern(1000 * life + i))
        for i in range(300, 600):
            assert driver.read(volume, i % 300 * GRAIN, GRAIN) == pattern(1000 * life + i)
        store.close()
        assert store.check().findings == ()


def test_a_pool_that_is_full_at_start_counts_its_space_before_it_refuses(tmp_path: Path) -> None:
    store = small_store(tmp_path / "pool")
    driver = store.open()
    volume = driver.group().volumes[0]
    fill(driver, volume, 2000)
    driver.discard(volume, 0, MIB)
    driver = store.reopen()
    driver.write(first_volume(driver), 0, pattern(1))
    store.prove_whole()


def test_a_write_that_outwaits_the_count_of_space_is_told_to_try_again(tmp_path: Path) -> None:
    """Busy, never OutOfSpace: nobody knows yet that there is none."""
    store = small_store(tmp_path / "pool")
    driver = store.open()
    fill(driver, driver.group().volumes[0], 2000)
    driver.discard(first_volume(driver), 0, MIB)
    driver = store.reopen()
    answer = Answer()
    first_volume(driver).write(0, pattern(1), PERMIT, answer)
    for _ in range(600):  # helpers hang: what the opening sweep found cannot be released
        driver.runner.tick()
        driver.runner.elapse(0.01)
    assert isinstance(answer.error, Busy)
    assert driver.read(first_volume(driver), 0, GRAIN) == bytes(GRAIN)
    driver.runner.settle()
    driver.write(first_volume(driver), 0, pattern(1))
    store.prove_whole()


def test_a_block_reused_between_two_checkpoints_costs_no_acknowledged_write(tmp_path: Path) -> None:
    """Written, overwritten, swept and written again: replay must find every older batch's data as it was."""
    store = small_store(tmp_path / "pool")
    driver = store.open()
    volume = driver.group().volumes[0]
    rng, expected = random.Random(3), {}
    for i in range(1500):
        grain = rng.randrange(200)
        driver.write(volume, grain * GRAIN, pattern(i))
        expected[grain] = pattern(i)
        if i % 97 == 0:
            driver.pool.sweep()
            driver.runner.elapse(0.01)
        if i % 400 == 399:
            driver = store.reopen()
            volume = first_volume(driver)
            for grain, content in expected.items():
                assert driver.read(volume, grain * GRAIN, GRAIN) == content
    store.prove_whole()


def test_used_follows_what_is_mapped_after_a_sweep(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, 4 * MIB))
    driver.wait(group.snapshot("s"))
    driver.write(group.volumes[0], 0, pattern(2, MIB))
    assert driver.pool.statistics().used == 5 * MIB
    driver.wait(group.delete_snapshot("s"))
    assert driver.wait(driver.pool.sweep()) == MIB
    assert driver.pool.statistics().used == 4 * MIB
    driver.discard(group.volumes[0], 0, 4 * MIB)
    driver.runner.advance(5)
    assert driver.pool.statistics().used == 0
    assert driver.engine.blockmap.leaves.in_use == 0


def test_a_sweep_during_writes_and_verbs_frees_nothing_that_is_referenced(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    volume, rng, expected = group.volumes[0], random.Random(5), {}
    for round_ in range(12):
        swept = driver.pool.sweep()
        for i in range(60):
            grain = rng.randrange(1500)
            expected[grain] = pattern(round_ * 100 + i)
            volume.write(grain * GRAIN, expected[grain], PERMIT, Answer())
            driver.runner.elapse(0.0005)
            driver.runner.tick()
        if round_ % 3 == 0:
            group.snapshot(f"s{round_}")
        if round_ % 3 == 2:
            group.delete_snapshot(f"s{round_ - 2}")
        driver.wait(swept)
        for grain, content in expected.items():
            assert driver.read(volume, grain * GRAIN, GRAIN) == content


def test_what_is_freed_after_a_switch_waits_for_the_next_checkpoint(store: Store) -> None:
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.runner.advance(0.2)  # the opening sweep is over
    driver.write(volume, 0, pattern(1, MIB))
    checkpoint = driver.pool.checkpoint()
    driver.finish(lambda answer: volume.discard(0, MIB, PERMIT, answer))
    assert checkpoint.done()
    assert driver.pool.statistics().pending_free == MIB
    driver.wait(driver.pool.checkpoint())
    assert driver.pool.statistics().pending_free == 0


def test_a_pin_keeps_what_was_freed_since_from_being_reused(store: Store) -> None:
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, MIB))
    pin = driver.engine._space.pin()
    driver.discard(volume, 0, MIB)
    for _ in range(3):
        driver.wait(driver.pool.checkpoint())
    assert driver.pool.statistics().pending_free == MIB
    pin.release()
    driver.runner.settle()
    assert driver.pool.statistics().pending_free == 0


def test_a_sweep_frees_nothing_below_an_older_pin(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, MIB))
    driver.wait(group.snapshot("s"))
    driver.wait(driver.pool.checkpoint())
    pin = driver.engine._space.pin()
    driver.discard(group.volumes[0], 0, MIB)
    driver.wait(group.delete_snapshot("s"))
    used = driver.pool.statistics().used
    swept = driver.pool.sweep()
    driver.runner.advance(5)
    assert not swept.done()
    assert driver.pool.statistics().used == used
    pin.release()
    assert driver.wait(swept) == MIB
    assert driver.pool.statistics().used == used - MIB


def test_a_write_that_waits_for_space_while_its_volume_goes_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "pool")
    driver = store.open()
    group = driver.group(count=2, size=MIB)
    driver.wait(group.snapshot("small"))
    driver.wait(group.resize(0, 8 * MIB))
    removed, shrunk = Answer(), Answer()
    group.volumes[1].write(0, pattern(1, MIB), PERMIT, removed)
    group.volumes[0].write(2 * MIB, pattern(2, 6 * MIB), PERMIT, shrunk)
    driver.runner.tick()
    rolled_back = group.rollback("small")
    taken = group.remove_volume(1)
    driver.wait(rolled_back)
    driver.wait(taken)
    driver.runner.advance(1)
    assert isinstance(shrunk.error, OutOfRange)
    assert removed.ok or isinstance(removed.error, NotFound)
    store.prove_whole()


def test_free_space_goes_back_to_the_host(tmp_path: Path) -> None:
    store = small_store(tmp_path / "pool", limit=64 * MIB)
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 16 * MIB))
    driver.runner.advance(1)
    before = os.stat(store.path / "data").st_blocks
    driver.discard(volume, 0, 16 * MIB)
    driver.runner.advance(5)
    assert os.stat(store.path / "data").st_blocks < before - 12 * MIB // 512
    driver.write(volume, 0, pattern(2, 16 * MIB))
    assert driver.read(volume, 0, 16 * MIB) == pattern(2, 16 * MIB)
    store.prove_whole()


def test_map_memory_that_is_used_up_refuses_writes_and_still_trims(tmp_path: Path) -> None:
    store = Store(tmp_path / "pool", tuning=Tuning(grow_step=2 * MIB, reserve=0, map_leaves=1 << 10))
    driver = store.open()
    group = driver.group(size=8 << 30)
    volume = group.volumes[0]
    for i in range(1000):
        driver.write(volume, i * 2 * MIB, pattern(i))
    with pytest.raises(OutOfSpace, match="map memory"):
        driver.write(volume, 2000 * MIB, pattern(1, 100 * MIB))
    driver.discard(volume, 0, 8 << 30)
    driver.runner.advance(3)
    driver.wait(driver.pool.sweep())
    driver.write(volume, 0, pattern(1))
    store.prove_whole()


def test_a_batch_over_scattered_blocks_stays_within_the_journal(tmp_path: Path) -> None:
    """Every grain of a large write needs a record of its own when free space is in single blocks."""
    store = small_store(tmp_path / "pool", limit=16 * MIB)
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 16 * MIB - 2 * GRAIN))
    for grain in range(0, 16 * MIB // GRAIN - 2, 2):
        driver.discard(volume, grain * GRAIN, GRAIN)
    driver.wait(driver.pool.sweep())
    journal = driver.engine._journal
    driver.pool.checkpoint()  # no helper runs: it cannot end, and the journal fills up
    while journal.fits(5000):
        volume.write(0, pattern(2), PERMIT, Answer())
        driver.runner.tick()
    answer = Answer()
    volume.write(0, pattern(3, MIB), PERMIT, answer)
    driver.runner.tick()
    assert journal.position <= journal.size
    driver.runner.advance(1)
    assert answer.ok
    assert driver.read(volume, 0, MIB) == pattern(3, MIB)
    store.prove_whole()


def test_nobody_waits_for_the_whole_of_a_huge_discard(store: Store) -> None:
    """A barrier, or a read that meets it, commits the piece that joined, not all that will join after it."""
    driver = store.open()
    volume = driver.group(size=MAX_VOLUME_SIZE).volumes[0]
    last = MAX_VOLUME_SIZE - GRAIN
    driver.write(volume, 0, pattern(1))
    driver.write(volume, last, pattern(2))
    discarded, barrier = Answer(), Answer()
    volume.discard(MAX_VOLUME_SIZE >> 1, MAX_VOLUME_SIZE >> 1, PERMIT, discarded)
    driver.pool.barrier(barrier)
    assert barrier.ok
    assert not discarded.answered
    assert driver.engine.writer.batches <= 3
    assert driver.read(volume, last, GRAIN) == pattern(2) or discarded.ok
    store.close()
    assert discarded.answered


def test_the_largest_volume_is_snapshotted_and_cloned_and_swept_in_any_order(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=MAX_VOLUME_SIZE)
    offsets = [0, 2 * MIB - GRAIN, 8 << 30, (8 << 30) - GRAIN, MAX_VOLUME_SIZE >> 1, MAX_VOLUME_SIZE - GRAIN]
    groups = {"db": group}
    expected: dict[str, dict[int, bytes]] = {"db": {}}
    rng = random.Random(9)
    for i in range(40):
        name = rng.choice(sorted(groups))
        offset = rng.choice(offsets)
        expected[name][offset] = pattern(i)
        driver.write(groups[name].volumes[0], offset, pattern(i))
        if i % 4 == 3:  # clones of clones
            driver.wait(groups[name].snapshot(f"s{i}"))
            clone = driver.wait(driver.pool.clone_group(name, f"s{i}", f"c{i}", iqn=f"c{i}", clients=[]))
            groups[f"c{i}"], expected[f"c{i}"] = clone, dict(expected[name])
        if i % 9 == 8:
            gone = rng.choice(sorted(groups))
            driver.wait(driver.pool.delete_group(gone))
            del groups[gone], expected[gone]
            driver.wait(driver.pool.sweep())
        if i % 13 == 12:
            driver = store.reopen()
            groups = dict(driver.pool.groups)
        for name, group in groups.items():
            for offset in offsets:
                assert driver.read(group.volumes[0], offset, GRAIN) == expected[name].get(offset, bytes(GRAIN))
        if not groups:
            groups, expected["db"] = {"db": driver.group(size=MAX_VOLUME_SIZE)}, {}


def test_thousands_of_trims_in_one_tick_are_more_than_one_batch(store: Store) -> None:
    driver = store.open()
    volume = driver.group(size=64 * MIB).volumes[0]
    answers = [Answer() for _ in range(9000)]  # together they would be larger than the whole journal
    for i, answer in enumerate(answers):
        volume.discard(i * GRAIN, GRAIN, PERMIT, answer)
    driver.runner.advance(1)
    assert all(answer.ok for answer in answers)


# ------------------------------------------------------------------------------------------------- small things


def test_short_writes_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def short(fd: int, buffers: Sequence[Any], offset: int) -> int:
        whole = b"".join(buffers)
        return real(fd, [whole[: max(1, len(whole) * 2 // 3)]], offset)

    driver = store.open()
    volume = driver.group().volumes[0]
    monkeypatch.setattr(os, "pwritev", short)
    driver.write(volume, 0, pattern(1, MIB))
    monkeypatch.undo()
    driver = store.reopen()
    assert driver.read(first_volume(driver), 0, MIB) == pattern(1, MIB)


def test_an_empty_batch_tells_the_disk_what_was_flushed(store: Store) -> None:
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    journal = driver.engine._journal
    told = journal.told_seq
    driver.runner.advance(1.5)
    assert journal.told_seq > told
    assert journal.told_seq == journal.last_content_seq
    last = journal.last_seq
    driver.flush(volume)
    driver.runner.advance(5)
    assert journal.last_seq == last, "an empty batch is not told of by another one"


def test_all_who_wait_for_a_flush_share_rounds(store: Store) -> None:
    driver = store.open()
    volume = driver.group().volumes[0]
    rounds = driver.pool.statistics().counters["flush_rounds"]
    answers = [Answer() for _ in range(50)]
    for i, answer in enumerate(answers):
        volume.write(i * GRAIN, pattern(i), PERMIT, answer, sync=True)
        if i % 10 == 0:
            driver.runner.tick()
    driver.runner.settle()
    assert all(answer.ok for answer in answers)
    assert driver.pool.statistics().counters["flush_rounds"] - rounds == 2


def test_much_unsynced_data_begins_a_sync_and_slows_writers(tmp_path: Path) -> None:
    tuning = Tuning(grow_step=16 * MIB, reserve=0, map_leaves=1 << 12, unsynced_cap=2 * MIB)
    store = Store(tmp_path / "pool", tuning=tuning)
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.runner.settle()
    answers = [Answer() for _ in range(8)]
    for i, answer in enumerate(answers):
        volume.write(i * 256 * KIB, pattern(i, 256 * KIB), PERMIT, answer)
        driver.runner.tick()
    assert answers[3].ok
    assert not answers[-1].answered
    driver.runner.advance(1)
    assert all(answer.ok for answer in answers)
    assert driver.engine._rounds.unsynced_bytes <= MIB
    store.prove_whole()


def test_a_batch_is_bounded_and_keeps_the_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "pool", tuning=ROOMY)
    driver = store.open()
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(0, 12 * MIB))
    answers = [Answer() for _ in range(10)]
    for i, answer in enumerate(answers):
        volume.write(0, pattern(i, MIB), PERMIT, answer)
    driver.runner.tick()
    assert [answer.answered for answer in answers] == [True] * 4 + [False] * 6
    driver.runner.settle()
    assert driver.read(volume, 0, MIB) == pattern(9, MIB)
    store.prove_whole()


def test_ten_thousand_grains_survive_with_their_neighbours_checksums(store: Store) -> None:
    driver = store.open()
    volume = driver.group(size=64 * MIB).volumes[0]
    driver.write(volume, MIB - GRAIN, pattern(1, 9 * MIB))
    driver.wait(driver.pool.groups["db"].add_volume(NewVolume(MIB)))
    driver = store.reopen()
    assert driver.read(first_volume(driver), MIB - GRAIN, 9 * MIB) == pattern(1, 9 * MIB)


def test_a_verb_whose_caller_gave_up_keeps_nobody_else_from_their_answer(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    snapshot, flushed = group.snapshot("s"), Answer()
    group.volumes[0].write(0, pattern(1), PERMIT, flushed, sync=True)
    other = group.snapshot("t")
    futures: list[Future[Any]] = [snapshot, driver.pool.checkpoint(), driver.pool.sweep()]
    for future in futures:
        assert not future.cancel()
    driver.runner.advance(1)
    assert flushed.ok
    assert other.result(0).name == "t"


def test_closing_answers_everyone_once(tmp_path: Path) -> None:
    """Delayed acknowledgements, writes that wait for space, ragged ones, verbs, sweeps, flushes; then only refusals."""
    store = Store(tmp_path / "pool", tuning=Tuning(grow_step=MIB, reserve=0, map_leaves=1 << 12, unsynced_cap=MIB))
    driver = store.open()
    group = driver.group()
    volume = group.volumes[0]
    driver.runner.settle()
    answers = [Answer() for _ in range(40)]
    for i, answer in enumerate(answers):
        volume.write(i * 100 * KIB + i * 512, pattern(i, 100 * KIB), PERMIT, answer, sync=i % 7 == 0)
        if i % 5 == 0:
            driver.runner.tick()
    flushed, barrier, trimmed = Answer(), Answer(), Answer()
    volume.flush(flushed)
    driver.pool.barrier(barrier)
    volume.discard(512, 8 * MIB, PERMIT, trimmed)
    futures: list[Future[Any]] = [group.snapshot("s"), driver.pool.sweep(), driver.pool.checkpoint()]
    closed = driver.pool.close()
    driver.runner.settle()  # no timer runs any more
    assert closed.done()
    for answer in [*answers, flushed, barrier, trimmed]:
        assert len(answer.calls) == 1
    assert all(future.done() for future in futures)
    late = Answer()
    volume.write(0, pattern(1), PERMIT, late)
    volume.flush(late)
    volume.discard(0, GRAIN, PERMIT, late)
    volume.read(0, memoryview(bytearray(GRAIN)), late)
    assert [type(error) for error in late.calls] == [Closed] * 4
    with pytest.raises(Closed):
        volume.read_now(0, memoryview(bytearray(GRAIN)))
    store.driver = None
    store.prove_whole()


# ------------------------------------------------------------------------------------------------- kill -9

WRITER = """
import sys
from pathlib import Path
from tests.blockstore.support import GRAIN, PERMIT, Store, pattern
driver = Store(Path(sys.argv[1])).open()
volume = driver.group().volumes[0]
i = 0
while True:
    for j in range(i, i + 7):
        driver.pool.groups["db"].volumes[0].write(j % 900 * GRAIN, pattern(j), PERMIT,
            lambda error, j=j: print(j, flush=True) if error is None else sys.exit(1))
    driver.runner.advance(0.01)
    i += 7
"""


@pytest.mark.slow
@pytest.mark.parametrize("acknowledged", [20, 1500, *(37 * i for i in range(1, scaled(1)))])
def test_after_kill_9_every_acknowledged_write_is_there(store: Store, acknowledged: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.stdout is not None
    for _ in range(acknowledged):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    last = max([last, *map(int, rest[:-1])])  # the last line may be torn
    driver = store.open()
    volume = first_volume(driver)
    for grain in range(min(900, last + 1)):
        newest = last - (last - grain) % 900
        found = driver.read(volume, grain * GRAIN, GRAIN)
        assert found in [pattern(newest + 900 * later) for later in range(3)]
