"""The reserve: given up when a checkpoint finds the host full, and made again when the host has room."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.api import OutOfSpace
from blockstore.pool import open_directory
from tests.blockstore.powercut import TUNING, FakeDisk
from tests.blockstore.support import KIB, MIB, Driver, ManualRunner, Store, pattern
from tests.blockstore.test_full_host import fill_up, small_host

__all__ = ["small_host"]  # a fixture

LENGTH = 4 * MIB


class Host(FakeDisk):
    """A disk that says how much it has left."""

    free = 1 << 30

    def free_bytes(self) -> int:
        return self.free

    def serve(self) -> Driver:
        runner = ManualRunner()
        tuning = replace(TUNING, reserve=LENGTH)
        pool = open_directory(
            self, runner, create=True, name="p", size_limit=None, journal_size=256 * KIB, tuning=tuning
        )
        return Driver(runner, pool)

    def fill(self, driver: Driver) -> None:
        """A checkpoint finds no room."""
        self.free = 0
        driver.write(driver.pool.groups["db"].volumes[0], 0, pattern(1))
        self.faults["commit", "meta.db"] = [errno.ENOSPC]
        with pytest.raises(OutOfSpace):
            driver.wait(driver.pool.checkpoint())
        assert "reserve" not in self.files


def reserve_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("reserve")]


def test_the_reserve_is_made_again_once_the_host_has_room_to_spare(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    driver = host.serve()
    driver.group(size=MIB)
    assert host.files["reserve"].size() == LENGTH
    host.fill(driver)
    host.free = 2 * LENGTH  # that is for writes
    driver.runner.advance(60)
    assert "reserve" not in host.files
    host.free = 8 * LENGTH
    driver.runner.advance(11)
    assert host.files["reserve"].size() == LENGTH
    assert [("given up" in line, "again" in line) for line in reserve_lines(caplog)] == [(True, False), (False, True)]
    host.fill(driver)  # and it helps again


def test_a_host_that_is_full_at_the_start_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.faults["allocate", "reserve"] = [errno.ENOSPC, errno.ENOSPC]
    driver = host.serve()
    assert "reserve" not in host.files
    driver.runner.advance(11)
    assert "reserve" not in host.files
    driver.runner.advance(11)
    assert host.files["reserve"].size() == LENGTH
    assert len(reserve_lines(caplog)) == 2


def test_a_pool_that_is_closed_makes_no_reserve() -> None:
    host = Host()
    host.faults["allocate", "reserve"] = [errno.ENOSPC]
    driver = host.serve()
    driver.wait(driver.pool.close())
    driver.runner.advance(60)
    assert "reserve" not in host.files


def test_the_reserve_of_a_real_host_comes_back_when_somebody_deletes_something(small_host: Path) -> None:
    tuning = replace(TUNING, reserve=LENGTH)
    store = Store(small_host / "pool", tuning=tuning)
    driver = store.open()
    driver.group(size=MIB)
    assert driver.engine._reserve.release()
    assert not (store.path / "reserve").exists()
    stranger = fill_up(small_host)
    driver.runner.advance(30)
    stranger.unlink()
    driver.runner.advance(11)
    assert (store.path / "reserve").stat().st_blocks * 512 >= LENGTH
    store.prove_whole()
