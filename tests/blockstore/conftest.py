"""Fixtures: a pool of each kind behind its contract, and a store on disk that every test leaves whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.memory import MemoryPool
from tests.blockstore.support import Driver, ManualRunner, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store in a directory; after the test ``check`` has proved it whole."""
    store = Store(tmp_path / "pool")
    yield store
    store.prove_whole()


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
