"""How late the loop is while the pool works in the background: ``make bench NAME=lateness``.

A volume of a million written blocks, snapshots of it, and an endless load of 4 KiB overwrites on the loop that a worker
has (uvloop, ``target.runner``). A timer every millisecond measures how late it is called: what a command would have
waited that arrives at the wrong moment. In each phase one thing more goes on: checkpoints, sweeps, a scrub at full
speed, snapshots being made and deleted.

Beside the worst lateness stands how long all callbacks took between its two beats: what is missing to the lateness went
elsewhere. Then the longest of them, and its CPU time: what is missing there went to a helper thread with the GIL, to
the disk, or to another process on this processor. The load's own batches are among the callbacks; the first phase shows
them alone. Last stands the most CPU time of any callback of the phase, late beat or not: what our own code holds the
loop for, on an idle machine too. libuv's timers count in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import uvloop
from rich.table import Table

from bench.goals import Goal, judge, print_table
from bench.overwrites import Overwrites
from blockstore.api import Closed, Group, NewVolume, StandingPermit, StoreError
from blockstore.pool import EnginePool, open_pool
from blockstore.scrub import Scrub
from target.runner import LoopRunner

T = TypeVar("T")

MIB, GIB = 1 << 20, 1 << 30
PERMIT = StandingPermit()
BEAT = 1e-3  # seconds
AIM = 20e-3
OLD_SNAPSHOTS = 50  # there before anything is measured, with writes between them


@dataclass(slots=True)
class Watch:
    """Of one phase: how late each beat was, and what the loop did before the latest one."""

    late: list[float] = field(default_factory=list)
    worst: float = 0.0
    busy: float = 0.0
    """Seconds that all callbacks took between the worst beat and the one before."""
    longest: float = 0.0
    cpu: float = 0.0
    """Of the longest: the rest of its time it did not run, or waited in the kernel."""
    holder: str = ""
    most_cpu: float = 0.0
    """Of any one callback of the phase."""
    most_cpu_holder: str = ""


class WatchedRunner(LoopRunner):
    """The worker's runner, with each of the pool's callbacks timed, and the beats."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.watch = Watch()
        self._busy = self._longest = self._cpu = 0.0
        self._holder = ""
        self._due = time.perf_counter() + BEAT
        loop.call_later(BEAT, self._beat)

    def call_soon(self, function: Callable[[], None]) -> None:
        super().call_soon(partial(self.run, function))

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        return super().call_later(seconds, partial(self.run, function))

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        super().in_thread(work, lambda error: self.run(partial(then, error)))

    def run(self, function: Callable[[], T]) -> T:
        """Call it, timed."""
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return function()
        finally:
            took, cpu = time.perf_counter() - began, time.thread_time() - cpu
            self._busy += took
            if took > self._longest:
                self._longest, self._cpu, self._holder = took, cpu, _name(function)
            if cpu > self.watch.most_cpu:
                self.watch.most_cpu, self.watch.most_cpu_holder = cpu, _name(function)

    def _beat(self) -> None:
        now = time.perf_counter()
        late, watch = max(0.0, now - self._due), self.watch
        watch.late.append(late)
        if late > watch.worst:
            watch.worst, watch.busy = late, self._busy
            watch.longest, watch.cpu, watch.holder = self._longest, self._cpu, self._holder
        self._busy = self._longest = self._cpu = 0.0
        self._due = time.perf_counter() + BEAT
        self._loop.call_later(BEAT, self._beat)


def _name(function: Callable[..., object]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", repr(function))).replace(".<locals>", "")


class Bench:
    def __init__(self, pool: EnginePool, runner: WatchedRunner, group: Group, seconds: float) -> None:
        self.pool = pool
        self.runner = runner
        self.group = group
        self.seconds = seconds
        self.phases: dict[str, Watch] = {}

    async def run(self, load: Overwrites) -> None:
        pool = self.pool
        await self.phase("the load alone", lambda: asyncio.sleep(self.seconds))
        await self.phase("checkpoints", lambda: self.repeat(pool.checkpoint))
        await self.phase("sweeps", lambda: self.repeat(pool.sweep))
        await self.phase("a scrub", self.scrub)
        names: list[str] = []
        await self.phase("snapshots made", lambda: self.repeat(lambda: self.snapshot(names)))
        await self.phase(
            "snapshots deleted", lambda: self.repeat(lambda: self.group.delete_snapshot(names.pop()), names)
        )
        await self.phase("sweeps after that", lambda: self.repeat(pool.sweep))
        load.raise_error()

    async def phase(self, name: str, what: Callable[[], Awaitable[None]]) -> None:
        self.runner.watch = self.phases[name] = Watch()
        await what()
        self.runner.watch = Watch()

    async def repeat(self, verb: Callable[[], Future[T]], left: list[str] | None = None) -> None:
        """Again and again until the time is over, at least once; or until nothing is ``left``."""
        end = time.perf_counter() + self.seconds
        while True:
            await asyncio.wrap_future(self.runner.run(verb))
            if time.perf_counter() >= end or (left is not None and not left):
                return

    def snapshot(self, names: list[str]) -> Future[object]:
        names.append(f"n{len(names)}")
        return self.group.snapshot(names[-1])  # type: ignore[return-value]  # Future is invariant

    async def scrub(self) -> None:
        scrub = Scrub(self.pool, rate=None, progress=lambda done, errors: None)
        ended = asyncio.wrap_future(self.runner.run(scrub.scrub))
        await asyncio.wait([ended], timeout=self.seconds)
        scrub.close()
        try:
            await ended
        except Closed:
            return  # by us: the time was over


@asynccontextmanager
async def opened(folder: Path, size: int) -> AsyncIterator[tuple[EnginePool, WatchedRunner, Group]]:
    """A pool with a fully written volume and old snapshots of it."""
    runner = WatchedRunner(asyncio.get_running_loop())
    pool = open_pool(folder / "pool", runner, create=True, name="lateness")
    group = await asyncio.wrap_future(pool.create_group("db", iqn="iqn.bench:late", volumes=[NewVolume(size)]))
    for offset in range(0, size, MIB):
        await write(group, offset, os.urandom(MIB))
    for number in range(OLD_SNAPSHOTS):
        await asyncio.wrap_future(group.snapshot(f"old{number}"))
        await write(group, number * (size // OLD_SNAPSHOTS) // MIB * MIB, os.urandom(MIB))
    await asyncio.wrap_future(pool.checkpoint())
    gc.collect()
    gc.freeze()  # as a worker does
    yield pool, runner, group
    await asyncio.wrap_future(pool.close())
    runner.close()


async def write(group: Group, offset: int, data: bytes) -> None:
    answered: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
    group.volumes[0].write(offset, data, PERMIT, answered.set_result)
    error = await answered
    if error is not None:
        raise error


async def measure(folder: Path, size: int, seconds: float, depth: int) -> dict[str, Watch]:
    async with opened(folder, size) as (pool, runner, group):
        bench = Bench(pool, runner, group, seconds)
        load = Overwrites(group.volumes[0], runner, depth)
        await bench.run(load)
        load.stop()
        print(f"{load.writes:,} writes meanwhile, {pool.statistics().counters['delayed_writes']:,} of them delayed")
    return bench.phases


def show(phases: dict[str, Watch]) -> None:
    made = Table(title="lateness of a timer, ms")
    made.add_column("while")
    for column in ("beats", "median", "p99.9", "worst", "callbacks then", "longest", "its CPU"):
        made.add_column(column, justify="right")
    made.add_column("which was")
    for name, watch in phases.items():
        p50, p999 = np.percentile(watch.late, [50, 99.9])
        times = [p50, p999, watch.worst, watch.busy, watch.longest, watch.cpu]
        shown = [f"{each * 1e3:.2f}" for each in times]
        made.add_row(name, f"{len(watch.late):,}", *shown, watch.holder)
    print_table(made)
    for name, watch in phases.items():
        print(f"most CPU time of one callback, {name}: {watch.most_cpu * 1e3:.2f} ms, {watch.most_cpu_holder}")


def goals(phases: dict[str, Watch]) -> list[Goal]:
    late = np.concatenate([watch.late for watch in phases.values()])
    name, watch = max(phases.items(), key=lambda item: item[1].worst)
    total = f"{watch.worst * 1e3:.1f} ms ({name}: {watch.holder}); p99.9 {np.percentile(late, 99.9) * 1e3:.2f} ms"
    during, own = max(phases.items(), key=lambda item: item[1].most_cpu)
    most = f"{own.most_cpu * 1e3:.1f} ms ({during}: {own.most_cpu_holder})"
    aim = f"<= {AIM * 1e3:g} ms"
    return [
        Goal("worst lateness over all phases", aim, total, watch.worst <= AIM),
        Goal("most CPU time of one callback, which other load does not change", aim, most, own.most_cpu <= AIM),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench NAME=lateness", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each phase (default 10)")
    parser.add_argument("--gib", type=float, default=4, help="size of the written volume (default 4: a million blocks)")
    parser.add_argument("--depth", type=int, default=16, help="writes in flight (default 16)")
    parser.add_argument("--store", type=Path, help="folder for the pool (default: a new temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="blockyard-lateness-", dir=options.store))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            size = int(options.gib * GIB) // MIB * MIB
            phases = runner.run(measure(folder, size, options.seconds, options.depth))
        show(phases)
        return judge(f"the loop's lateness, {int(options.gib * GIB) // 4096:,} mapped blocks", goals(phases))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
