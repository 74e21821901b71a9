"""The embedded pool on a real loop with real threads: what the stepped tests cannot show is races."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from blockstore.api import CachePolicy, NewVolume, StoreError, Volume
from blockstore.check import check_pool
from blockstore.pool import EnginePool, Tuning, open_pool
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, pattern

GRAINS = 2000


class LoopRunner:
    """api.Runner over the running asyncio loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(3)

    def call_soon(self, function: Callable[[], None]) -> None:
        self._loop.call_soon(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        return self._loop.call_later(seconds, function).cancel

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        def finished(future: Future[object]) -> None:
            self._loop.call_soon_threadsafe(then, future.exception())

        self._threads.submit(work).add_done_callback(finished)

    def now(self) -> float:
        return self._loop.time()


def tuned_pool(path: Path) -> EnginePool:
    tuning = Tuning(grow_step=4 * MIB, keep_free=2 * MIB, reserve=0, map_leaves=1 << 12, unsynced_cap=8 * MIB)
    return open_pool(path, LoopRunner(), create=True, journal_size=256 * KIB, size_limit=48 * MIB, tuning=tuning)


async def work(pool: EnginePool, expected: dict[int, bytes], seed: int) -> None:
    """One host: writes, ragged and whole, flushes and reads its own grains, verifying each."""
    volume, rng = pool.groups["db"].volumes[0], random.Random(seed)
    for i in range(250):
        grain = rng.randrange(GRAINS // 4) * 4 + seed
        content = pattern(seed * 1_000_000 + i)
        await write(volume, grain, content, sync=i % 20 == 0)
        expected[grain] = content
        if i % 50 == 0:
            await answer(volume.flush)
        look = rng.choice(sorted(expected))
        assert await read(volume, look) == expected[look]


async def answer(start: Callable[[Callable[[StoreError | None], None]], None]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    start(lambda error: future.set_exception(error) if error else future.set_result(None))
    await future


async def write(volume: Volume, grain: int, content: bytes, *, sync: bool) -> None:
    await answer(lambda done: volume.write(grain * GRAIN, content, PERMIT, done, sync=sync))


async def read(volume: Volume, grain: int) -> bytes:
    into = bytearray(GRAIN)
    await answer(lambda done: volume.read(grain * GRAIN, memoryview(into), done))
    return bytes(into)


async def keep_house(pool: EnginePool) -> None:
    group = pool.groups["db"]
    for i in range(12):
        await asyncio.wrap_future(group.snapshot(f"s{i}"))
        await asyncio.wrap_future(pool.checkpoint())
        await asyncio.wrap_future(pool.sweep())
        await asyncio.wrap_future(group.delete_snapshot(f"s{i}"))


@pytest.mark.slow
@pytest.mark.parametrize("cache", list(CachePolicy))
def test_hosts_snapshots_checkpoints_and_sweeps_at_once(tmp_path: Path, cache: CachePolicy) -> None:
    expected: list[dict[int, bytes]] = [{} for _ in range(4)]

    async def first_life() -> None:
        pool = tuned_pool(tmp_path / "pool")
        volumes = [NewVolume(GRAINS * GRAIN)]
        await asyncio.wrap_future(pool.create_group("db", iqn="iqn.db", volumes=volumes, cache=cache))
        hosts = [work(pool, content, seed) for seed, content in enumerate(expected)]
        await asyncio.gather(keep_house(pool), *hosts)
        await asyncio.wrap_future(pool.close())

    async def second_life() -> None:
        pool = tuned_pool(tmp_path / "pool")
        volume = pool.groups["db"].volumes[0]
        for grain, content in ((grain, c) for each in expected for grain, c in each.items()):
            assert await read(volume, grain) == content
        await asyncio.wrap_future(pool.close())

    asyncio.run(first_life())
    assert check_pool(tmp_path / "pool", deep=True).findings == ()
    asyncio.run(second_life())
    assert check_pool(tmp_path / "pool", deep=True).findings == ()
