"""Price of the block store's hot paths, without a network: ``make bench NAME=store``.

Each figure is the best of three rounds on an otherwise idle machine.
Reads are hot and verified; writes include journal append, map change and acknowledgement, not the sync.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blockstore.api import NewVolume, StandingPermit, StoreError
from blockstore.pool import EnginePool, Tuning, open_pool

GRAIN = 4096
VOLUME = 1 << 30
COUNT = 50_000
PERMIT = StandingPermit()


class TickRunner:
    """Ticks run when asked; helper work has a thread of its own, as in a worker; the clock is real."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []
        self._helper = ThreadPoolExecutor(1)
        self._working: list[Future[None]] = []

    def call_soon(self, function: Callable[[], None]) -> None:
        self._soon.append(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        if seconds < 0.5:  # slices and delays; housekeeping has no place between measurements
            self._soon.append(function)
        return lambda: None

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        def run() -> None:
            work()
            self._soon.append(lambda: then(None))

        self._working = [future for future in self._working if not future.done()]
        self._working.append(self._helper.submit(run))

    def now(self) -> float:
        return time.monotonic()

    def tick(self) -> None:
        due, self._soon = self._soon, []
        for function in due:
            function()

    def settle(self) -> None:
        while self._soon or self._working:
            for future in self._working:
                future.result()
            self._working = [future for future in self._working if not future.done()]
            self.tick()


def best(what: str, count: int, run: Callable[[], None], *, length: int = GRAIN) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    each = min(times) / count
    print(f"{what:48} {each * 1e6:8.2f} us {1 / each:10,.0f} /s {length / each / 1e9:7.2f} GB/s")


class Acknowledgements:
    """Counts them, so that a round ends when all its writes are done."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: StoreError | None) -> None:
        if error is not None:
            raise error
        self.count += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench NAME=store", description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="folder for the pool (default: a new temporary one)")
    base = Path(tempfile.mkdtemp(prefix="blockyard-bench-", dir=parser.parse_args().store))
    runner = TickRunner()
    tuning = Tuning(unsynced_cap=16 << 30)  # the price of the path, not of the disk behind it
    pool = open_pool(base / "pool", runner, create=True, name="bench", journal_size=256 << 20, tuning=tuning)
    group_future = pool.create_group("bench", iqn="iqn.2026-01.bench", volumes=[NewVolume(VOLUME)])
    runner.settle()
    group = group_future.result(0)
    volume = group.volumes[0]
    offsets = [random.randrange(VOLUME // GRAIN) * GRAIN for _ in range(COUNT)]
    grain, large = os.urandom(GRAIN), os.urandom(1 << 20)
    into, large_into = memoryview(bytearray(GRAIN)), memoryview(bytearray(1 << 20))

    cold: list[int] = []
    acknowledged = Acknowledgements()

    def wait_for(count: int) -> None:
        while acknowledged.count < count:
            runner.tick()
        acknowledged.count = 0

    def write_large() -> None:
        for offset in range(0, VOLUME, 1 << 20):
            volume.write(offset, large, PERMIT, acknowledged)
            runner.tick()
        wait_for(VOLUME >> 20)

    def read_large() -> None:
        for offset in range(0, VOLUME, 1 << 20):
            if not volume.read_now(offset, large_into):
                cold.append(offset)

    def read_grains() -> None:
        for offset in offsets:
            if not volume.read_now(offset, into):
                cold.append(offset)

    def write_grains(per_tick: int) -> None:
        for i in range(0, COUNT, per_tick):
            for offset in offsets[i : i + per_tick]:
                volume.write(offset, grain, PERMIT, acknowledged)
            runner.tick()
        wait_for(COUNT)

    def rest(pool: EnginePool) -> None:
        """Free what was overwritten, so that the next round finds pages that the host has already: supplying fresh
        ones costs more than all the rest, and differs by ten times from moment to moment."""
        pool.sweep()
        runner.settle()

    best("1 MiB write, fresh", VOLUME >> 20, write_large, length=1 << 20)
    rest(pool)
    best("1 MiB read, contiguous, verified", VOLUME >> 20, read_large, length=1 << 20)
    best("4 KiB random read, verified", COUNT, read_grains)
    for per_tick in (1, 4, 16, 32, 128):
        best(f"4 KiB random write, {per_tick} per tick", COUNT, lambda n=per_tick: write_grains(n))  # type: ignore[misc]
        rest(pool)
    best("1 MiB read after random writes, verified", VOLUME >> 20, read_large, length=1 << 20)
    snapshot = group.snapshot("s")
    runner.settle()
    snapshot.result(0)
    best("4 KiB random write after a snapshot, 32 per tick", COUNT, lambda: write_grains(32))
    print(f"{len(cold)} reads would have blocked, {pool.statistics().counters['delayed_writes']} writes were delayed")
    closed = pool.close()
    runner.settle()
    closed.result(0)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
