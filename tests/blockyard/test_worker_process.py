"""A worker's life, on the test's own loop with a pool in memory: opening, adopting, and the ways to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.api import Corrupt, Locked, Pool, Runner
from blockstore.memory import MemoryPool
from blockyard.daemon.directory import YardDirectory
from blockyard.daemon.pool_worker import PoolWorker
from blockyard.errors import Unavailable
from blockyard.model import ClientSpec, NewGroup, PoolState, VolumeSpec
from blockyard.rpc.calls import CreateGroup, ShowPool, Stop
from blockyard.rpc.channel import Channel, socket_pair
from blockyard.worker import process
from blockyard.worker.process import Worker
from target.front_door import Route
from tests.blockyard.support import HOST_A, FakeProcess, run

Opener = Callable[[Path, str, Runner, int | None], Pool]


def memory(path: Path, name: str, runner: Runner, size: int | None) -> Pool:
    return MemoryPool(runner)


class Served:
    """A daemon's PoolWorker over a real Worker that runs as a task."""

    def __init__(self, opener: Opener = memory) -> None:
        self._opener = opener
        self.loop = asyncio.get_running_loop()
        self.pool = PoolWorker("pool-0", self.spawn, self.loop)
        self.lives: list[asyncio.Task[int]] = []

    async def spawn(self, sock: socket.socket) -> FakeProcess:
        ended = FakeProcess(4711)
        worker = Worker("pool-0", Path("/nowhere"), None, self._opener)
        life = asyncio.create_task(worker.run(sock.dup()))
        life.add_done_callback(lambda done: ended.end(done.result()))
        self.lives.append(life)
        return ended

    async def __aenter__(self) -> Served:
        self.watching = asyncio.create_task(self.pool.run())
        await self.pool.wait_settled(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.stop()
        await self.watching


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        initiator = socket.create_connection(listener.getsockname())
        return initiator, listener.accept()[0]


async def make_group(pool: PoolWorker) -> str:
    asked = NewGroup(name="db", volumes=(VolumeSpec(size=1 << 20),), clients=(ClientSpec(initiator="any"),))
    return (await pool.call(CreateGroup(group=asked, iqn="iqn.2026-01.io.blockyard:db"))).group.iqn


def test_stop_is_answered_when_the_pool_is_closed() -> None:
    async def scenario() -> None:
        async with Served() as served:
            assert served.pool.state is PoolState.SERVING
        assert [life.result() for life in served.lives] == [0]

    run(scenario())


def test_the_daemons_death_ends_the_worker_in_good_order() -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        life = asyncio.create_task(Worker("pool-0", Path("/nowhere"), None, memory).run(theirs))
        await asyncio.sleep(0)
        ours.close()
        assert await life == 0

    run(scenario())


def test_a_worker_that_is_ending_refuses_verbs() -> None:
    async def scenario() -> None:
        async with Served() as served:
            channel = served.pool._channel
            assert isinstance(channel, Channel)
            stopping = asyncio.create_task(channel.call(Stop()))
            await asyncio.sleep(0)  # it is said first
            with pytest.raises(Unavailable, match="stopping"):
                await channel.call(ShowPool())
            await stopping

    run(scenario())


def test_a_connection_for_an_open_pool_is_served_and_for_an_ending_one_closed() -> None:
    async def scenario() -> None:
        async with Served() as served:
            iqn = await make_group(served.pool)
            directory = YardDirectory({"pool-0": served.pool})
            route = directory.route(iqn, HOST_A, "127.0.0.1")
            assert isinstance(route, Route)
            initiator, accepted = tcp_pair()
            directory.hand_over(route.key, accepted, b"", 0)
            await served.pool.call(ShowPool())
            initiator.setblocking(False)
            with pytest.raises(BlockingIOError):  # it waits for a Login Request
                initiator.recv(1)
        assert initiator.recv(1) == b""
        initiator.close()

    run(scenario())


def test_a_damaged_pool_is_reported_and_not_tried_again() -> None:
    def damaged(*_: object) -> Pool:
        raise Corrupt("journal and data contradict each other")

    async def scenario() -> None:
        async with Served(damaged) as served:
            await served.watching
            assert (served.pool.state, len(served.lives)) == (PoolState.FAILED, 1)
            assert served.pool.reason == "cannot open /nowhere: journal and data contradict each other"

    run(scenario())


def test_a_worker_waits_for_the_lock_of_one_that_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOCK_RETRY_SECONDS", 0.001)
    tries = []

    def locked_twice(path: Path, name: str, runner: Runner, size: int | None) -> Pool:
        tries.append(name)
        if len(tries) < 3:
            raise Locked("another process has this pool open")
        return MemoryPool(runner)

    async def scenario() -> None:
        async with Served(locked_twice) as served:
            assert (served.pool.state, len(served.lives), len(tries)) == (PoolState.SERVING, 1, 3)

    run(scenario())


def test_a_pool_that_stays_locked_is_failed_and_stop_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOCK_SECONDS", 0.0)

    def locked(*_: object) -> Pool:
        raise Locked("another process has this pool open")

    async def scenario() -> None:
        async with Served(locked) as served:
            assert (served.pool.state, "open" in (served.pool.reason or "")) == (PoolState.FAILED, True)

    run(scenario())
