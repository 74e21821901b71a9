"""Power loss at every point of one long trace: what opens is a prefix of what was done, with everything flushed in it.

The oracle is a model of the whole pool (every volume's and snapshot's grains) after each single operation. What is
recovered must equal the model after some operation that is not older than the last one known to be durable at the cut,
and not younger than the last one begun: that says at once that flushed writes are there, that every block is old or
new, that prefix order holds over all volumes, and that snapshots, clones, rollbacks and deletes are atomic.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from crc32c import crc32c

from blockstore.api import CachePolicy, Group, NewVolume
from blockstore.check import check_directory
from blockstore.pool import EnginePool
from tests.blockstore.powercut import TUNING, Cutter, FakeDisk, open_disk
from tests.blockstore.support import GRAIN, KIB, PERMIT, pattern
from tests.scale import SEED, scaled

VOLUME = 512 * KIB
GRAINS = VOLUME // GRAIN
Content = dict[int, int]
"""Grain -> crc32c of what is stored there; zeros are absent."""
Fingerprint = frozenset[tuple[str, int, tuple[tuple[int, int], ...]]]


def fingerprint(pool: EnginePool) -> Fingerprint:
    """What the pool's maps hold, by group, snapshot and LUN."""
    found = []
    for name, group in pool.catalog.groups.items():
        places = [(name, group.maps)]
        places += [(f"{name}@{s}", e.maps) for s, e in pool.catalog.snapshots.get(group.record.uuid, {}).items()]
        for place, maps in places:
            for lun, number in maps.items():
                one = pool.blockmap.maps[number]
                entries = [(grain, *pool.blockmap.entry(one, grain)) for grain in range(GRAINS)]
                found.append((place, lun, tuple((grain, crc) for grain, entry, crc in entries if entry)))
    return frozenset(found)


@dataclass
class Model:
    """Volumes and snapshots as plain dicts, and the history of all of them."""

    volumes: dict[str, list[Content]] = field(default_factory=dict)
    """Group, or group@snapshot -> content by LUN."""
    history: list[tuple[int, Fingerprint]] = field(default_factory=list)
    """(events in the trace when the operation began, state after it)"""
    durable: list[tuple[int, int]] = field(default_factory=list)
    """(events in the trace, index into history): from there on at least that much must survive."""

    def record(self, began: int) -> int:
        state = frozenset(
            (place, lun, tuple(sorted(content.items())))
            for place, luns in self.volumes.items()
            for lun, content in enumerate(luns)
        )
        self.history.append((began, state))
        return len(self.history) - 1

    def write(self, place: str, lun: int, offset: int, data: bytes, old: bytes) -> None:
        """``old``: the grains that the write touches, as they were."""
        first = offset // GRAIN
        whole = bytearray(old)
        whole[offset % GRAIN : offset % GRAIN + len(data)] = data
        for i in range(len(whole) // GRAIN):
            grain = bytes(whole[i * GRAIN : (i + 1) * GRAIN])
            self.volumes[place][lun].pop(first + i, None)
            if any(grain):
                self.volumes[place][lun][first + i] = crc32c(grain)


class Workload:
    """Random operations on a recorded disk, each noted in the model."""

    def __init__(self, cache: CachePolicy, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disk = FakeDisk()
        self.driver = open_disk(self.disk)
        self.driver.runner.settle()
        self.model = Model()
        self.model.record(0)
        self.contents: dict[str, list[bytearray]] = {}
        began = len(self.disk.trace)
        volumes = [NewVolume(VOLUME), NewVolume(VOLUME)]
        future = self.driver.pool.create_group("db", iqn="iqn.db", volumes=volumes, cache=cache)
        self._new_place("db", [bytearray(VOLUME), bytearray(VOLUME)], [{}, {}])
        index = self.model.record(began)
        self.group: Group = self.driver.wait(future)
        self._durable(index)
        self.through = cache is CachePolicy.WRITETHROUGH

    def _new_place(self, name: str, contents: list[bytearray], maps: list[Content]) -> None:
        self.contents[name] = [bytearray(content) for content in contents]
        self.model.volumes[name] = [dict(content) for content in maps]

    def _durable(self, index: int) -> None:
        self.model.durable.append((len(self.disk.trace), index))

    def _group(self) -> tuple[str, Group]:
        name = self.rng.choice(sorted(self.driver.pool.groups))
        return name, self.driver.pool.groups[name]

    def write(self) -> None:
        name, group = self._group()
        lun, sync = self.rng.randrange(2), self.rng.random() < 0.1
        if self.rng.random() < 0.3:
            length = 512 * self.rng.randint(1, 20)
            offset = 512 * self.rng.randrange((VOLUME - length) // 512)
        else:
            length = GRAIN * self.rng.choice([1, 1, 1, 2, 4, 16])
            offset = GRAIN * self.rng.randrange((VOLUME - length) // GRAIN)
        data = bytes(length) if self.rng.random() < 0.1 else pattern(self.rng.randrange(1 << 30), length)
        began = len(self.disk.trace)
        content = self.contents[name][lun]
        first, end = offset // GRAIN * GRAIN, -(-(offset + length) // GRAIN) * GRAIN
        self.model.write(name, lun, offset, data, bytes(content[first:end]))
        content[offset : offset + length] = data
        index = self.model.record(began)

        def done(error: Exception | None) -> None:
            assert error is None
            if sync or group.volumes[lun].write_through:
                self._durable(index)

        group.volumes[lun].write(offset, data, PERMIT, done, sync=sync)

    def discard(self) -> None:
        name, group = self._group()
        lun, first, count = self.rng.randrange(2), self.rng.randrange(GRAINS - 8), self.rng.randint(1, 8)
        began = len(self.disk.trace)
        for grain in range(first, first + count):
            self.model.volumes[name][lun].pop(grain, None)
        self.contents[name][lun][first * GRAIN : (first + count) * GRAIN] = bytes(count * GRAIN)
        index = self.model.record(began)

        def done(error: Exception | None) -> None:
            assert error is None
            if group.volumes[lun].write_through:
                self._durable(index)

        group.volumes[lun].discard(first * GRAIN, count * GRAIN, PERMIT, done)

    def flush(self) -> None:
        index = len(self.model.history) - 1
        self.group.volumes[0].flush(lambda error: self._durable(index))

    def control(self, verb: str) -> None:
        """One group verb, waited for. What it changes is put into the model as soon as it is begun."""
        self.driver.runner.tick()
        began = len(self.disk.trace)
        pool, group = self.driver.pool, self.group
        if verb == "snapshot":
            future = group.snapshot("s")
            self._new_place("db@s", self.contents["db"], self.model.volumes["db"])
        elif verb == "clone":
            future = pool.clone_group("db", "s", "copy", iqn="iqn.copy", clients=[])  # type: ignore[assignment]
            self._new_place("copy", self.contents["db@s"], self.model.volumes["db@s"])
        elif verb == "rollback":
            future = group.rollback("s")
            automatic = next(name for name in group.snapshots if name != "s")
            self._new_place(f"db@{automatic}", self.contents["db"], self.model.volumes["db"])
            self._new_place("db", self.contents["db@s"], self.model.volumes["db@s"])
        elif verb == "delete snapshot":
            future = group.delete_snapshot("s")  # type: ignore[assignment]
            del self.model.volumes["db@s"], self.contents["db@s"]
        else:
            future = pool.delete_group("copy")  # type: ignore[assignment]
            del self.model.volumes["copy"], self.contents["copy"]
        index = self.model.record(began)
        self.driver.wait(future)
        self._durable(index)

    def turn(self) -> None:
        """Let the loop and the helpers go on a little, in a random order."""
        for _ in range(self.rng.randint(1, 3)):
            kind = self.rng.random()
            if kind < 0.5:
                self.driver.runner.tick()
            elif kind < 0.7:
                self.driver.runner.run_thread_work()
            else:
                self.driver.runner.elapse(0.002)

    def some_io(self, count: int) -> None:
        for _ in range(count):
            for _ in range(self.rng.choice([1, 1, 2, 5])):
                (self.discard if self.rng.random() < 0.1 else self.write)()
            if self.rng.random() < 0.15:
                self.flush()
            if self.rng.random() < 0.1:
                self.driver.pool.sweep()
            self.turn()
            while self.driver.engine._space.allocator.free < 128:  # the model knows no write that waits for space
                self.turn()

    def run(self) -> None:
        pool = self.driver.pool
        self.some_io(25)
        self.control("snapshot")
        self.some_io(15)
        pool.checkpoint()
        self.some_io(20)
        self.control("clone")
        self.some_io(15)
        self.control("rollback")
        self.some_io(20)
        self.driver.runner.advance(0.5)
        self.control("delete snapshot")
        self.some_io(10)
        self.control("delete group")
        self.some_io(15)
        self.driver.runner.advance(2)
        self.some_io(10)
        pool.checkpoint()
        self.some_io(10)
        self.driver.runner.settle()


class Judge:
    """Opens what a cut left and compares it with the model."""

    def __init__(self, work: Workload) -> None:
        self.model = work.model
        self.opened = 0

    def judge(self, cut: int, disk: FakeDisk, what: str) -> None:
        if disk.meta is None:
            return  # the pool was not born yet
        floor = max((index for at, index in self.model.durable if at <= cut), default=0)
        report = check_directory(disk, deep=True, map_leaves=TUNING.map_leaves)
        assert not report.findings, f"cut {cut}, {what}: {report.findings}"
        driver = open_disk(disk)
        state = fingerprint(driver.engine)
        allowed = [state for began, state in self.model.history[floor:] if began <= cut]
        assert state in allowed, f"cut {cut}, {what}: not the state after any operation from number {floor} on"
        self.opened += 1

    def judge_twice(self, cut: int, disk: FakeDisk, rng: random.Random) -> None:
        """Cut the power again inside recovery and the first second of serving, then judge that."""
        if disk.meta is None:
            return
        before = len(disk.trace)
        cutter = Cutter([], disk.boot)
        cutter.start_from(disk)
        driver = open_disk(disk)
        driver.runner.advance(0.1)
        cutter.follow(disk.trace[before:])
        for _ in range(rng.randrange(len(disk.trace) - before + 1)):
            cutter.step()
        self.judge(cut, cutter.some_landed(rng), "cut again during recovery")


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(scaled(1)))
@pytest.mark.parametrize("cache", list(CachePolicy))
def test_a_power_cut_at_every_io_leaves_a_whole_pool_with_everything_flushed(cache: CachePolicy, round_: int) -> None:
    work = Workload(cache, seed=SEED + round_)
    work.run()
    trace, rng, judge = work.disk.trace, random.Random(SEED + round_), Judge(work)
    assert len(trace) >= 300
    assert work.driver.engine.statistics().counters["checkpoints"] >= 3
    cutter = Cutter(trace, "boot-2")
    while cutter.at < len(trace):
        event = cutter.step()
        judge.judge(cutter.at, cutter.none_landed(), "no unsynced write landed")
        if event.kind == "write":
            judge.judge(cutter.at, cutter.last_torn(rng), "the last write torn")
        if cutter.unsynced > 1:
            judge.judge(cutter.at, cutter.some_landed(rng), "some writes landed")
        if cutter.at % 4 == 0:
            judge.judge(cutter.at, cutter.all_landed(), "everything landed")
            judge.judge_twice(cutter.at, cutter.some_landed(rng), rng)
    assert judge.opened > 2 * len(trace)


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(scaled(1)))
@pytest.mark.parametrize("cache", list(CachePolicy))
def test_a_killed_process_loses_no_acknowledged_write(cache: CachePolicy, round_: int) -> None:
    """The same trace, but only the process dies: the page cache has everything that was written."""
    work = Workload(cache, seed=SEED + 1 + round_)
    work.run()
    judge = Judge(work)
    cutter = Cutter(work.disk.trace, "boot-1")
    while cutter.at < len(work.disk.trace):
        cutter.step()
        if cutter.at % 2 == 0:
            judge.judge(cutter.at, cutter.all_landed(), "killed")
    disk = cutter.all_landed()
    assert fingerprint(open_disk(disk).engine) == work.model.history[-1][1]
