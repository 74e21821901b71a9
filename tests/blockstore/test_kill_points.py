"""``kill -9`` before every I/O call of a mixed workload, and in the middle of every write, on real files.

A child process runs the workload; at the n-th call it ends with ``os._exit``, so nothing is flushed, closed or told.
It runs the same each time, so one that ran to its end tells what must be there after n calls. What happens within
SQLite's calls is ``test_crash``'s.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstore.api import CachePolicy
from blockstore.check import check_pool
from blockstore.checkpoint import MetaDb
from blockstore.device import HostDirectory, HostFile
from tests.blockstore.support import Driver, Store
from tests.blockstore.workload import VARIANTS, Model, Variant, Workload, observe
from tests.scale import SEED, scaled

EVERY = scaled(1) > 1
STRIDE = 1 if EVERY else 24
OPERATIONS = 60
CALLS = [
    (HostFile, "write"),
    (HostFile, "sync"),
    (HostFile, "allocate"),
    (HostFile, "punch"),
    (HostDirectory, "open"),
    (HostDirectory, "remove"),
    (HostDirectory, "sync"),
    (HostDirectory, "settle_database"),
    (HostDirectory, "database"),
    (MetaDb, "begin"),
    (MetaDb, "put_nodes"),
    (MetaDb, "commit"),
    (MetaDb, "close"),
]


class Counted:
    """Counts the I/O calls of this process, and ends it at one of them."""

    def __init__(self, last: int | None, *, torn: bool) -> None:
        self.calls = 0
        self.writes: list[int] = []
        """Which calls were writes."""
        self._last = last
        self._torn = torn

    def install(self) -> None:
        for owner, name in CALLS:
            setattr(owner, name, self._counting(getattr(owner, name), is_write=(owner, name) == (HostFile, "write")))

    def _counting(self, real: Callable[..., Any], *, is_write: bool) -> Callable[..., Any]:
        def call(file: Any, *arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if is_write:
                self.writes.append(self.calls)
            if self.calls == self._last:
                if is_write and self._torn:
                    offset, buffers = arguments
                    whole = b"".join(buffers)
                    real(file, offset, (whole[: len(whole) // 2 or 1],))
                os._exit(9)
            return real(file, *arguments, **more)

        return call


class OnFiles(Workload):
    """The same workload on a directory; an event is an I/O call."""

    def __init__(self, path: Path, counted: Counted, cache: CachePolicy, variant: Variant) -> None:
        self._store = Store(path, tuning=variant.tuning, size_limit=variant.size_limit)
        self._counted = counted
        super().__init__(cache, SEED, variant)

    @property
    def events(self) -> int:
        return self._counted.calls

    def open_pool(self) -> Driver:
        if self._store.driver is not None:
            self._store.kill()
        return self._store.open()

    def data_bytes(self) -> int:
        return (self._store.path / "data").stat().st_size


def run_child(path: Path, last: int | None, cache: CachePolicy, *, torn: bool = False) -> Path:
    """Run the workload in a child until call ``last``; with None to the end, and then its model is in the file."""
    told = path.with_suffix(".told")
    child = os.fork()
    if child == 0:
        _live(path, told, last, cache, torn)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if last is None else 9)
    return told


def _live(path: Path, told: Path, last: int | None, cache: CachePolicy, torn: bool) -> None:
    """The child's whole life. Never returns: what pytest has under way is the parent's."""
    try:
        now = time.gmtime(0)
        time.gmtime = lambda *_: now  # names of snapshots tell the time
        counted = Counted(last, torn=torn)
        counted.install()
        work = OnFiles(path, counted, cache, VARIANTS[0])
        work.run(most=OPERATIONS)
        told.write_bytes(pickle.dumps((counted.calls, counted.writes, work.born_at, work.model)))
        os._exit(0)
    except BaseException:  # whatever it was, it must not become the parent's second life
        traceback.print_exc()
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("cache", list(CachePolicy), ids=lambda cache: cache.value)
def test_a_process_killed_at_any_io_call_loses_no_acknowledged_write(tmp_path: Path, cache: CachePolicy) -> None:
    model: Model
    told = run_child(tmp_path / "whole", None, cache)
    calls, writes, born_at, model = pickle.loads(told.read_bytes())
    killed = 0
    for last in range(1, calls + 1, STRIDE):
        for torn in (False, True) if last in writes else (False,):
            path = tmp_path / "pool"
            run_child(path, last, cache, torn=torn)
            judge(path, last, born_at, model, f"killed at call {last}{', in the middle of it' if torn else ''}")
            shutil.rmtree(path)
            killed += 1
    print(f"{cache.value}: {calls} I/O calls of a process, {killed} states")
    assert calls > 100
    assert killed > calls // STRIDE


def judge(path: Path, last: int, born_at: int, model: Model, what: str) -> None:
    done = last - 1  # this many calls were made
    if done >= born_at:
        report = check_pool(path, deep=True)
        assert report.ok, f"{what}: {report.findings}"
    store = Store(path, tuning=VARIANTS[0].tuning)
    state = observe(store.open())
    store.kill()
    assert state in model.allowed(done, model.acknowledged), what
