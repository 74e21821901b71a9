"""Crash and fault cases of the list in ``fault_list`` that no other file is about."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import pytest

from blockstore.api import Corrupt, FailStopped, MediumError, StoreError, Undecided
from blockstore.check import check_directory
from tests.blockstore.powercut import TUNING, Cutter, Event, FakeDisk, open_disk, restart, sectors
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Answer, Driver, Store, pattern


def read_grains(driver: Driver, count: int) -> list[bytes]:
    volume = driver.pool.groups["db"].volumes[0]
    return [driver.read(volume, grain * GRAIN, GRAIN) for grain in range(count)]


def last_append(disk: FakeDisk) -> int:
    """Where in the trace the last batch is."""
    return max(i for i, e in enumerate(disk.trace) if e.kind == "write" and e.file.startswith("journal"))


def cut_at_the_end(trace: Sequence[Event]) -> Cutter:
    cutter = Cutter(trace, "boot-2")
    for _ in trace:
        cutter.step()
    return cutter


def findings(disk: FakeDisk) -> list[int]:
    return [finding.rule for finding in check_directory(disk, deep=True, map_leaves=TUNING.map_leaves).findings]


# ------------------------------------------------------------------------------------------------- torn and halved


@pytest.mark.parametrize("missing", ["behind", "before", "one"])
def test_a_last_batch_torn_at_any_sector_is_no_batch(disk: FakeDisk, missing: str) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    for i in range(1, 40):  # in one tick: a batch of several sectors
        volume.write(2 * i * GRAIN, pattern(i), PERMIT, Answer())
    driver.runner.settle()
    at = last_append(disk)
    parts = sectors(disk.trace[at])
    assert len(parts) >= 3
    for i in range(len(parts)):
        landed = {"behind": parts[:i], "before": parts[i + 1 :], "one": parts[:i] + parts[i + 1 :]}[missing]
        torn = cut_at_the_end([*disk.trace[:at], *landed]).all_landed()
        assert findings(torn.copy()) == []
        after = open_disk(torn)
        assert read_grains(after, 1) == [pattern(1)]
        assert not any(b"".join(read_grains(after, 80)[1:]))


@pytest.mark.parametrize("durable", ["data", "journal", "both", "neither"])
def test_data_and_journal_become_durable_one_without_the_other(disk: FakeDisk, durable: str) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    driver.write(volume, 0, pattern(2))
    driver.write(volume, GRAIN, pattern(3))
    for name, file in disk.files.items():
        if durable == "both" or name.startswith(durable):
            file._write_back()
    driver = restart(disk, boot="boot-2", power_cut=True)
    new = [pattern(2), pattern(3)]
    assert read_grains(driver, 2) == (new if durable == "both" else [pattern(1), bytes(GRAIN)])


def test_a_flush_right_after_the_switch_covers_both_journals(disk: FakeDisk) -> None:
    """What was appended to the old journal and not yet synced is what the flush answers for, too."""
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    checkpoint = driver.pool.checkpoint()  # switches at once; its helper has not run
    flushed = Answer()
    volume.write(GRAIN, pattern(2), PERMIT, Answer())
    volume.flush(flushed)
    while not flushed.answered:
        driver.runner.tick()
        driver.runner.run_thread_work()
    crashed = cut_at_the_end(disk.trace).none_landed()
    assert read_grains(open_disk(crashed), 2) == [pattern(1), pattern(2)]
    driver.wait(checkpoint)


# ------------------------------------------------------------------------------------------------- failing calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["write", "write-part", "write-after"])
def test_a_journal_that_takes_nothing_or_a_part_stops_the_pool(disk: FakeDisk, operation: str, number: int) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1))
    disk.faults[operation, disk.trace[last_append(disk)].file] = [number]
    with pytest.raises(Undecided):
        driver.write(volume, 0, pattern(2))
    with pytest.raises(FailStopped):
        driver.write(volume, GRAIN, pattern(3))
    expected = pattern(2) if operation == "write-after" else pattern(1)
    assert read_grains(restart(disk), 2) == [expected, bytes(GRAIN)]


def test_a_part_of_a_write_of_data_is_no_write(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 4 * GRAIN))
    disk.faults["write-part", "data"] = [errno.EIO]
    with pytest.raises(MediumError):
        driver.write(volume, 0, pattern(2, 4 * GRAIN))
    assert read_grains(driver, 4) == [pattern(1)] * 4
    assert read_grains(restart(disk), 4) == [pattern(1)] * 4


def test_reads_of_a_signal_ridden_host_are_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads less than was asked for, and says now and then that it would block."""
    driver = store.open()
    volume = driver.group().volumes[0]
    content = pattern(1, 64 * KIB - GRAIN) + pattern(2)
    driver.write(volume, 0, content)
    real, calls = os.preadv, [0]

    def short(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        calls[0] += 1
        if flags and calls[0] % 2:
            raise BlockingIOError(errno.EAGAIN, "would block")
        view = memoryview(buffers[0])
        return real(fd, [view[: max(1, len(view) // 3)]], offset, flags)

    monkeypatch.setattr(os, "preadv", short)
    for _ in range(4):
        assert driver.read(volume, 0, len(content)) == content
    monkeypatch.undo()
    assert calls[0] > 8


# ------------------------------------------------------------------------------------------------- misdirected


def test_a_grain_that_was_written_elsewhere_is_a_medium_error_in_both_places(disk: FakeDisk) -> None:
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    driver.write(volume, GRAIN, pattern(2), sync=True)
    first, second = (e.offset for e in [e for e in disk.trace if e.kind == "write" and e.file == "data"][-2:])
    data = disk.files["data"]
    for content in (data.cached, data.stored):
        content[first : first + GRAIN] = pattern(2)
        content[second : second + GRAIN] = bytes(GRAIN)
    for grain in range(2):
        with pytest.raises(MediumError) as raised:
            driver.read(volume, grain * GRAIN, GRAIN)
        assert raised.value.offset == grain * GRAIN
    driver.discard(volume, 0, 2 * GRAIN)
    driver.flush(volume)


def test_a_batch_that_was_written_elsewhere_is_not_replayed_there() -> None:
    """It carries its number and the chain: a flushed one that is missing at its place is refused, never skipped."""
    disk = FakeDisk()
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    starts = []
    for i in range(4):
        driver.write(volume, i * GRAIN, pattern(i + 1), sync=True)
        starts.append(disk.trace[last_append(disk)])
    driver.runner.advance(2)
    journal = disk.files[starts[0].file]
    for content in (journal.cached, journal.stored):
        content[starts[1].offset : starts[1].offset + len(starts[2].data)] = starts[2].data
    disk.new_process()
    assert findings(disk.copy()) == [8]
    with pytest.raises(Corrupt):
        open_disk(disk)


@pytest.mark.parametrize("damage", ["flipped", "misdirected"])
def test_a_node_of_the_database_that_is_not_its_own_is_refused(damage: str) -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    driver.group(size=MIB)
    for grain in range(8):
        driver.write(driver.pool.groups["db"].volumes[0], grain * GRAIN, pattern(grain + 1))
    driver.wait(driver.pool.close())
    database = disk.files["meta.db"].cached
    pages = [bytes(database[at : at + GRAIN]) for at in range(0, len(database), GRAIN)]
    # The leaf's blob has eight entries and eight checksums: it is the largest thing that is mostly zeros.
    leaf = next(i for i, page in enumerate(pages) if page.count(0) > 3000 and i and pages[i - 1] != page)
    other = (leaf + 1) % len(pages) or 1
    new = bytearray(pages[leaf])
    if damage == "flipped":
        used = next(i for i, byte in enumerate(new) if byte and i > 100)
        new[used] ^= 1
    else:
        new = bytearray(pages[other])
    for content in (disk.files["meta.db"].cached, disk.files["meta.db"].stored):
        content[leaf * GRAIN : (leaf + 1) * GRAIN] = new
    disk.new_process()
    assert findings(disk.copy()) != []
    try:
        served = open_disk(disk)
    except (StoreError, OSError):
        return
    with pytest.raises(StoreError):
        read_grains(served, 8)


# ------------------------------------------------------------------------------------------------- reuse


def test_a_cold_read_whose_block_is_freed_meanwhile_reads_what_it_looked_up(disk: FakeDisk) -> None:
    """It looked its block up, and reads it in a helper after that was freed: its pin kept it from being reused."""
    driver = open_disk(disk, size_limit=2 * MIB)
    volume = driver.group(size=8 * MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    disk.cold = True
    into, answer = bytearray(GRAIN), Answer()
    volume.read(0, memoryview(into), answer)
    disk.cold = False
    let_it_go_on = driver.runner.set_work_aside()
    driver.write(volume, 0, pattern(2))
    for round_ in range(3):
        driver.wait(driver.pool.checkpoint())
        swept = driver.pool.sweep()
        driver.runner.advance(1)
        assert not swept.done()
        for grain in range(80):
            driver.write(volume, MIB + grain * GRAIN, pattern(1000 * round_ + grain))
    assert not answer.answered
    let_it_go_on()
    driver.runner.settle()
    assert answer.ok
    assert bytes(into) == pattern(1)


# ------------------------------------------------------------------------------------------------- the model's findings


def test_a_write_in_flight_across_switch_commit_and_sweep_keeps_its_block(disk: FakeDisk) -> None:
    """It joined and waits for space while a checkpoint switches and commits and a sweep runs."""
    driver = open_disk(disk, size_limit=2 * MIB)
    group = driver.group(size=8 * MIB)
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1, MIB))
    driver.wait(group.snapshot("old"))
    waiting = Answer()
    volume.write(2 * MIB, pattern(2, MIB), PERMIT, waiting)
    driver.runner.tick()
    checkpoint, sweep = driver.pool.checkpoint(), driver.pool.sweep()
    volume.write(GRAIN, pattern(3), PERMIT, Answer())
    driver.wait(checkpoint)
    driver.wait(group.delete_snapshot("old"))
    driver.discard(volume, 256 * KIB, 768 * KIB)
    driver.wait(sweep)
    for _ in range(3):
        driver.runner.advance(1)
        driver.wait(driver.pool.sweep())
    if not waiting.ok:
        driver.write(volume, 2 * MIB, pattern(2, MIB))
    for grain in range(40):  # takes whatever was given back
        driver.write(volume, 4 * MIB + grain * GRAIN, pattern(100 + grain))
    for each in (driver, restart(disk)):
        volume = each.pool.groups["db"].volumes[0]
        assert each.read(volume, 2 * MIB, MIB) == pattern(2, MIB)
        assert read_grains(each, 3) == [pattern(1), pattern(3), pattern(1)]


@pytest.mark.parametrize("meanwhile", ["pending", "private, then reused"])
def test_equal_content_never_shares_a_block_that_may_go(disk: FakeDisk, meanwhile: str) -> None:
    """No record names an existing block: the copy stays when the original is overwritten, freed and reused."""
    driver = open_disk(disk, size_limit=2 * MIB)
    volume = driver.group(size=8 * MIB).volumes[0]
    first, second = Answer(), Answer()
    volume.write(0, pattern(1), PERMIT, first)
    if meanwhile != "pending":
        driver.runner.settle()
    volume.write(GRAIN, pattern(1), PERMIT, second)
    driver.runner.settle()
    assert first.ok
    assert second.ok
    driver.write(volume, 0, pattern(2), sync=True)
    for round_ in range(3):
        driver.wait(driver.pool.checkpoint())
        driver.wait(driver.pool.sweep())
        for grain in range(100):
            driver.write(volume, MIB + grain * GRAIN, pattern(1000 * round_ + grain))
        driver.flush(volume)
        crashed = cut_at_the_end(disk.trace).none_landed()
        assert read_grains(open_disk(crashed), 2) == [pattern(2), pattern(1)]


def test_a_recovery_that_died_does_not_make_its_boot_the_one_of_the_writes(disk: FakeDisk) -> None:
    """Written too early, boot_id would say that a block missing on disk is damage, where it is a torn tail."""
    driver = open_disk(disk)
    volume = driver.group(size=MIB).volumes[0]
    driver.write(volume, 0, pattern(1), sync=True)
    driver.write(volume, 0, pattern(2))
    for name in ("journal.0", "journal.1"):
        disk.files[name]._write_back()
    disk.lose_cache()
    disk.boot = "boot-2"
    for _ in range(3):
        disk.faults["commit", "meta.db"] = [errno.EIO]
        with pytest.raises(OSError, match="told to fail"):
            open_disk(disk)
    driver = restart(disk)
    assert read_grains(driver, 1) == [pattern(1)]
    assert driver.engine.recovered.dropped_batches == 1
