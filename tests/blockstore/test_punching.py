"""Free space goes back to the host: real files, a device, and hosts that cannot."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.allocator import LONG_RUN, Allocator, Run
from blockstore.creation import create_pool
from blockstore.hostfile import HostFile
from blockstore.layout import UNIT
from blockstore.pool import Tuning
from blockstore.punching import Puncher
from tests.blockstore.powercut import FakeDisk
from tests.blockstore.support import KIB, MIB, Driver, ManualRunner, Store, pattern
from tests.loopdevice import loop_device

TUNING = Tuning(grow_step=2 * MIB, keep_free=0, reserve=0, map_leaves=1 << 14)


@pytest.fixture
def punched_store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool", tuning=TUNING)
    yield store
    store.prove_whole()


def stored_bytes(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # space that is given late shows only then
    os.close(fd)
    return path.stat().st_blocks * 512


def delete_and_sweep(driver: Driver, group: str) -> None:
    driver.wait(driver.pool.delete_group(group))
    driver.wait(driver.pool.sweep())
    driver.runner.advance(2)


def test_the_space_of_a_deleted_group_goes_back_and_what_is_in_use_stays(punched_store: Store) -> None:
    driver = punched_store.open()
    kept, lost = driver.group("kept", size=64 * MIB), driver.group("lost", size=64 * MIB)
    for i in range(24):  # side by side in the file
        driver.write(kept.volumes[0], i * MIB, pattern(i, MIB), sync=True)
        driver.write(lost.volumes[0], 2 * i * MIB, pattern(100 + i, 2 * MIB), sync=True)
    before = stored_bytes(punched_store.path / "data")
    assert before >= 72 * MIB
    delete_and_sweep(driver, "lost")
    after = stored_bytes(punched_store.path / "data")
    assert before - after >= 46 * MIB
    assert after >= 24 * MIB
    assert driver.pool.statistics().counters["punched_bytes"] >= 46 * MIB
    for i in range(24):
        assert driver.read(kept.volumes[0], i * MIB, MIB) == pattern(i, MIB)
    driver.write(kept.volumes[0], 32 * MIB, pattern(7, 32 * MIB))  # into the holes
    assert driver.read(kept.volumes[0], 32 * MIB, 32 * MIB) == pattern(7, 32 * MIB)


@pytest.mark.slow
def test_the_space_of_a_deleted_group_is_discarded_on_a_device(tmp_path: Path) -> None:
    with loop_device(tmp_path, 128 * MIB) as device:
        create_pool(tmp_path / "pool", "pool", device=device.path, journal_size=256 * KIB)
        store = Store(tmp_path / "pool", tuning=TUNING)
        driver = store.open()
        kept, lost = driver.group("kept", size=64 * MIB), driver.group("lost", size=64 * MIB)
        driver.write(lost.volumes[0], 0, pattern(1, 40 * MIB), sync=True)
        driver.write(kept.volumes[0], 0, pattern(2, 8 * MIB), sync=True)
        before = device.stored_bytes()
        delete_and_sweep(driver, "lost")
        assert before - device.stored_bytes() >= 36 * MIB
        assert driver.read(kept.volumes[0], 0, 8 * MIB) == pattern(2, 8 * MIB)
        store.prove_whole()


def test_a_host_that_cannot_punch_is_asked_once(
    punched_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def refuse(self: HostFile, offset: int, length: int) -> None:
        asked.append(offset)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(HostFile, "punch", refuse)
    driver = punched_store.open()
    for name in ("a", "b"):
        volume = driver.group(name, size=16 * MIB).volumes[0]
        driver.write(volume, 0, pattern(1, 8 * MIB))
        delete_and_sweep(driver, name)
    assert len(asked) == 1
    assert [record.message for record in caplog.records if "gives no space back" in record.message] == [
        "data gives no space back to its host: [Errno 95] Operation not supported"
    ]
    volume = driver.group("c", size=16 * MIB).volumes[0]
    driver.write(volume, 0, pattern(3, 8 * MIB))
    assert driver.read(volume, 0, 8 * MIB) == pattern(3, 8 * MIB)


class Steps:
    """A puncher over a disk in memory, stepped by hand."""

    def __init__(self, *runs: Run, keep: int = 0) -> None:
        self.disk = FakeDisk()
        self.data = self.disk.open("data", create=True)
        self.runner = ManualRunner()
        self.allocator = Allocator(1, 1)
        for run in runs:
            self.allocator.release(*run)
        self.puncher = Puncher(self.runner, self.data, self.allocator, keep=keep, changed=lambda: None)

    def punched(self) -> list[Run]:
        writes = [event for event in self.disk.trace if event.kind == "write"]
        return [(event.offset // UNIT, len(event.data) // UNIT) for event in writes]


def test_runs_are_punched_in_slices_and_no_faster_than_the_rate() -> None:
    steps = Steps((1, 40 << 10))  # 160 MiB
    steps.puncher.start()
    steps.runner.settle()
    assert steps.punched() == [(1, 16 << 10)]
    steps.puncher.start()  # nobody may hurry it
    steps.runner.settle()
    steps.runner.advance(0.05)
    assert len(steps.punched()) == 1
    steps.runner.advance(0.05)
    assert len(steps.punched()) == 2
    steps.runner.advance(1)
    assert sum(count for _, count in steps.punched()) == 40 << 10


def test_only_one_slice_is_out_of_the_allocators_reach() -> None:
    steps = Steps((1, 40 << 10))
    steps.puncher.start()
    assert steps.puncher.blocks == 16 << 10
    assert steps.allocator.free == 24 << 10
    runs = steps.allocator.allocate(24 << 10)
    steps.runner.settle()
    assert not set(range(*_bounds(steps.punched()[0]))) & {block for run in runs for block in range(*_bounds(run))}


def _bounds(run: Run) -> tuple[int, int]:
    return run[0], run[0] + run[1]


def test_after_an_error_it_goes_on_with_the_rest_and_after_a_stop_it_does_not() -> None:
    steps = Steps((1, LONG_RUN), (1000, 16 << 10))
    steps.disk.faults["write", "data"] = [errno.EIO]
    steps.puncher.start()
    steps.runner.advance(1)
    assert steps.puncher.able
    assert sum(count for _, count in steps.punched()) >= LONG_RUN
    steps.allocator.release(1 << 20, LONG_RUN)
    steps.puncher.stop()
    steps.puncher.start()
    steps.runner.advance(1)
    assert [1 << 20, LONG_RUN] in steps.allocator.free_runs().tolist()
