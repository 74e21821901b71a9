"""Disks that fail: what is answered then, what never is, and what the next start finds."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from blockstore.api import (
    AlreadyExists,
    CachePolicy,
    Corrupt,
    FailStopped,
    MediumError,
    NotFound,
    OutOfSpace,
    Revoked,
    StandingPermit,
    Undecided,
)
from blockstore.check import check_directory
from blockstore.layout import UNIT_SHIFT
from blockstore.volume import EngineVolume
from tests.blockstore.powercut import TUNING, Cutter, FakeDisk, open_disk, restart
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Answer, pattern


def block_of(volume: object, offset: int) -> int:
    """Where the volume's grain at ``offset`` lies in the data file, in bytes."""
    assert isinstance(volume, EngineVolume)
    return volume._blockmap.entry(volume.map, offset // GRAIN)[0] << UNIT_SHIFT


# -------------------------------------------------------------------------------------------------- failing syncs


@pytest.mark.parametrize("file", ["data", "journal.1", "journal.0"])
def test_after_a_failed_sync_nothing_is_acknowledged_any_more(disk: FakeDisk, file: str) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    disk.faults["sync", file] = [errno.EIO]
    flushed = Answer()
    volume.write(GRAIN, pattern(2), PERMIT, Answer())
    volume.flush(flushed)
    driver.runner.settle()
    if file == f"journal.{driver.engine._journal.epoch + 1 & 1}":
        assert flushed.ok  # nothing to sync there: the fault never came
        return
    assert isinstance(flushed.error, FailStopped)
    for verb in (
        lambda answer: volume.write(0, pattern(3), PERMIT, answer),
        lambda answer: volume.discard(0, GRAIN, PERMIT, answer),
        volume.flush,
    ):
        with pytest.raises(FailStopped):
            driver.finish(verb)
    with pytest.raises(FailStopped):
        driver.wait(driver.pool.groups["db"].snapshot("s"))
    with pytest.raises(FailStopped):
        driver.wait(driver.pool.checkpoint())
    assert driver.pool.statistics().state == "fail-stopped"
    assert driver.read(volume, 0, GRAIN) == pattern(1)
    driver.wait(driver.pool.close())


def test_a_sync_write_whose_sync_fails_is_refused_and_a_later_success_means_nothing(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB, cache=CachePolicy.WRITETHROUGH).volumes[0]
    disk.faults["sync", "data"] = [errno.EIO]  # the next sync returns 0, as Linux's does
    first, second = Answer(), Answer()
    volume.write(0, pattern(1), PERMIT, first)
    driver.runner.tick()
    volume.write(GRAIN, pattern(2), PERMIT, second)
    driver.runner.settle()
    assert isinstance(first.error, FailStopped)
    assert isinstance(second.error, FailStopped)


def test_a_failed_sync_of_a_checkpoint_wakes_no_flusher(disk: FakeDisk) -> None:
    """The saver's sync fails while the flusher's would return 0: the latch under their common lock decides."""
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.faults["sync", "data"] = [errno.EIO]
    checkpoint, flushed = driver.pool.checkpoint(), Answer()
    while disk.faults["sync", "data"]:
        driver.runner.tick()
        driver.runner.run_thread_work()
    volume.flush(flushed)
    driver.runner.settle()
    assert isinstance(flushed.error, FailStopped)
    assert isinstance(checkpoint.exception(), FailStopped)


def test_a_failed_commit_stops_the_pool_and_keeps_the_old_image(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    disk.faults["commit", "meta.db"] = [errno.EIO]
    with pytest.raises(FailStopped):
        driver.wait(driver.pool.checkpoint())
    driver = restart(disk)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)


def test_a_block_that_only_the_cache_has_is_rescued_on_the_same_boot(disk: FakeDisk) -> None:
    """Failed fdatasync of data, the process restarts, then the power goes: acknowledged writes were put back."""
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.faults["sync", "data"] = [errno.EIO]
    with pytest.raises(FailStopped):
        driver.flush(volume)
    disk.files["journal.0"]._write_back()
    disk.files["journal.1"]._write_back()
    driver = restart(disk)
    assert driver.engine.recovered.rewritten == 1
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)


def test_after_another_boot_a_batch_without_its_data_ends_the_replay(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    driver.write(volume, 0, pattern(2))
    driver.write(volume, GRAIN, pattern(3))
    for name in ("journal.0", "journal.1"):
        disk.files[name]._write_back()
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert driver.engine.recovered.dropped_batches == 2
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, 2 * GRAIN) == pattern(1) + bytes(GRAIN)


# -------------------------------------------------------------------------------------------------- failing writes


def test_a_failed_append_leaves_writes_undecided_and_their_grains_unreadable(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 2 * GRAIN))
    journal = f"journal.{driver.engine._journal.epoch & 1}"
    disk.faults["write-after", journal] = [errno.EIO]  # the bytes are there all the same
    answer, barrier = Answer(), Answer()
    volume.write(0, pattern(2), PERMIT, answer)
    driver.pool.barrier(barrier)
    driver.runner.settle()
    assert isinstance(answer.error, Undecided)
    assert isinstance(barrier.error, Undecided)
    with pytest.raises(Undecided):
        driver.read(volume, 0, GRAIN)
    assert driver.read(volume, GRAIN, GRAIN) == pattern(1, 2 * GRAIN)[GRAIN:]
    driver = restart(disk)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(2)


def test_a_failed_data_write_tells_each_member_its_own_offset(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    group = driver.group(size=MIB, count=2)
    disk.faults["write", "data"] = [errno.EIO]
    answers = {(lun, offset): Answer() for lun, offset in ((0, 2 * GRAIN), (1, 0), (1, 5 * GRAIN))}
    for (lun, offset), answer in answers.items():
        group.volumes[lun].write(offset, pattern(1), PERMIT, answer)
    driver.runner.settle()
    for (_, offset), answer in answers.items():
        assert isinstance(answer.error, MediumError)
        assert answer.error.offset == offset


def test_a_failed_append_of_a_verb_is_undecided(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    group = driver.group(size=MIB)
    disk.faults["write", f"journal.{driver.engine._journal.epoch & 1}"] = [errno.EIO]
    with pytest.raises(Undecided):
        driver.wait(group.snapshot("s"))
    assert "s" not in group.snapshots


def test_after_an_undecided_rollback_nothing_is_promised_and_nothing_old_is_read(disk: FakeDisk) -> None:
    """The model's finding: the barrier said yes, and reads went on with what the restart may roll back."""
    driver = open_disk(disk)
    group = driver.group(size=MIB)
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.wait(group.snapshot("s"))
    driver.write(volume, 0, pattern(2))
    disk.faults["write-after", f"journal.{driver.engine._journal.epoch & 1}"] = [errno.EIO]
    barrier = Answer()
    with pytest.raises(Undecided):
        driver.wait(group.rollback("s"))
    driver.pool.barrier(barrier)
    driver.runner.settle()
    assert isinstance(barrier.error, Undecided)
    with pytest.raises(Undecided):
        driver.read(volume, 0, GRAIN)
    driver = restart(disk)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, MediumError), (errno.ENOSPC, OutOfSpace)])
def test_a_failed_data_write_changes_nothing_and_the_pool_goes_on(
    disk: FakeDisk, number: int, error: type[Exception]
) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.faults["write", "data"] = [number]
    with pytest.raises(error):
        driver.write(volume, 0, pattern(2))
    assert driver.read(volume, 0, GRAIN) == pattern(1)
    driver.write(volume, GRAIN, pattern(3), sync=True)
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, 2 * GRAIN) == pattern(1) + pattern(3)


def test_a_full_host_makes_writes_fail_and_reads_and_unmap_go_on(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    group = driver.group(size=8 * MIB)
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1, 256 * KIB))
    disk.faults["allocate", "data"] = [errno.ENOSPC] * 1000
    with pytest.raises(OutOfSpace):
        driver.write(volume, 0, pattern(1, 8 * MIB))
    assert driver.read(volume, 0, GRAIN) == pattern(1)
    driver.discard(volume, 0, 128 * KIB)
    driver.write(volume, 4 * MIB, pattern(2))
    assert driver.read(volume, 4 * MIB, GRAIN) == pattern(2)


def test_a_host_that_has_room_again_is_asked_again(disk: FakeDisk) -> None:
    """Even when nothing was written since, so that no checkpoint is due."""
    driver = open_disk(disk)
    volume = driver.group(size=8 * MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 256 * KIB))
    disk.faults["allocate", "data"] = [errno.ENOSPC] * 1000
    with pytest.raises(OutOfSpace):
        driver.write(volume, 0, pattern(1, 8 * MIB))
    driver.wait(driver.pool.checkpoint())
    with pytest.raises(OutOfSpace):
        driver.write(volume, MIB, pattern(1, 4 * MIB))
    disk.faults.clear()
    driver.runner.advance(2)
    driver.write(volume, MIB, pattern(1, 4 * MIB))


def test_a_checkpoint_that_finds_the_host_full_is_made_again_later(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.faults["commit", "meta.db"] = [errno.ENOSPC, errno.ENOSPC]
    with pytest.raises(OutOfSpace):
        driver.wait(driver.pool.checkpoint())
    driver.write(volume, GRAIN, pattern(2), sync=True)
    assert driver.pool.statistics().state == "serving"
    between = Cutter([], "boot-2")
    between.start_from(disk)
    other = open_disk(between.all_landed())
    assert other.read(other.pool.groups["db"].volumes[0], 0, 2 * GRAIN) == pattern(1) + pattern(2)
    driver.runner.advance(5)
    assert driver.pool.statistics().counters["checkpoints"] == 1
    driver.write(volume, 2 * GRAIN, pattern(3), sync=True)
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, 3 * GRAIN) == pattern(1) + pattern(2) + pattern(3)


# -------------------------------------------------------------------------------------------------- rotten bytes


def test_a_rotten_grain_is_a_medium_error_at_its_offset_and_its_neighbours_are_read(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 8 * GRAIN), sync=True)
    at = block_of(volume, 5 * GRAIN)
    disk.files["data"].cached[at + 100] ^= 1
    with pytest.raises(MediumError) as raised:
        driver.read(volume, 2 * GRAIN, 6 * GRAIN)
    assert raised.value.offset == 5 * GRAIN
    with pytest.raises(MediumError) as raised:
        driver.read(volume, 5 * GRAIN, GRAIN)
    assert raised.value.offset == 5 * GRAIN
    with pytest.raises(MediumError):
        driver.write(volume, 5 * GRAIN + 512, pattern(2, 512))
    assert driver.read(volume, 4 * GRAIN, GRAIN) == pattern(1)
    driver.write(volume, 5 * GRAIN, pattern(2))
    assert driver.read(volume, 5 * GRAIN, GRAIN) == pattern(2)


@pytest.mark.parametrize("cold", [False, True])
def test_each_medium_error_is_counted_and_logged_with_its_lba(
    disk: FakeDisk, caplog: pytest.LogCaptureFixture, cold: bool
) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 8 * GRAIN), sync=True)
    disk.files["data"].cached[block_of(volume, 5 * GRAIN)] ^= 1
    disk.cold = cold
    for length in (GRAIN, 3 * GRAIN):
        with pytest.raises(MediumError):
            driver.read(volume, 5 * GRAIN, length)
    assert driver.pool.statistics().counters["medium_errors"] == 2
    assert [record.message.split(":")[0] for record in caplog.records] == ["medium error at LBA 40"] * 2
    for _ in range(50):
        with pytest.raises(MediumError):
            driver.read(volume, 5 * GRAIN, GRAIN)
    assert driver.pool.statistics().counters["medium_errors"] == 52
    assert len(caplog.records) < 20, "a bad disk under load must not fill the log's"


def test_check_names_the_rotten_grain() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 7 * GRAIN, pattern(1), sync=True)
    disk.files["data"].stored[block_of(volume, 7 * GRAIN) + 9] ^= 1
    report = check_directory(disk, deep=True, map_leaves=TUNING.map_leaves)
    assert [finding.rule for finding in report.findings] == [9]
    assert f"offset {7 * GRAIN}" in report.findings[0].message


def test_a_cold_read_waits_in_a_helper_and_is_verified(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 3 * GRAIN))
    disk.cold = True
    assert not volume.read_now(0, memoryview(bytearray(GRAIN)))
    assert driver.read(volume, 512, 2 * GRAIN) == pattern(1, 2 * GRAIN)
    disk.files["data"].cached[block_of(volume, GRAIN)] ^= 1
    with pytest.raises(MediumError) as raised:
        driver.read(volume, 0, 3 * GRAIN)
    assert raised.value.offset == GRAIN
    driver.write(volume, GRAIN, pattern(2))


def test_a_ragged_write_over_a_cold_grain_waits_for_it(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.cold = True
    answer = Answer()
    volume.write(512, b"x" * 512, PERMIT, answer)
    driver.runner.tick()
    assert not answer.answered
    disk.cold = False
    driver.runner.settle()
    assert answer.ok
    assert driver.read(volume, 0, GRAIN) == pattern(1, 512) + b"x" * 512 + pattern(1, GRAIN - 1024)


def test_a_ragged_write_over_a_grain_that_never_gets_warm_lands_too(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.cold = True
    answers = [Answer(), Answer()]
    for i, answer in enumerate(answers):  # both meet the same cold grain, in different ticks
        volume.write(512 * (1 + i), bytes([65 + i]) * 512, PERMIT, answer)
        driver.runner.tick()
    for _ in range(20):
        driver.runner.tick()
        driver.runner.run_thread_work()
    assert [answer.ok for answer in answers] == [True, True]
    assert driver.read(volume, 0, 2048) == pattern(1, 512) + b"A" * 512 + b"B" * 512 + pattern(1, 512)


@pytest.mark.parametrize("meanwhile", ["write", "discard", "snapshot", "rollback", "remove", "delete"])
def test_a_ragged_write_meeting_something_else_while_its_grain_is_read(disk: FakeDisk, meanwhile: str) -> None:
    """What was committed in between is what it modifies; a volume that went away refuses it."""
    driver = open_disk(disk)
    group = driver.group(size=MIB)
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.wait(group.snapshot("s"))
    driver.write(volume, 0, pattern(2))
    disk.cold = True
    ragged, read, into = Answer(), Answer(), bytearray(GRAIN)
    volume.write(512, b"x" * 512, PERMIT, ragged)
    volume.read(0, memoryview(into), read)
    disk.cold = False
    content: dict[str, Callable[[], object]] = {
        "write": lambda: volume.write(0, pattern(3), PERMIT, Answer()),
        "discard": lambda: volume.discard(0, GRAIN, PERMIT, Answer()),
        "snapshot": lambda: group.snapshot("t"),
        "rollback": lambda: group.rollback("s"),
        "remove": lambda: group.remove_volume(0),
        "delete": lambda: driver.pool.delete_group("db"),
    }
    content[meanwhile]()
    driver.runner.settle()
    driver.runner.advance(0.5)
    if meanwhile in ("remove", "delete"):
        assert isinstance(ragged.error, NotFound)
        assert isinstance(read.error, NotFound)
        return
    expected = {"write": pattern(3), "discard": bytes(GRAIN), "snapshot": pattern(2), "rollback": pattern(1)}[meanwhile]
    assert ragged.ok
    assert read.ok
    assert driver.read(volume, 0, GRAIN) == expected[:512] + b"x" * 512 + expected[1024:]
    if meanwhile == "snapshot":
        driver.wait(group.rollback("t"))
        assert driver.read(volume, 0, GRAIN) == pattern(2)


def test_a_revoked_ragged_write_whose_grain_is_cold_never_lands(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.cold = True
    permit, answer = StandingPermit(), Answer()
    volume.write(512, b"x" * 512, permit, answer)
    driver.runner.tick()
    permit.revoked = True
    barrier = Answer()
    driver.pool.barrier(barrier)
    driver.runner.tick()
    assert barrier.ok
    driver.runner.settle()
    assert isinstance(answer.error, Revoked)
    assert driver.read(volume, 0, GRAIN) == pattern(1)


def test_what_a_batch_behind_a_torn_one_says_was_flushed_is_kept(disk: FakeDisk) -> None:
    """Its data rotted since: a medium error at that grain, never the loss of that batch and all behind it."""
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.write(volume, GRAIN, pattern(2))
    driver.flush(volume)
    at, torn = block_of(volume, 0), driver.engine._journal.position
    driver.write(volume, 2 * GRAIN, pattern(3))
    driver.write(volume, 3 * GRAIN, pattern(4))
    for file in disk.files.values():
        file._write_back()
    disk.files["data"].stored[at] ^= 1
    disk.files[f"journal.{driver.engine._journal.epoch & 1}"].stored[torn + 80] ^= 1
    driver = restart(disk, boot="boot-2", power_cut=True)
    volume = driver.pool.groups["db"].volumes[0]
    assert driver.read(volume, GRAIN, 2 * GRAIN) == pattern(2) + bytes(GRAIN)
    with pytest.raises(MediumError):
        driver.read(volume, 0, GRAIN)
    driver.discard(volume, 0, GRAIN)
    driver.flush(volume)


def test_a_read_error_of_the_data_file_is_a_medium_error(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 2 * GRAIN))
    for length in (GRAIN, 2 * GRAIN):
        disk.faults["read", "data"] = [errno.EIO]
        with pytest.raises(MediumError):
            driver.read(volume, 0, length)


def test_corruption_of_a_flushed_batch_is_refused_and_not_taken_for_a_torn_tail() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    for i in range(4):
        driver.write(volume, i * GRAIN, pattern(i), sync=True)
    driver.runner.advance(2)
    journal = disk.files[f"journal.{driver.engine._journal.epoch & 1}"]
    journal._write_back()
    before = bytes(journal.stored)
    for content in (journal.stored, journal.cached):
        content[2 * 512 + 70] ^= 1
    with pytest.raises(Corrupt, match="was flushed"):
        open_disk(disk)
    assert [finding.rule for finding in check_directory(disk, deep=True).findings] == [8]
    assert sum(a != b for a, b in zip(before, journal.stored, strict=True)) == 1, "nothing was changed"


def test_a_rotten_tail_that_was_never_flushed_is_dropped(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    position = driver.engine._journal.position
    driver.write(volume, 0, pattern(2))
    journal = disk.files[f"journal.{driver.engine._journal.epoch & 1}"]
    journal._write_back()
    journal.stored[position + 80] ^= 1
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)


def test_a_read_error_of_data_during_recovery_is_no_torn_tail() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    driver.write(driver.group(size=MIB).volumes[0], 0, pattern(1))
    disk.boot = "boot-2"
    disk.faults["read", "data"] = [0, errno.EIO]  # the header is read first
    with pytest.raises(Corrupt, match="cannot be read"):
        open_disk(disk)


def test_damage_of_a_block_on_the_same_boot_drops_no_later_write(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    driver.write(volume, GRAIN, pattern(2))
    at = block_of(volume, 0)
    disk.files["data"]._write_back()
    disk.files["data"].stored[at] ^= 1
    disk.files["data"].cached[at] ^= 1
    driver = restart(disk)
    volume = driver.pool.groups["db"].volumes[0]
    assert driver.read(volume, GRAIN, GRAIN) == pattern(2)
    with pytest.raises(MediumError):
        driver.read(volume, 0, GRAIN)
    driver.discard(volume, 0, GRAIN)
    driver.flush(volume)


@pytest.mark.parametrize("name", ["data", "journal.0"])
def test_files_of_another_pool_are_refused(name: str) -> None:
    disk, other = FakeDisk(), FakeDisk()
    for each in (disk, other):
        driver = open_disk(each)
        driver.write(driver.group(size=MIB).volumes[0], 0, pattern(1), sync=True)
        driver.wait(driver.pool.close())
    disk.files[name] = other.files[name]
    if name == "data":
        with pytest.raises(Corrupt, match="of pool"):
            open_disk(disk)
        assert [finding.rule for finding in check_directory(disk, deep=False).findings] == [1]
    else:
        driver = open_disk(disk)  # no batch of another pool is ever replayed
        assert driver.engine.recovered.batches == 0


def test_data_without_its_database_is_not_overwritten() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    driver.write(driver.group(size=MIB).volumes[0], 0, pattern(1), sync=True)
    disk.remove("meta.db")
    with pytest.raises(Corrupt, match="not overwritten"):
        open_disk(disk)


# -------------------------------------------------------------------------------------------------- revoked permits


def test_a_revoked_write_that_waits_for_space_never_lands(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=2 * MIB).volumes[0]
    permit, answer = StandingPermit(), Answer()
    volume.write(0, pattern(1, 2 * MIB), permit, answer)  # more than the pool has grown to by now
    driver.runner.tick()
    assert not answer.answered
    permit.revoked = True
    driver.finish(driver.pool.barrier)
    driver.runner.advance(1)
    assert isinstance(answer.error, Revoked)
    assert driver.pool.groups["db"].mapped_bytes(0) == 0


def test_a_revoked_write_is_not_there_after_a_crash_either(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    permit = StandingPermit()
    volume.write(0, pattern(1), permit, Answer())
    permit.revoked = True
    driver.finish(driver.pool.barrier)
    driver = restart(disk)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == bytes(GRAIN)


def test_a_name_taken_by_a_verb_of_the_same_tick_is_refused(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    first = driver.pool.create_group("db", iqn="iqn.a", volumes=[])
    second = driver.pool.create_group("db", iqn="iqn.b", volumes=[])
    driver.wait(first)
    with pytest.raises(AlreadyExists):
        driver.wait(second)
