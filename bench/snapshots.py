"""Snapshots and clones at scale, without a network: ``make bench NAME=snapshots`` (``--count``, ``--tib``: less).

The mapped volume is made without writing its data (``insides``): the data file is a sparse one of the full size. One
random 4 KiB write lies between two snapshots, so that each has a leaf and a page of its own, and two files to sync.

"Held" is the longest that one callback kept the loop, and the CPU time of the longest in that respect: what a READ
would have waited, and what of that is not the disk's (a journal append waits for a sync of the same file). Beside the
snapshots stands what the same two syncs cost on this disk without anything of ours.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.goals import Goal, judge
from bench.insides import STEP, journal_position, leave_full_journal, map_bytes, map_grains, map_number, map_run
from bench.loop import ClockedRunner
from bench.memory import resident
from blockstore.api import Group, NewVolume, StandingPermit, StoreError
from blockstore.diff import Ranges, SnapshotDiff
from blockstore.layout import UNIT, UNIT_SHIFT
from blockstore.pool import EnginePool, Tuning, open_pool

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PERMIT = StandingPermit()
SPARE = 8 * GIB  # of the sparse data file: for the writes between snapshots, and what the diffs change
CHANGED = GIB  # what lies between two snapshots whose difference is asked for
SMALL = 500  # snapshots that are enough for a p99
PROBE_EVERY = 20  # snapshots to one measurement of the bare syncs
SAVE_EVERY = 128 * GIB  # mapped volume between two checkpoints: no map stays unsaved as a whole

SNAPSHOT_GOAL = 5e-3  # seconds; with both syncs
FULL_JOURNAL = 64 * MIB  # what a pool has unless it was created otherwise
CLONES_GOAL = 1.0  # seconds for a thousand
DIFF_GOAL = 0.5
OPEN_GOAL = 10.0  # "seconds": what an initiator waits for without noticing more than a stall


@dataclass(frozen=True, slots=True)
class Spread:
    """Of times in seconds."""

    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, times: list[float]) -> Spread:
        ordered = sorted(times)
        return cls(*(ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99, 1)))

    def __str__(self) -> str:
        return f"p50 {self.p50 * 1e3:.2f} ms, p99 {self.p99 * 1e3:.2f} ms, worst {self.worst * 1e3:.2f} ms"


class BareSyncs:
    """Two written files beside the pool's, and the two syncs that a flush round makes, with nothing else."""

    def __init__(self, folder: Path) -> None:
        self._files = [os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("bare-data", "bare-journal")]
        self.times: list[float] = []
        for fd in self._files:
            os.pwrite(fd, os.urandom(MIB), 0)
            os.fsync(fd)

    def measure(self) -> None:
        """A block of data and a journal batch, synced in this order."""
        data, journal = self._files
        os.pwrite(data, os.urandom(UNIT), len(self.times) % 256 * UNIT)
        os.pwrite(journal, os.urandom(512), len(self.times) % 256 * 512)
        began = time.perf_counter()
        os.fdatasync(data)
        os.fdatasync(journal)
        self.times.append(time.perf_counter() - began)

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)


class Bench:
    def __init__(self, folder: Path, tib: float, count: int, clones: int, budget: int) -> None:
        self.folder = folder
        self.path = folder / "pool"
        self.budget = budget
        self.goals: list[Goal] = []
        self.size = int(tib * TIB) // MIB * MIB
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
    def step(self, what: str, times: int = 1) -> Iterator[list[float]]:
        """Measure a step and print its line; the list holds its seconds afterwards, then its CPU seconds."""
        self.runner.held, self.runner.held_cpu, self.runner.holder = 0.0, 0.0, ""
        began, cpu, memory, meta = time.perf_counter(), time.thread_time(), resident(), self._meta()
        result: list[float] = []
        yield result
        took, cpu = time.perf_counter() - began, time.thread_time() - cpu
        result += (took, cpu)
        scale, unit = (1e3 / times, "ms each") if times > 1 else (1.0, "s")
        each = f"{took * scale:9.3f} (CPU {cpu * scale:.3f}) {unit}"
        held = f"{self.runner.held * 1e3:7.2f} (CPU {self.runner.held_cpu * 1e3:.2f}) ms"
        print(
            f"{what:52} {each:30} held {held:24} RSS {resident() / MIB:+7.0f} MiB"
            f" ({(resident() - memory) / MIB:+.0f})  meta.db {(self._meta() - meta) / MIB:+.1f} MiB"
            f"  [{self.runner.holder[-40:]}]".replace("RSS +", "RSS "),
            flush=True,
        )

    def _meta(self) -> int:
        file = self.path / "meta.db"
        return file.stat().st_size if file.exists() else 0

    def run(self) -> int:
        self.open()
        self.close()
        os.truncate(self.path / "data", self.size + SPARE)
        self.open()
        self.sparse()
        self.fill()
        self.snapshots()
        self.memory()
        self.differences()
        self.reopen("open with all snapshots")
        self.sweep("sweep over all roots")
        self.usage()
        self.make_clones()
        self.delete()
        self.close()
        self.full_journal()
        return judge("snapshots and clones at scale", self.goals)

    def goal(self, what: str, limit: float, measured: float, unit: str, more: str = "") -> None:
        scale = {"s": 1.0, "ms": 1e3, "GiB": 1 / GIB}[unit]
        shown = f"{measured * scale:.2f} {unit}"
        self.goals.append(Goal(what, f"<= {limit * scale:g} {unit}", f"{shown}{more}", measured <= limit))

    def group(self, name: str, size: int) -> Group:
        return self.runner.wait(
            lambda: self.pool.create_group(name, iqn=f"iqn.bench:{name}", volumes=[NewVolume(size)])
        )

    def sparse(self) -> None:
        group = self.group("sparse", 64 * TIB)
        with self.step("snapshot of a 64 TiB sparse volume", SMALL):
            self.take(group, "64 TiB sparse", SMALL)
        with self.step("delete that group"):
            self.runner.wait(lambda: self.pool.delete_group("sparse"))

    def fill(self) -> None:
        self.group("db", self.size)
        number = map_number(self.pool, "db")
        with self.step(f"(map {self.size / TIB:.3g} TiB in memory, with checkpoints)"):
            for offset in range(0, self.size, SAVE_EVERY):
                map_run(self.pool, number, offset >> UNIT_SHIFT, min(SAVE_EVERY, self.size - offset) >> UNIT_SHIFT)
                self.runner.wait(self.pool.checkpoint)
        os.sync()  # gigabytes of meta.db on their way to the disk are no part of what is measured next

    def write(self, group: Group) -> None:
        volume = group.volumes[0]
        offset = self.random.randrange(volume.size // UNIT) * UNIT
        answers: list[StoreError | None] = []
        self.runner.run(lambda: volume.write(offset, os.urandom(UNIT), PERMIT, answers.append))
        self.runner.turn_until(lambda: bool(answers))

    def take(self, group: Group, what: str, count: int) -> list[float]:
        """So many snapshots with a write before each, and the bare syncs beside; prints and judges. The times."""
        times: list[float] = []
        with closing(BareSyncs(self.folder)) as bare:
            for i in range(count):
                self.write(group)
                began = time.perf_counter()
                self.runner.wait(lambda: group.snapshot(f"s{i}"))  # noqa: B023
                times.append(time.perf_counter() - began)
                if i % PROBE_EVERY == 0:
                    bare.measure()
        own, syncs = Spread.of(times), Spread.of(bare.times)
        print(f"  one snapshot: {own}; the two syncs alone: {syncs}")
        more = f" median, p99 {own.p99 * 1e3:.2f}; the two syncs alone {syncs.p50 * 1e3:.2f}, p99 {syncs.p99 * 1e3:.2f}"
        self.goal(f"snapshot, {what}", SNAPSHOT_GOAL, own.p50, "ms", more)
        return times

    def snapshots(self) -> None:
        group = self.pool.groups["db"]
        with self.step("first snapshot of the mapped volume"):
            self.runner.wait(lambda: group.snapshot("first"))
        before = journal_position(self.pool)
        with self.step(f"{self.count} snapshots, a write before each", self.count):
            times = self.take(group, f"{self.size / TIB:.3g} TiB fully mapped", self.count)
        print(
            f"  the first hundred {sum(times[:100]) * 10:.2f} ms each, the last hundred {sum(times[-100:]) * 10:.2f} ms"
        )
        appended = journal_position(self.pool) - before
        if appended > 0:  # else it was switched meanwhile
            print(f"  journal: {appended / self.count:.0f} bytes each, the write included")
        with self.step("checkpoint with all of them"):
            self.runner.wait(self.pool.checkpoint)

    def memory(self) -> None:
        used = map_bytes(self.pool)
        print(f"  the map: {used / MIB:,.0f} MiB; the process: {resident() / MIB:,.0f} MiB")
        what = f"map memory, {self.size / TIB:.3g} TiB mapped, {self.count} snapshots"
        self.goal(what, self.budget, used, "GiB", f"; the process {resident() / GIB:.2f}")

    def differences(self) -> None:
        """Changed in memory too, then saved by a checkpoint."""
        group, number, grains = self.pool.groups["db"], map_number(self.pool, "db"), CHANGED >> UNIT_SHIFT
        every = self.size >> UNIT_SHIFT
        self.runner.wait(lambda: group.snapshot("diff0"))
        map_run(self.pool, number, every // 3, grains)
        self.runner.wait(lambda: group.snapshot("diff1"))
        scattered = self.random.sample(range(every), grains)
        for at in range(0, grains, STEP):
            map_grains(self.pool, number, scattered[at : at + STEP])
        self.runner.wait(lambda: group.snapshot("diff2"))
        self.runner.wait(self.pool.checkpoint)
        self.difference("diff0", "diff1", "contiguous")
        self.difference("diff1", "diff2", "scattered")

    def difference(self, old: str, new: str, how: str) -> None:
        found: list[Ranges] = []
        with self.step(f"diff, {CHANGED / GIB:g} GiB changed, {how}") as took:
            compared = SnapshotDiff(self.pool, "db", old, new)
            found.append(self.runner.wait(lambda: compared.all_ranges(0)))
            compared.close()
        [ranges] = found
        if int(ranges.lengths.sum()) != CHANGED:
            raise AssertionError(f"the diff finds {ranges.lengths.sum()} bytes changed, {CHANGED} were")
        what = f"diff of two of {self.size / TIB:.3g} TiB, {CHANGED / GIB:g} GiB changed, {how}"
        self.goal(what, DIFF_GOAL, took[0], "s", f" (CPU {took[1]:.2f}), {len(ranges):,} ranges")

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
        with self.step(f"{self.clones} clones, asked for at once") as took:
            self.runner.wait_all([clone(i) for i in range(self.clones, 2 * self.clones)])
        self.goal(f"{self.clones} clones, asked for at once", CLONES_GOAL, took[0], "s")
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

    def full_journal(self) -> None:
        """A pool of its own: its journal alone is measured, no map of terabytes that is loaded before."""
        path = self.folder / "full"
        leave_full_journal(path, 64 * GIB, FULL_JOURNAL)
        del self.pool
        gc.collect()
        with self.step(f"open with a full journal of {FULL_JOURNAL // MIB} MiB") as took:
            pool = open_pool(path, self.runner, tuning=self.tuning)
        batches = pool.statistics().counters["recovered_batches"]
        self.goal(
            "open with a full journal",
            OPEN_GOAL,
            took[0],
            "s",
            f" (CPU {took[1]:.2f}), {batches:,} batches of 32 writes",
        )
        self.runner.wait(pool.close)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench NAME=snapshots", description=__doc__.splitlines()[0])
    parser.add_argument("--tib", type=float, default=1.0, help="size of the mapped volume (default 1)")
    parser.add_argument("--count", type=int, default=10_000, help="snapshots of it (default 10000)")
    parser.add_argument("--clones", type=int, default=1000, help="clones of one of them (default 1000)")
    parser.add_argument("--budget", type=float, default=4.0, help="GiB that its map may take (default 4)")
    parser.add_argument("--store", type=Path, help="folder for the pool (default: a new temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="blockyard-bench-", dir=options.store))
    try:
        return Bench(folder, options.tib, options.count, options.clones, int(options.budget * GIB)).run()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
