"""Snapshots and clones at scale, without a network: ``python -m bench.snapshots [--count 10000] [--tib 1]``.

The mapped volume is made without writing its data: the data file is a sparse one of the full size, blocks are taken
from the pool's own allocator and entered into the map in memory with made-up checksums, and the pool's checkpoint
stores that map. So maps, catalogue, journal, ``meta.db``, sweep and recovery are the real ones; only reading the volume
would fail. One random 4 KiB write lies between two snapshots, so that each has a leaf and a page of its own.

"Held" is the longest that one callback kept the loop, and the CPU time of the longest in that respect: what a READ
would have waited, and what of that is not the disk's (a journal append waits for a sync of the same file).
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.loop import ClockedRunner
from blockstore.api import NewVolume, StandingPermit, StoreError
from blockstore.layout import UNIT, UNIT_SHIFT
from blockstore.pool import EnginePool, Tuning, open_pool
from blockstore.records import Write

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PERMIT = StandingPermit()
STEP = 1 << 16  # grains mapped in one go while the volume is filled
SPARE = 8 * GIB  # of the sparse data file: for the writes between snapshots


class Bench:
    def __init__(self, folder: Path, tib: float, count: int, clones: int) -> None:
        self.path = folder / "pool"
        self.size = int(tib * TIB)
        self.count = count
        self.clones = clones
        self.runner = ClockedRunner()
        self.random = random.Random(1)
        self.tuning = Tuning(grow_step=GIB, keep_free=1 << 50, reserve=0, checkpoint_interval=60.0)
        self.pool: EnginePool

    def open(self) -> None:
        self.pool = open_pool(self.path, self.runner, create=True, name="bench", tuning=self.tuning)

    def close(self) -> None:
        self.runner.wait(self.pool.close)

    @contextmanager
    def step(self, what: str, times: int = 1) -> Iterator[None]:
        """Measure a step and print its line."""
        self.runner.held, self.runner.held_cpu, self.runner.holder = 0.0, 0.0, ""
        began, cpu, memory, meta = time.perf_counter(), time.thread_time(), _resident(), self._meta()
        yield
        took, cpu = time.perf_counter() - began, time.thread_time() - cpu
        scale, unit = (1e3 / times, "ms each") if times > 1 else (1.0, "s")
        each = f"{took * scale:9.3f} (CPU {cpu * scale:.3f}) {unit}"
        held = f"{self.runner.held * 1e3:7.2f} (CPU {self.runner.held_cpu * 1e3:.2f}) ms"
        print(
            f"{what:52} {each:30} held {held:24} RSS {_resident() / MIB:+7.0f} MiB"
            f" ({(_resident() - memory) / MIB:+.0f})  meta.db {(self._meta() - meta) / MIB:+.1f} MiB"
            f"  [{self.runner.holder[-40:]}]".replace("RSS +", "RSS "),
            flush=True,
        )

    def _meta(self) -> int:
        file = self.path / "meta.db"
        return file.stat().st_size if file.exists() else 0

    def run(self) -> None:
        self.open()
        self.close()
        os.truncate(self.path / "data", self.size + SPARE)
        self.open()
        self.sparse()
        self.fill()
        self.snapshots()
        self.reopen("open with all snapshots")
        self.sweep("sweep over all roots")
        self.usage()
        self.make_clones()
        self.delete()
        self.close()

    def group(self, name: str, size: int) -> None:
        self.runner.wait(lambda: self.pool.create_group(name, iqn=f"iqn.bench:{name}", volumes=[NewVolume(size)]))

    def sparse(self) -> None:
        self.group("sparse", 64 * TIB)
        group = self.pool.groups["sparse"]
        with self.step("snapshot of a 64 TiB sparse volume", 100):
            for i in range(100):
                self.runner.wait(lambda: group.snapshot(f"s{i}"))  # noqa: B023
        with self.step("delete that group"):
            self.runner.wait(lambda: self.pool.delete_group("sparse"))

    def fill(self) -> None:
        self.group("db", self.size)
        pool, number = self.pool, self.pool.groups["db"].volumes[0].map.number  # type: ignore[attr-defined]
        crcs = np.arange(STEP, dtype=np.uint32)
        with self.step(f"(map {self.size / TIB:g} TiB in memory)"):
            for grain in range(0, self.size >> UNIT_SHIFT, STEP):
                at = grain
                for start, length in pool._space.allocate(min(STEP, (self.size >> UNIT_SHIFT) - grain)):
                    pool.blockmap.apply(Write(number, at, start, crcs[:length]))
                    at += length
        with self.step("(checkpoint of that map)"):
            self.runner.wait(pool.checkpoint)
        os.sync()  # gigabytes of meta.db on their way to the disk are no part of what is measured next

    def write(self) -> None:
        offset = self.random.randrange(self.size // UNIT) * UNIT
        answers: list[StoreError | None] = []
        volume = self.pool.groups["db"].volumes[0]
        self.runner.run(lambda: volume.write(offset, os.urandom(UNIT), PERMIT, answers.append))
        self.runner.turn_until(lambda: bool(answers))

    def snapshots(self) -> None:
        group, times = self.pool.groups["db"], []
        with self.step("first snapshot of the mapped volume"):
            self.runner.wait(lambda: group.snapshot("first"))
        appended = 0
        with self.step(f"{self.count} snapshots, a write between each", self.count):
            for i in range(self.count):
                self.write()
                began, before = time.perf_counter(), self.pool._journal.position
                self.runner.wait(lambda: group.snapshot(f"s{i}"))  # noqa: B023
                times.append(time.perf_counter() - began)
                appended += max(0, self.pool._journal.position - before)  # less: it was switched meanwhile
        p50, p99, worst = (sorted(times)[int(len(times) * q)] * 1e3 for q in (0.5, 0.99, 0.9999))
        tail = sum(times[-100:]) * 10
        print(
            f"  one snapshot: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.2f} ms; the last hundred {tail:.2f} ms"
        )
        print(f"  journal: {appended / self.count:.0f} bytes each")
        with self.step("checkpoint with all of them"):
            self.runner.wait(self.pool.checkpoint)

    def reopen(self, what: str) -> None:
        self.close()
        del self.pool
        gc.collect()  # or the old pool's maps would count as memory of the new one
        with self.step(what):
            self.open()
        with self.step("  opening sweep"):
            self.runner.turn_until(lambda: self.pool.counters.sweeps > 0)

    def sweep(self, what: str) -> None:
        with self.step(what):
            self.runner.wait(self.pool.sweep)

    def usage(self) -> None:
        with self.step("count usage"):
            usage = self.runner.wait(self.pool.usage)
        counted = usage.groups[self.pool.groups["db"].record.uuid]
        print(f"  exclusive {counted.exclusive / GIB:.3f} GiB, reclaimable {counted.reclaimable / MIB:.1f} MiB")

    def make_clones(self) -> None:
        def clone(i: int) -> Callable[[], Future[object]]:
            iqn = f"iqn.bench:c{i}"
            return lambda: self.pool.clone_group("db", "first", f"c{i}", iqn=iqn, clients=[])  # type: ignore[return-value]

        with self.step(f"{self.clones} clones, one after another"):
            for i in range(self.clones):
                self.runner.wait(clone(i))
        with self.step(f"{self.clones} clones, asked for at once"):
            self.runner.wait_all([clone(i) for i in range(self.clones, 2 * self.clones)])
        group = self.pool.groups["db"]
        with self.step("100 snapshots beside that many groups", 100):
            for i in range(100):
                self.runner.wait(lambda: group.snapshot(f"beside{i}"))  # noqa: B023
        with self.step("delete the clones", 2 * self.clones):
            for i in range(2 * self.clones):
                self.runner.wait(lambda: self.pool.delete_group(f"c{i}"))  # noqa: B023

    def delete(self) -> None:
        group = self.pool.groups["db"]
        names = list(group.snapshots)
        self.random.shuffle(names)
        some = names[: len(names) // 10]
        with self.step(f"delete {len(some)} snapshots in any order", len(some)):
            for name in some:
                self.runner.wait(lambda: group.delete_snapshot(name))  # noqa: B023
        self.sweep("sweep after it")
        with self.step(f"delete the group with {len(names) - len(some)} snapshots"):
            self.runner.wait(lambda: self.pool.delete_group("db"))
        self.sweep("sweep after it")


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.snapshots", description=__doc__.splitlines()[0])
    parser.add_argument("--tib", type=float, default=1.0, help="size of the mapped volume (default 1)")
    parser.add_argument("--count", type=int, default=10_000, help="snapshots of it (default 10000)")
    parser.add_argument("--clones", type=int, default=1000, help="clones of one of them (default 1000)")
    parser.add_argument("--store", type=Path, help="folder for the pool (default: a new temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="blockyard-bench-", dir=options.store))
    try:
        Bench(folder, options.tib, options.count, options.clones).run()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
