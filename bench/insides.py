"""The one place where benches reach behind the pool's contract, for states that would take hours to reach through it.

A terabyte mapped without a terabyte written, a journal filled without the data that it names: maps, catalogue, journal,
``meta.db``, sweep and recovery are the real ones then; only reading such volumes would fail. Nothing here measures.
Invariant: every block that a map names was taken from the pool's own allocator.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.loop import ClockedRunner
from blockstore.api import NewVolume, StoreError
from blockstore.layout import LEAF_ENTRIES, PAGE_ENTRIES, UNIT, UNIT_SHIFT, WRITE_KIND, pack_one_write
from blockstore.pool import EnginePool, Tuning, open_pool
from blockstore.records import Write
from blockstore.volume import EngineVolume

STEP = 1 << 16  # grains mapped in one go
LEAF_BYTES, PAGE_BYTES = LEAF_ENTRIES * 12, PAGE_ENTRIES * 4
_BATCH = 32  # writes in a journal batch: what a queue of that depth makes of a tick
_TOLD = 1.5  # seconds after which the pool has told the disk what was durable


def map_number(pool: EnginePool, group: str) -> int:
    """The map of the group's LUN 0."""
    volume = pool.groups[group].volumes[0]
    assert isinstance(volume, EngineVolume)
    return volume.map.number


def map_run(pool: EnginePool, number: int, grain: int, count: int) -> None:
    """Map consecutive grains in memory to blocks of the pool, with made-up checksums. Its journal knows nothing of it,
    so a checkpoint must come before the pool is left."""
    crcs = np.arange(STEP, dtype=np.uint32)
    for at in range(grain, grain + count, STEP):
        done = at
        for start, length in pool._space.allocate(min(STEP, grain + count - at)):
            pool.blockmap.apply(Write(number, done, start, crcs[:length]))
            done += length


def map_grains(pool: EnginePool, number: int, grains: Sequence[int]) -> None:
    """As ``map_run``, each grain alone."""
    to = pool.blockmap.maps[number]
    blocks = (block for start, length in pool._space.allocate(len(grains)) for block in range(start, start + length))
    for grain, block in zip(grains, blocks, strict=True):
        pool.blockmap.write_one(to, grain, block, grain & 0xFFFFFFFF)


def map_bytes(pool: EnginePool) -> int:
    """What the map itself says that its nodes take: leaves, pages and roots."""
    blockmap = pool.blockmap
    roots = sum(len(one.root) * one.root.itemsize for one in blockmap.maps.values())
    return blockmap.held_bytes + roots


def journal_position(pool: EnginePool) -> int:
    """Bytes in the journal's current file."""
    return pool._journal.position


def leave_full_journal(path: Path, size: int, journal_size: int) -> None:
    """In a process of its own that then dies: a pool whose journal is full of random writes of 4 KiB to a volume of
    ``size`` bytes, all durable, and not one checkpoint since."""
    child = multiprocessing.get_context("spawn").Process(target=_fill_journal, args=(path, size, journal_size))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"the process that should fill the journal ended with code {child.exitcode}")


def _fill_journal(path: Path, size: int, journal_size: int) -> None:
    runner = ClockedRunner()
    tuning = Tuning(keep_free=1 << 50, reserve=0)

    def opened() -> EnginePool:
        return open_pool(path, runner, create=True, name="full", journal_size=journal_size, tuning=tuning)

    pool = opened()
    runner.wait(lambda: pool.create_group("db", iqn="iqn.bench:full", volumes=[NewVolume(size)]))
    runner.wait(pool.close)
    os.truncate(path / "data", journal_size // 24 * UNIT)  # sparse; room for more writes than the journal holds
    pool = opened()
    pool._housekeeper.stop()  # no checkpoint empties it
    number, chance, journal = map_number(pool, "db"), random.Random(1), pool._journal
    while True:
        [(start, length), *_] = pool._space.allocate(_BATCH)
        places = [chance.randrange(size >> UNIT_SHIFT) for _ in range(length)]
        records = [pack_one_write(WRITE_KIND, number, 1, g, start + i, g & 0xFFFFFFFF) for i, g in enumerate(places)]
        if not journal.fits(2 * sum(map(len, records))):  # the pool appends one more, to say what was durable
            break
        journal.append(records)
    answers: list[StoreError | None] = []
    pool.flush(answers.append)
    runner.turn_until(lambda: bool(answers))
    runner.turn_for(_TOLD)
    os._exit(0 if answers == [None] else 1)
