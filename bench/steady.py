"""Random overwrites for minutes on a pool with little room: ``make bench NAME=steady OPTIONS="--seconds 600"``.

A volume fills 70 % of a pool with a size limit; then 4 KiB go to random places of it, a fixed number in flight, without
pause. Every write takes a fresh block, so the pool lives from what it gives back: frees, sweeps and checkpoints must
keep up, for as long as it goes on. Every window of 10 s prints its rate, its slowest write, memory and space.

In process by default; ``--iscsi`` loads the product through TCP on loopback and watches its worker.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.goals import Goal, judge
from bench.load import Generator, Workload
from bench.loop import ClockedRunner
from bench.memory import resident
from bench.overwrites import GRAIN, Overwrites
from blockstore.api import NewVolume, StandingPermit, StoreError, Volume
from blockstore.pool import open_pool
from blockyard.client import BlockyardClient
from tests.initiator import Initiator
from tests.product import Product

MIB, GIB = 1 << 20, 1 << 30
PERMIT = StandingPermit()
KEEPS_SPEED = 0.85  # of the first third, in the last one
MEMORY_GROWTH = 64 * MIB  # from the first third's end to the end; guessed: buffers and arenas that are touched late
SPACE_GROWTH = 1.05  # the last third's most, as a multiple of the most before
COUNTERS = ("checkpoints", "sweeps", "delayed_writes")


@dataclass(frozen=True, slots=True)
class Window:
    """What one stretch of the load was like; counters are of it alone."""

    iops: float
    worst: float
    """Seconds that the slowest write took."""
    rss: int
    used: int
    counters: Mapping[str, int]


class Loaded(ABC):
    """A pool under load."""

    @abstractmethod
    def load_for(self, seconds: float) -> tuple[float, float]:
        """(writes a second, seconds of the slowest)"""

    @abstractmethod
    def state(self) -> tuple[int, int, Mapping[str, int]]:
        """(resident bytes, used bytes, counters since it was opened)"""


class InProcess(Loaded):
    def __init__(self, folder: Path, limit: int, size: int, depth: int) -> None:
        self._runner = ClockedRunner()
        self._pool = open_pool(folder / "pool", self._runner, create=True, name="steady", size_limit=limit)
        volumes = [NewVolume(size)]
        group = self._runner.wait(lambda: self._pool.create_group("db", iqn="iqn.bench:steady", volumes=volumes))
        self._fill(group.volumes[0])
        self._load = Overwrites(group.volumes[0], self._runner, depth)

    def _fill(self, volume: Volume) -> None:
        for offset in range(0, volume.size, MIB):
            answers: list[StoreError | None] = []
            volume.write(offset, os.urandom(MIB), PERMIT, answers.append)
            self._runner.turn_until(partial(bool, answers))
            if answers != [None]:
                raise RuntimeError(f"the fill ended with {answers}")

    def load_for(self, seconds: float) -> tuple[float, float]:
        load = self._load
        before, load.worst = load.writes, 0.0
        began = time.perf_counter()
        self._runner.turn_for(seconds)
        load.raise_error()
        return (load.writes - before) / (time.perf_counter() - began), load.worst

    def state(self) -> tuple[int, int, Mapping[str, int]]:
        now = self._pool.statistics()
        return resident(), now.used, now.counters


class OverIscsi(Loaded):
    def __init__(self, product: Product, session: Initiator, size: int, depth: int) -> None:
        self._daemon = BlockyardClient(product.api)
        [self._pool] = (pool.name for pool in self._daemon.list_pools())
        fill = Generator(session, Workload("fill", MIB, True, True, 8, size))
        fill.write_slots(range(size // MIB))
        self._generator = Generator(session, Workload("steady", GRAIN, True, False, depth, size))
        self._generator.begin()

    def load_for(self, seconds: float) -> tuple[float, float]:
        generator = self._generator
        took = generator.load_for(seconds)
        if generator.errors:
            raise OSError(f"{generator.errors} writes failed")
        return generator.done / took, max(generator.latencies)

    def state(self) -> tuple[int, int, Mapping[str, int]]:
        pool = self._daemon.show_pool(self._pool)  # milliseconds, in which nobody takes the target's answers
        if pool.worker is None or pool.used is None:
            raise RuntimeError(f"the pool is {pool.state}: {pool.reason}")
        return resident(pool.worker), pool.used, pool.counters


@contextmanager
def loaded(folder: Path, limit: int, size: int, depth: int, *, iscsi: bool) -> Iterator[Loaded]:
    if not iscsi:
        yield InProcess(folder, limit, size, depth)
        return
    with Product(folder, "--pool-size", str(limit)) as product:
        iqn = product.create_group("steady", size)
        with Initiator(product.address, iqn) as session:
            session.login()
            while session.run(bytes(6)).status:
                pass  # unit attentions of the new session
            yield OverIscsi(product, session, size, depth)


def windows(load: Loaded, seconds: float, length: float) -> Iterator[Window]:
    _, _, before = load.state()
    for _ in range(round(seconds / length)):
        iops, worst = load.load_for(length)
        rss, used, counters = load.state()
        yield Window(iops, worst, rss, used, {name: counters[name] - before[name] for name in COUNTERS})
        before = counters


def watch(load: Loaded, seconds: float, length: float, limit: int) -> list[Window]:
    print(
        f"{'until s':>8} {'writes/s':>10} {'worst ms':>9} {'RSS MiB':>8} {'used':>6} {'checkpoints':>11} sweeps delayed"
    )
    seen = []
    for window in windows(load, seconds, length):
        seen.append(window)
        checkpoints, sweeps, delayed = (window.counters[name] for name in COUNTERS)
        print(
            f"{len(seen) * length:8.0f} {window.iops:10,.0f} {window.worst * 1e3:9.1f} {window.rss / MIB:8,.0f}"
            f" {window.used / limit:6.1%} {checkpoints:11} {sweeps:6} {delayed:7,}",
            flush=True,
        )
    return seen


def goals(seen: list[Window], limit: int) -> list[Goal]:
    third = max(1, len(seen) // 3)
    first, last, before = seen[:third], seen[-third:], seen[:-third] or seen
    speed = sum(w.iops for w in last) / sum(w.iops for w in first)
    grown = max(w.rss for w in last) - max(w.rss for w in first)
    used, most = max(w.used for w in last), max(w.used for w in before)
    rate = sum(w.iops for w in seen) / len(seen)
    spread = f"mean {rate:,.0f}, {min(w.iops for w in seen):,.0f} to {max(w.iops for w in seen):,.0f} writes/s"
    space = f"{used / most:.2f}; {used / limit:.1%} of the limit"
    return [
        Goal("speed, last third / first third", f">= {KEEPS_SPEED}", f"{speed:.2f}; {spread}", speed >= KEEPS_SPEED),
        Goal(
            "memory gained after the first third",
            f"<= {MEMORY_GROWTH // MIB} MiB",
            f"{grown / MIB:.0f} MiB",
            grown <= MEMORY_GROWTH,
        ),
        Goal("most space used, last third / before", f"<= {SPACE_GROWTH}", space, used <= most * SPACE_GROWTH),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench NAME=steady", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long (default 600)")
    parser.add_argument("--window", type=float, default=10, help="seconds to a line (default 10)")
    parser.add_argument("--fill", type=float, default=0.7, help="share of the pool that the volume fills (default 0.7)")
    parser.add_argument("--gib", type=float, default=8, help="size limit of the pool (default 8)")
    parser.add_argument("--depth", type=int, default=32, help="writes in flight (default 32)")
    parser.add_argument("--iscsi", action="store_true", help="load the product over iSCSI, not the store in process")
    parser.add_argument("--store", type=Path, help="folder for the pool (default: a new temporary one)")
    options = parser.parse_args()
    limit = int(options.gib * GIB) // MIB * MIB
    size = int(limit * options.fill) // MIB * MIB
    folder = Path(tempfile.mkdtemp(prefix="blockyard-steady-", dir=options.store))
    try:
        with loaded(folder, limit, size, options.depth, iscsi=options.iscsi) as load:
            seen = watch(load, options.seconds, options.window, limit)
        where = "over iSCSI" if options.iscsi else "in process"
        return judge(f"steady overwrites, {size / GIB:.1f} of {limit / GIB:g} GiB, {where}", goals(seen, limit))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
