"""A whole target in the test's own thread: real sockets, a real event loop whose clock only the test moves.

``Yard`` holds the loop, a memory pool, its targets and a portal behind a listening socket. ``Host`` is the tests'
initiator; whenever it waits, it lets the loop run until nothing moves any more, so nothing ever sleeps.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from blockstore.api import CachePolicy, ClientRecord, Done, Group, NewVolume
from blockstore.memory import MemoryPool
from target.iscsi.settings import Settings
from target.portal import Handler, Portal, Stream
from target.runner import LoopRunner
from target.targets import Targets
from tests.initiator import Disconnected, Initiator

MIB = 1 << 20
IQN = "iqn.2026-01.example:disk"
HOST = "iqn.2026-01.example:host"
ANYBODY = ClientRecord("any")
IDLE_STEPS = 3
"""Loop iterations without work after which loopback has delivered everything."""


class SteppedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, run one iteration at a time, with a clock that the test moves."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._worked = False
        super().__init__(selectors.SelectSelector())
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        self._worked = True
        return super().call_soon(callback, *args, context=context)

    def _process_events(self, event_list: list[Any]) -> None:
        self._worked = self._worked or bool(event_list)
        super()._process_events(event_list)  # type: ignore[misc]

    def step(self) -> bool:
        """One iteration. False if nothing happened in it."""
        super().call_soon(self.stop)
        self._worked = False
        self.run_forever()
        return self._worked

    def settle(self) -> None:
        """Run until nothing moves; the clock stands still."""
        idle = steps = 0
        while idle < IDLE_STEPS:
            idle = 0 if self.step() else idle + 1
            steps += 1
            assert steps < 100_000, "the loop spins"

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, one after the other."""
        for _ in range(int(seconds)):
            self._now += 1.0
            self.settle()

    def stall(self, seconds: float) -> None:
        """Something holds the loop for ``seconds``; then, as in uvloop, timers that are due come before sockets."""
        self._now += seconds
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        for timer in sorted(timers):
            if not timer.cancelled() and timer.when() <= self._now:
                timer._run()
                timer.cancel()
        self.settle()


class Host(Initiator):
    """The tests' initiator on a stepped loop."""

    def __init__(self, yard: Yard, target: str | None = IQN, **how: Any) -> None:
        self._loop = yard.loop
        super().__init__(yard.address, target, name=how.pop("name", HOST), **how)
        self.sock.setblocking(False)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._loop.settle()
            try:
                part = self.sock.recv(1 << 20)
            except BlockingIOError:
                raise AssertionError("no answer") from None
            if not part:
                raise Disconnected
            self._buffer += part
        return super()._take(count)

    def send(self, header: Any, data: bytes | memoryview = b"") -> None:
        plain, self.sock = self.sock, _Patient(self.sock, self._loop)  # type: ignore[assignment]
        try:
            super().send(header, data)
        finally:
            self.sock = plain

    def log_in(self) -> Host:
        """Log in and take the unit attentions of a new session."""
        self.login()
        while self.run(bytes(6)).status:
            pass
        return self

    def drain(self) -> None:
        """Take the bytes that are there, without looking at them yet."""
        self._loop.settle()
        with suppress(BlockingIOError):
            while part := self.sock.recv(1 << 20):
                self._buffer += part
                self._loop.settle()

    @property
    def silent(self) -> bool:
        """The target has nothing to say, and the connection lives."""
        self._loop.settle()
        try:
            part = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self._buffer
        return False if part else self._fail()

    def _fail(self) -> bool:
        raise Disconnected

    @property
    def dropped(self) -> bool:
        """The target has closed the connection (what it sent before is thrown away)."""
        self._loop.settle()
        try:
            while self.sock.recv(1 << 20):
                self._loop.settle()
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True


class _Patient:
    """A socket whose ``sendall`` lets the loop run while the target's side is full."""

    def __init__(self, sock: socket.socket, loop: SteppedLoop) -> None:
        self._sock = sock
        self._loop = loop

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                self._loop.settle()


class Yard:
    """One pool's targets behind one listening socket. ``barriers`` holds the barriers that ``hold_barriers`` caught."""

    def __init__(self, settings: Settings | None = None, handler: Handler | None = None) -> None:
        self.loop = SteppedLoop()
        self.runner = LoopRunner(self.loop)
        self.pool = MemoryPool(self.runner)
        self.barriers: list[Done] | None = None
        self.targets = Targets(self._barrier)
        self.portal = Portal(self.loop, handler or self.targets, settings)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self.loop.add_reader(self._listener, self._accept)
        self._hosts: list[Host] = []

    def _accept(self) -> None:
        self.portal.adopt(self._listener.accept()[0])

    def _barrier(self, done: Done) -> None:
        if self.barriers is None:
            self.pool.barrier(done)
        else:
            self.barriers.append(done)

    def hold_barriers(self) -> list[Done]:
        """From now on the store does not settle until the test calls what is in the list."""
        self.barriers = []
        return self.barriers

    def group(
        self,
        *sizes: int,
        name: str = "disk",
        clients: Sequence[ClientRecord] = (ANYBODY,),
        cache: CachePolicy = CachePolicy.WRITEBACK,
    ) -> Group:
        volumes = [NewVolume(size) for size in sizes or (MIB,)]
        iqn = f"iqn.2026-01.example:{name}"
        created = self.pool.create_group(name, iqn=iqn, volumes=volumes, clients=clients, cache=cache)
        self.loop.settle()
        self.targets.put(created.result())
        return created.result()

    @contextmanager
    def batch_held(self) -> Iterator[None]:
        """Meanwhile no batch is formed: writes join it and wait."""
        self.pool.commit = lambda: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.pool.commit
            self.pool.commit()

    def watch_writes(self) -> list[Any]:
        """What joins the store's batch from now on, whether or not it is dropped later."""
        joined: list[Any] = []
        join = self.pool.join

        def watched(write: Any) -> None:
            joined.append(write)
            join(write)

        self.pool.join = watched  # type: ignore[method-assign]
        return joined

    def host(self, target: str | None = IQN, **how: Any) -> Host:
        host = Host(self, target, **how)
        self._hosts.append(host)
        return host

    @property
    def streams(self) -> list[Stream]:
        return list(self.portal.streams)

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        self.portal.close("the test is over")
        self.loop.remove_reader(self._listener)
        self._listener.close()
        self.runner.close()
        self.loop.settle()
        self.loop.close()


@contextmanager
def serving(settings: Settings | None = None, handler: Handler | None = None) -> Iterator[Yard]:
    """A yard; afterwards no stream is left and nothing went wrong behind the test's back."""
    yard = Yard(settings, handler)
    try:
        yield yard
    finally:
        yard.close()
    assert not yard.streams
    assert not yard.loop.errors, yard.loop.errors
