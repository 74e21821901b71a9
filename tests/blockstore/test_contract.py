"""What every engine promises (blockstore/api.py): the same tests against the memory pool and the embedded one."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from blockstore.api import (
    AlreadyExists,
    CachePolicy,
    ChapSecret,
    ClientRecord,
    Closed,
    Invalid,
    NewVolume,
    NotFound,
    OutOfRange,
    Revoked,
    StandingPermit,
    StoreError,
)
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Answer, Driver, pattern


def test_an_unwritten_volume_reads_as_zeros(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    assert driver.read(volume, 3 * GRAIN, 2 * GRAIN) == bytes(2 * GRAIN)


def test_a_write_is_read_back(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 5 * GRAIN, pattern(1))
    assert driver.read(volume, 5 * GRAIN, GRAIN) == pattern(1)


def test_a_large_write_is_read_back_over_its_neighbours(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 3 * MIB))
    driver.write(volume, MIB, pattern(2, MIB))
    assert driver.read(volume, 0, 3 * MIB) == pattern(1, MIB) + pattern(2, MIB) + pattern(1, MIB)


def test_a_write_of_several_mebibytes_is_read_back(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, GRAIN, pattern(7, 9 * MIB))
    assert driver.read(volume, GRAIN, 9 * MIB) == pattern(7, 9 * MIB)


def test_a_write_of_one_sector_keeps_the_rest_of_its_grain(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.write(volume, 1024, b"x" * 512)
    assert driver.read(volume, 0, GRAIN) == pattern(1)[:1024] + b"x" * 512 + pattern(1)[1536:]


def test_a_ragged_write_over_several_grains_keeps_both_edges(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 4 * GRAIN))
    driver.write(volume, 512, pattern(2, 3 * GRAIN))
    expected = pattern(1, 512) + pattern(2, 3 * GRAIN) + pattern(1, 4 * GRAIN)[3 * GRAIN + 512 :]
    assert driver.read(volume, 0, 4 * GRAIN) == expected


def test_two_sector_writes_into_one_grain_in_one_tick_both_land(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    first, second = Answer(), Answer()
    volume.write(0, b"a" * 512, PERMIT, first)
    volume.write(512, b"b" * 512, PERMIT, second)
    driver.runner.settle()
    assert first.ok
    assert second.ok
    assert driver.read(volume, 0, 1536) == b"a" * 512 + b"b" * 512 + bytes(512)


def test_the_last_of_two_writes_to_one_grain_in_one_tick_wins(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    first, second = Answer(), Answer()
    volume.write(0, pattern(1), PERMIT, first)
    volume.write(0, pattern(2), PERMIT, second)
    driver.runner.settle()
    assert driver.read(volume, 0, GRAIN) == pattern(2)


def test_a_read_that_meets_a_pending_write_sees_it_committed(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    answer = Answer()
    volume.write(0, pattern(1), PERMIT, answer)
    assert not answer.answered
    into = bytearray(GRAIN)
    assert volume.read_now(0, memoryview(into))
    assert bytes(into) == pattern(1)
    assert answer.ok


def test_zeros_are_not_stored(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, 4 * GRAIN))
    driver.write(group.volumes[0], 0, pattern(2) + bytes(2 * GRAIN) + pattern(3))
    assert group.mapped_bytes(0) == 2 * GRAIN
    assert driver.read(group.volumes[0], 0, 4 * GRAIN) == pattern(2) + bytes(2 * GRAIN) + pattern(3)


def test_discard_unmaps_whole_grains_and_zeroes_the_edges(driver: Driver) -> None:
    group = driver.group()
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1, 8 * GRAIN))
    driver.discard(volume, 512, 4 * GRAIN)
    assert driver.read(volume, 0, 8 * GRAIN) == (
        pattern(1, 512) + bytes(4 * GRAIN) + pattern(1, 8 * GRAIN)[4 * GRAIN + 512 :]
    )
    assert group.mapped_bytes(0) == 5 * GRAIN


def test_discard_within_one_grain_zeroes_only_that(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.discard(volume, 512, 1024)
    assert driver.read(volume, 0, GRAIN) == pattern(1, 512) + bytes(1024) + pattern(1, GRAIN - 1536)


def test_discard_of_a_whole_volume_unmaps_everything(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, 5 * MIB))
    driver.discard(group.volumes[0], 0, 16 * MIB)
    assert group.mapped_bytes(0) == 0
    assert driver.read(group.volumes[0], 4 * MIB, MIB) == bytes(MIB)


def test_a_runs_state_is_told_to_its_end(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 4 * GRAIN, pattern(1, 2 * GRAIN))
    assert volume.unmapped_run(0) == (False, 4 * GRAIN)
    assert volume.unmapped_run(4 * GRAIN + 512) == (True, 2 * GRAIN - 512)
    assert volume.unmapped_run(6 * GRAIN) == (False, 8 * MIB)


@pytest.mark.parametrize(
    ("offset", "length"), [(16 * MIB, 512), (16 * MIB - 512, 1024), (100, 512), (0, 100), (-512, 512)]
)
def test_what_leaves_the_volume_is_refused(driver: Driver, offset: int, length: int) -> None:
    volume = driver.group().volumes[0]
    for verb in (
        lambda answer: volume.write(offset, bytes(length), PERMIT, answer),
        lambda answer: volume.discard(offset, length, PERMIT, answer),
        lambda answer: volume.read(offset, memoryview(bytearray(length)), answer),
    ):
        with pytest.raises(OutOfRange):
            driver.finish(verb)


def test_a_write_whose_permit_is_revoked_before_the_commit_never_lands(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1))
    permit, revoked, kept = StandingPermit(), Answer(), Answer()
    volume.write(0, pattern(2), permit, revoked)
    volume.write(GRAIN, pattern(3), PERMIT, kept)
    permit.revoked = True
    driver.finish(driver.pool.barrier)
    assert isinstance(revoked.error, Revoked)
    assert kept.ok
    assert driver.read(volume, 0, 2 * GRAIN) == pattern(1) + pattern(3)


def test_a_revoked_discard_never_lands(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1))
    permit, answer = StandingPermit(), Answer()
    volume.discard(0, GRAIN, permit, answer)
    permit.revoked = True
    driver.runner.settle()
    assert isinstance(answer.error, Revoked)
    assert driver.read(volume, 0, GRAIN) == pattern(1)


def test_a_barrier_answers_after_what_joined_before_it(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    write, barrier = Answer(), Answer()
    volume.write(0, pattern(1), PERMIT, write)
    driver.pool.barrier(barrier)
    driver.runner.settle()
    assert write.ok
    assert barrier.ok


def test_flush_and_sync_writes_are_answered(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    driver.write(volume, GRAIN, pattern(2))
    driver.flush(volume)
    driver.flush(volume)
    assert driver.read(volume, 0, 2 * GRAIN) == pattern(1) + pattern(2)


def test_write_through_is_the_groups_policy(driver: Driver) -> None:
    group = driver.group(cache=CachePolicy.WRITETHROUGH)
    assert group.volumes[0].write_through
    driver.write(group.volumes[0], 0, pattern(1))
    driver.wait(group.update(cache=CachePolicy.WRITEBACK))
    assert not group.volumes[0].write_through


# ------------------------------------------------------------------------------------------------------- groups


def test_a_snapshot_keeps_all_volumes_of_that_moment(driver: Driver) -> None:
    group = driver.group(count=2)
    for lun in (0, 1):
        driver.write(group.volumes[lun], 0, pattern(lun))
    snapshot = driver.wait(group.snapshot("before"))
    for lun in (0, 1):
        driver.write(group.volumes[lun], 0, pattern(8 + lun))
    assert [volume.lun for volume in snapshot.volumes] == [0, 1]
    clone = driver.wait(driver.pool.clone_group("db", "before", "copy", iqn="iqn.copy", clients=[]))
    assert [driver.read(clone.volumes[lun], 0, GRAIN) for lun in (0, 1)] == [pattern(0), pattern(1)]
    assert [driver.read(group.volumes[lun], 0, GRAIN) for lun in (0, 1)] == [pattern(8), pattern(9)]


def test_a_snapshot_includes_what_joined_before_it(driver: Driver) -> None:
    group = driver.group()
    group.volumes[0].write(0, pattern(1), PERMIT, Answer())
    snapshot = group.snapshot("s")
    group.volumes[0].write(0, pattern(2), PERMIT, Answer())
    driver.wait(snapshot)
    driver.wait(group.rollback("s"))
    assert driver.read(group.volumes[0], 0, GRAIN) == pattern(1)


def test_a_clone_is_independent_of_its_origin(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, 2 * GRAIN))
    driver.wait(group.snapshot("s"))
    clone = driver.wait(driver.pool.clone_group("db", "s", "copy", iqn="iqn.copy", clients=[]))
    driver.write(clone.volumes[0], 0, pattern(2))
    driver.write(group.volumes[0], GRAIN, pattern(3))
    assert driver.read(clone.volumes[0], 0, 2 * GRAIN) == pattern(2) + pattern(1)
    assert driver.read(group.volumes[0], 0, 2 * GRAIN) == pattern(1) + pattern(3)
    assert clone.record.origin == "db@s"
    assert clone.volumes[0].uuid != group.volumes[0].uuid


def test_a_clone_outlives_its_origin(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1))
    driver.wait(group.snapshot("s"))
    clone = driver.wait(driver.pool.clone_group("db", "s", "copy", iqn="iqn.copy", clients=[]))
    driver.wait(driver.pool.delete_group("db"))
    driver.wait(driver.pool.sweep())
    assert driver.read(clone.volumes[0], 0, GRAIN) == pattern(1)
    assert list(driver.pool.groups) == ["copy"]


def test_rollback_restores_content_size_and_volumes_and_keeps_the_objects(driver: Driver) -> None:
    group = driver.group(size=MIB, count=2)
    kept, removed = group.volumes[0], group.volumes[1]
    driver.write(kept, 0, pattern(1))
    driver.write(removed, 0, pattern(2))
    driver.wait(group.snapshot("s"))
    driver.write(kept, 0, pattern(3))
    driver.wait(group.resize(0, 2 * MIB))
    driver.wait(group.remove_volume(1))
    driver.wait(group.add_volume(NewVolume(MIB, "later")))
    automatic = driver.wait(group.rollback("s"))
    assert group.volumes[0] is kept
    assert kept.size == MIB
    assert driver.read(kept, 0, GRAIN) == pattern(1)
    assert sorted(group.volumes) == [0, 1]
    assert driver.read(group.volumes[1], 0, GRAIN) == pattern(2)
    assert automatic.name.startswith("before-rollback-")
    assert automatic.name in group.snapshots
    assert driver.wait(group.add_volume(NewVolume(MIB))).lun == 3


def test_the_automatic_snapshot_of_a_rollback_takes_it_back(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1))
    driver.wait(group.snapshot("s"))
    driver.write(group.volumes[0], 0, pattern(2))
    automatic = driver.wait(group.rollback("s"))
    driver.wait(group.rollback(automatic.name))
    assert driver.read(group.volumes[0], 0, GRAIN) == pattern(2)


def test_deleting_a_snapshot_leaves_the_volume(driver: Driver) -> None:
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1))
    driver.wait(group.snapshot("s"))
    driver.write(group.volumes[0], GRAIN, pattern(2))
    driver.wait(group.delete_snapshot("s"))
    driver.wait(driver.pool.sweep())
    assert driver.read(group.volumes[0], 0, 2 * GRAIN) == pattern(1) + pattern(2)
    assert not group.snapshots


def test_resize_grows_in_place_and_never_shrinks(driver: Driver) -> None:
    group = driver.group(size=MIB)
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1))
    assert driver.wait(group.resize(0, 20 << 30)).size == 20 << 30
    driver.write(volume, (20 << 30) - GRAIN, pattern(2))
    assert driver.read(volume, 0, GRAIN) == pattern(1)
    assert driver.read(volume, (20 << 30) - GRAIN, GRAIN) == pattern(2)
    with pytest.raises(Invalid):
        driver.wait(group.resize(0, MIB))


def test_a_removed_volume_refuses_io(driver: Driver) -> None:
    group = driver.group(count=2)
    volume = group.volumes[1]
    driver.wait(group.remove_volume(1))
    with pytest.raises(NotFound):
        driver.write(volume, 0, pattern(1))
    with pytest.raises(NotFound):
        driver.read(volume, 0, GRAIN)


def test_names_luns_and_sizes_are_kept_apart(driver: Driver) -> None:
    group = driver.group()
    refusals: list[tuple[Future[Any], type[StoreError]]] = [
        (driver.pool.create_group("db", iqn="iqn.other", volumes=[]), AlreadyExists),
        (driver.pool.create_group("other", iqn="iqn.2026-01.test:db", volumes=[]), AlreadyExists),
        (driver.pool.create_group("a/b", iqn="iqn.x", volumes=[]), Invalid),
        (driver.pool.create_group("odd", iqn="iqn.odd", volumes=[NewVolume(1000)]), Invalid),
        (driver.pool.create_group("none", iqn="iqn.none", volumes=[NewVolume(0)]), Invalid),
        (driver.pool.delete_group("nobody"), NotFound),
        (driver.pool.clone_group("db", "nothing", "c", iqn="iqn.c", clients=[]), NotFound),
        (group.delete_snapshot("nothing"), NotFound),
        (group.rollback("nothing"), NotFound),
        (group.resize(7, MIB), NotFound),
        (group.add_volume(NewVolume(MIB, "vol0")), AlreadyExists),
    ]
    for future, error in refusals:
        with pytest.raises(error):
            driver.wait(future)


def test_clients_and_secrets_are_kept(driver: Driver) -> None:
    client = ClientRecord("iqn.host", "10.0.0.0/8", ChapSecret("u", "s" * 12), ChapSecret("m", "t" * 12))
    group = driver.group()
    assert driver.wait(group.update(clients=[client])).clients == (client,)
    assert group.record.clients == (client,)
    assert "ssss" not in repr(group.record)


def test_a_closed_pool_refuses(driver: Driver) -> None:
    group = driver.group()
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.wait(driver.pool.close())
    with pytest.raises(Closed):
        driver.write(volume, 0, pattern(2))
    with pytest.raises(Closed):
        driver.wait(driver.pool.delete_group("db"))


def test_statistics_count(driver: Driver) -> None:
    volume = driver.group().volumes[0]
    driver.write(volume, 0, pattern(1, 64 * KIB))
    driver.read(volume, 0, 64 * KIB)
    statistics = driver.pool.statistics()
    assert statistics.state == "serving"
    assert statistics.used == 64 * KIB
    assert statistics.counters["writes"] >= 1
    assert statistics.counters["read_bytes"] >= 64 * KIB
