"""Sweeps that fail: whoever waits is told, the log says why, and the next one is begun, but not at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.api import Busy
from blockstore.reclaim import Marker, SweepFailed
from blockstore.space import Unavailable
from tests.blockstore.support import MIB, PERMIT, TUNING, Answer, Driver, Store, pattern


class Broken:
    """A marker whose helper cannot be started, or says what nobody understands."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def begin(self) -> int:
        raise self.error

    def find(self, unavailable: Unavailable, report: object) -> object:
        raise AssertionError("it was not begun")

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool", size_limit=4 * MIB)
    yield store
    store.prove_whole()


def break_sweeps(driver: Driver, error: Exception) -> list[Broken]:
    made: list[Broken] = []

    def make() -> Broken:
        made.append(Broken(error))
        return made[-1]

    driver.runner.settle()  # the opening sweep
    driver.engine._housekeeper._make_marker = make  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("error", [OSError("no process"), ValueError("no number")])
def test_a_sweep_that_fails_is_answered_and_logged_and_the_next_one_works(
    store: Store, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    driver = store.open()
    working: Marker = driver.engine._housekeeper._make_marker  # type: ignore[assignment]
    break_sweeps(driver, error)
    with caplog.at_level(logging.WARNING), pytest.raises(SweepFailed, match=str(error)):
        driver.wait(driver.pool.sweep())
    assert str(error) in caplog.text
    driver.engine._housekeeper._make_marker = working  # type: ignore[assignment]
    assert driver.wait(driver.pool.sweep()) == 0


def test_sweeps_that_fail_are_not_begun_without_rest_while_a_write_waits(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=8 * MIB)
    driver.write(group.volumes[0], 0, pattern(1, 3 * MIB))
    driver.wait(group.snapshot("s"))
    driver.wait(group.delete_snapshot("s"))
    made = break_sweeps(driver, OSError("no process"))
    answer = Answer()
    group.volumes[0].write(4 * MIB, pattern(2, 2 * MIB), PERMIT, answer)
    for _ in range(600):
        driver.runner.tick()
        driver.runner.run_thread_work()
        driver.runner.elapse(0.01)
    assert isinstance(answer.error, Busy)
    assert 2 <= len(made) <= 7


def test_a_pool_in_a_directory_with_an_odd_name_is_swept_by_a_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "100%25 ?#", tuning=replace(TUNING, helper_processes=True))
    driver = store.open()
    group = driver.group(size=8 * MIB)
    driver.write(group.volumes[0], 0, pattern(1, MIB))
    driver.wait(driver.pool.delete_group("db"))
    assert driver.wait(driver.pool.sweep()) == MIB
    driver.wait(driver.pool.usage())
    store.prove_whole()
