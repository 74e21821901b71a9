"""Fixtures: a pool of each kind behind its contract, and a store on disk that every test leaves whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.check import check_directory
from blockstore.memory import MemoryPool
from tests.blockstore.fault_list import rules_of
from tests.blockstore.powercut import TUNING, FakeDisk, open_disk
from tests.blockstore.support import Driver, ManualRunner, Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-k rule_07`` finds the tests of an item of the fault list, wherever they are."""
    for item in items:
        test = item.nodeid.removeprefix("tests/").replace(".py::", "::").partition("[")[0]
        item.extra_keyword_matches.update(rules_of(test))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store in a directory; after the test ``check`` has proved it whole."""
    store = Store(tmp_path / "pool")
    yield store
    store.prove_whole()


@pytest.fixture
def disk() -> Iterator[FakeDisk]:
    """A disk; afterwards, healthy again and after a restart of the machine, its pool is whole."""
    disk = FakeDisk()
    yield disk
    disk.faults.clear()
    disk.boot = "boot-after-the-test"
    disk.new_process()
    report = check_directory(disk.copy(), deep=True, map_leaves=TUNING.map_leaves)
    assert report.findings == ()
    open_disk(disk)


@pytest.fixture(params=["memory", "engine"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    """A fresh pool of each engine, for the contract suite."""
    if request.param == "memory":
        runner = ManualRunner()
        yield Driver(runner, MemoryPool(runner))
        return
    store = Store(tmp_path / "pool")
    yield store.open()
    store.prove_whole()
