"""A yard without disks and processes: pools in memory, workers that are objects on the test's own loop.

The channel, the verbs, the supervision and the REST API are the real ones; what is imitated is a process
(``FakeProcess``), the engine (the store's own ``MemoryPool``) and the targets (``FakeTargets``: a list of sessions).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from blockstore.api import Group
from blockstore.memory import MemoryPool
from blockyard.api.app import make_app
from blockyard.api.door import LocalDoor
from blockyard.daemon.api_server import ApiServer, ApiSocket
from blockyard.daemon.pool_worker import PoolWorker
from blockyard.daemon.yard_database import YardDatabase
from blockyard.errors import Unavailable
from blockyard.model import Value
from blockyard.operations import Operations
from blockyard.rpc.calls import Adopt, Call, Nothing, Notice, Opened, OpenFailed, Stop
from blockyard.rpc.channel import Channel
from blockyard.worker.verbs import Verbs
from target.runner import LoopRunner

T = TypeVar("T")

HOST_A = "iqn.2004-10.com.example:host-a"
HOST_B = "iqn.2004-10.com.example:host-b"
SECRET = "correct horse 1234"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; a hang is a failure, not a pause."""

    async def limited() -> T:
        async with asyncio.timeout(10):
            return await coroutine

    return asyncio.run(limited())


@dataclass
class FakeSession:
    target: str
    initiator: str = HOST_A
    initiator_alias: str = "host-a"
    isid: str = "00023d000001"
    tsih: int = 1
    address: str = "192.0.2.7:4711"
    connected: float = 1_700_000_000.0
    auth: str = "none"
    digests: str = "none"
    commands: int = 3
    read_bytes: int = 4096
    write_bytes: int = 0


@dataclass
class FakeTargets:
    shown: dict[str, Group] = field(default_factory=dict)
    open: list[FakeSession] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    fences: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """What was fenced: the target, and the hosts that were let alone."""
    heard: dict[str, float] = field(default_factory=dict)
    """By host: when it was seen last."""

    def put(self, group: Group) -> None:
        self.shown[group.record.iqn] = group

    async def remove(self, iqn: str) -> None:
        self.removed.append(iqn)
        self.shown.pop(iqn, None)
        self.open = [session for session in self.open if session.target != iqn]

    def sessions(self) -> Sequence[FakeSession]:
        return self.open

    @contextmanager
    def fenced(self, iqn: str, keep: Collection[str]) -> Iterator[None]:
        self.fences.append((iqn, tuple(keep)))
        try:
            yield
        finally:
            self.open = [each for each in self.open if each.target != iqn or each.initiator in keep]

    def seen(self, iqn: str, host: str) -> float | None:
        return self.heard.get(host)


class FakeProcess:
    """Ends when it is told to. ``killed`` is what a kill takes with it."""

    def __init__(self, pid: int, killed: Callable[[], object] = lambda: None) -> None:
        self.pid = pid
        self._killed = killed
        self._ended = asyncio.Event()
        self._code = 0

    def end(self, code: int = 0) -> None:
        self._code = code
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return self._code

    def kill(self) -> None:
        self.end(-9)
        self._killed()


class MemoryWorker:
    """A worker on the test's loop. Its pool outlives it, as a directory would; ``die`` is a kill -9."""

    def __init__(self, name: str, pool: MemoryPool, failing: OpenFailed | None = None) -> None:
        self.name = name
        self.pool = pool
        self.failing = failing
        self.targets = FakeTargets()
        self.adopted: list[tuple[str, socket.socket, bytes, int]] = []
        self.starts = 0
        self.silent = False
        """Never opens its pool: recovery takes long."""
        self.crashing = False
        """Dies while it opens its pool."""
        self.hung = False
        """Answers nothing any more, until it is killed."""
        self.process: FakeProcess | None = None
        self._channel: Channel | None = None
        self._verbs: Verbs | None = None

    async def spawn(self, sock: socket.socket) -> FakeProcess:
        self.starts += 1
        self.hung = False
        self.process = FakeProcess(1000 + self.starts, self._killed)
        self._channel = channel = Channel(sock.dup(), asyncio.get_running_loop(), self)
        self._verbs = None
        if self.failing is not None:
            channel.notify(self.failing)
            await channel.drain()
            self.die(1)
        elif self.crashing:
            self.die(1)
        elif not self.silent:
            self.open()
        return self.process

    def open(self) -> None:
        assert self._channel is not None
        self._verbs = Verbs(self.name, self.pool, self.targets, self._channel.notify)
        self._channel.notify(Opened(uuid=self.pool.uuid, groups=self._verbs.project()))

    def die(self, code: int = -9) -> None:
        assert self._channel is not None
        assert self.process is not None
        self._channel.close()
        self.process.end(code)

    def _killed(self) -> None:
        assert self._channel is not None
        self._channel.close()

    async def serve(self, call: Call[Any]) -> Value:
        if isinstance(call, Stop):
            asyncio.get_running_loop().call_soon(self.process.end)  # type: ignore[union-attr]
            return Nothing()
        if self.hung:
            await asyncio.Event().wait()
        if self._verbs is None:
            raise Unavailable(f"pool {self.name} is being opened")
        return await self._verbs.serve(call)

    def notice(self, notice: Notice, sockets: Sequence[socket.socket]) -> None:
        assert isinstance(notice, Adopt)
        self.adopted += [(notice.iqn, sock, notice.received, notice.replied) for sock in sockets]

    def closed(self) -> None:
        pass


class MemoryYard:
    """Operations over pools in memory, on the running loop."""

    def __init__(self, *names: str) -> None:
        loop = asyncio.get_running_loop()
        self.runner = LoopRunner(loop)
        self.workers = {name: MemoryWorker(name, MemoryPool(self.runner)) for name in names or ("pool-0",)}
        self.pools = {name: PoolWorker(name, worker.spawn, loop) for name, worker in self.workers.items()}
        self.operations = Operations(self.pools, version="1.2.3", store="/srv/store", portals=["192.0.2.1:3260"])
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def worker(self) -> MemoryWorker:
        return self.workers["pool-0"]

    @property
    def pool(self) -> PoolWorker:
        return self.pools["pool-0"]

    async def __aenter__(self) -> MemoryYard:
        self._tasks = [asyncio.create_task(pool.run()) for pool in self.pools.values()]
        if not any(worker.silent for worker in self.workers.values()):
            await asyncio.gather(*(pool.wait_settled(5) for pool in self.pools.values()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(pool.stop() for pool in self.pools.values()))
        for worker in self.workers.values():
            if worker.process is not None:
                worker.process.end()
        await asyncio.gather(*self._tasks)
        self.runner.close()


@contextmanager
def served_yard(path: Path) -> Iterator[MemoryYard]:
    """A yard whose REST API listens at ``path``, on a loop in a thread of its own."""
    started = threading.Event()
    found: list[tuple[MemoryYard, asyncio.Event, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        ending = asyncio.Event()
        api_socket = ApiSocket(path)
        async with MemoryYard() as yard:
            book = YardDatabase(path.with_name("yard.db"))
            server = ApiServer(LocalDoor(make_app(yard.operations, book), book))
            serving = asyncio.create_task(server.serve(sockets=[api_socket.sock]))
            await server.listening.wait()
            found.append((yard, ending, asyncio.get_running_loop()))
            started.set()
            await ending.wait()
            server.stop()
            await serving
            book.close()
        api_socket.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10), "the yard did not start"
    yard, ending, loop = found[0]
    try:
        yield yard
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
