"""One pool as the daemon sees it: its worker process, kept alive, and a projection of its groups.

The worker is the authority; what is kept here (``groups``) is what it reported last, and stays while it is down, so
that its targets are answered "try again" and not "unknown". Invariants: there is at most one worker process at a
time; ``groups`` and ``uuid`` change only by its notices; a socket that cannot be handed over is closed, so that the
initiator tries again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

from blockyard.config import ServeConfig
from blockyard.daemon.backoff import Backoff
from blockyard.errors import Invalid, ProductError, Unavailable
from blockyard.model import Group, PoolState, Value
from blockyard.rpc.calls import (
    Adopt,
    ArrivalBegun,
    ArrivalEnded,
    Call,
    GroupChanged,
    GroupRemoved,
    Notice,
    Opened,
    OpenFailed,
    PipeEnd,
    ShowPool,
    Stop,
)
from blockyard.rpc.channel import Channel, socket_pair
from blockyard.rpc.pipe import Pipe, open_pipe

log = logging.getLogger("blockyard.daemon")

R = TypeVar("R", bound=Value)

STOP_SECONDS = 15.0  # for commit and close after Stop; the promise is 20 s for the whole daemon
KILL_SECONDS = 2.0  # for the process to end after that; then it is killed, which costs no acknowledged write
EXIT_SECONDS = (
    20.0  # while the daemon goes on: a worker without channel that still runs then is killed, for it holds the lock
)
ASK_SECONDS = 5.0  # between two questions whether a worker still lives; guessed
# Of silence until a worker counts as hung and is killed; guessed. Linux gives sessions up after about 10 s of it, and a
# kill costs no acknowledged write.
SILENCE_SECONDS = 20.0


class Process(Protocol):
    """What is used of ``asyncio.subprocess.Process``."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...
    def kill(self) -> None: ...


Spawn = Callable[[socket.socket], Awaitable[Process]]
"""Start a worker that has this end of the channel. The caller closes its own copy afterwards."""


def spawn_worker(name: str, path: Path, config: ServeConfig, *, create: bool) -> Spawn:
    """The real one: an exec'ed Python process; only stderr and its end of the channel are inherited."""
    command = [sys.executable, "-m", "blockyard.worker", "--pool", name, "--path", str(path)]
    command += ["--ping-interval", str(config.ping_interval), "--ping-timeout", str(config.ping_timeout)]
    if create:
        command += ["--create"]
    if config.pool_size is not None:
        command += ["--pool-size", str(config.pool_size)]
    if config.map_memory is not None:
        command += ["--map-memory", str(config.map_memory)]
    if not config.private_frees:
        command += ["--no-private-frees"]
    if config.advertise is not None:
        command += ["--advertise", str(config.advertise)]

    async def spawn(channel: socket.socket) -> Process:
        return await asyncio.create_subprocess_exec(
            *command, "--fd", str(channel.fileno()), pass_fds=[channel.fileno()], stdin=asyncio.subprocess.DEVNULL
        )

    return spawn


class PoolWorker:
    """``opened`` is called when the worker has opened its pool for the first time."""

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        loop: asyncio.AbstractEventLoop,
        *,
        path: Path | None = None,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.path = path
        self.state = PoolState.STARTING
        self.reason: str | None = None
        self.uuid: UUID | None = None
        self.groups: dict[str, Group] = {}
        self.arrivals: dict[UUID, str] = {}
        """Groups that are on their way into the pool, by UUID: their names."""
        self.on_opened: Callable[[], None] = lambda: None
        """Called when it is known anew what the pool holds."""
        self.reported = False
        """Whether ``groups`` is known: it has been open since the daemon started."""
        self.pid: int | None = None
        self.restarts = 0
        self._spawn = spawn
        self._opened = opened
        self._loop = loop
        self._channel: Channel | None = None
        self._backoff = Backoff()
        self._stopping = asyncio.Event()
        self._channel_closed = asyncio.Event()
        self._settled = asyncio.Event()
        self._retry = True
        self._pipes = 0
        self._opening = True
        """The worker has not said yet whether it could open its pool."""

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a worker alive until ``stop``, or until its pool cannot be opened for good."""
        while not self._stopping.is_set():
            self._backoff.started(self._loop.time())
            await self._live()
            if self._stopping.is_set() or not self._retry:
                return
            await self._wait_before_restart(self._backoff.died(self._loop.time()))
            self.restarts += 1

    async def _live(self) -> None:
        """One worker process, from start to exit."""
        ours, theirs = socket_pair()
        self._channel_closed.clear()
        self._retry, self._opening = True, True
        channel = self._channel = Channel(ours, self._loop, self)
        try:
            process = await self._spawn(theirs)
        except OSError as error:
            self._fail(f"cannot start a worker: {error}", retry=True)
            channel.close()
            return
        finally:
            theirs.close()
        self.pid = process.pid
        try:
            await self._wait_for_close(process, channel)
            await self._wait_for_exit(process)
        finally:
            channel.close()
            self.pid = None

    async def _wait_for_close(self, process: Process, channel: Channel) -> None:
        """Until the worker's end of the channel is closed, which tells of its death. Of a worker that hangs nothing
        tells, so it is asked, and killed when it does not answer."""
        while not self._channel_closed.is_set():
            try:
                await asyncio.wait_for(self._channel_closed.wait(), ASK_SECONDS)
            except TimeoutError:
                if self.serving and not await _answers(channel):
                    log.error("worker of %s (process %d) is silent for %g s: killed",
                              self.name, process.pid, SILENCE_SECONDS)  # fmt: skip
                    process.kill()
                    await self._channel_closed.wait()

    async def _wait_for_exit(self, process: Process) -> None:
        # Its exit releases the pool's lock.
        try:
            patience = KILL_SECONDS if self._stopping.is_set() else EXIT_SECONDS
            code = await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            log.error("worker of %s (process %d) does not end: killed", self.name, process.pid)
            process.kill()
            code = await process.wait()
        if not self._stopping.is_set():
            log.warning("worker of %s (process %d) ended with code %d", self.name, process.pid, code)
            if self._opening and self.restarts:
                self._fail(
                    f"its worker ended with code {code} before the pool was open, again; see the log", retry=True
                )

    async def _wait_before_restart(self, seconds: float) -> None:
        if not seconds:
            return
        log.warning("worker of %s is started again in %g s", self.name, seconds)
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def stop(self) -> None:
        """Let the worker commit and end. Its process is gone when ``run`` returns."""
        self._stopping.set()
        channel = self._channel
        if channel is not None and channel.open:
            try:
                await channel.call(Stop(), seconds=STOP_SECONDS)
            except ProductError as error:
                log.warning("worker of %s did not stop in good order: %s", self.name, error)
            channel.close()
        self._become(PoolState.STOPPED, None)

    # --- what the worker says --------------------------------------------------------------------------------------

    async def serve(self, call: Call[Any]) -> Value:
        raise Invalid(f"a worker calls {type(call).__name__}; daemons answer no calls")

    def notice(self, notice: Notice, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            sock.close()  # workers hand nothing back
        if isinstance(notice, Opened | OpenFailed):
            self._opening = False
        if isinstance(notice, Opened):
            if not self.reported:
                self._opened()
            self.uuid, self.reported = notice.uuid, True
            self.groups = {group.name: group for group in notice.groups}
            self.arrivals = {each.group: each.name for each in notice.arrivals}
            self._become(PoolState.SERVING, None)
            self.on_opened()
            log.info("%s is served by process %s: %d group(s)", self.name, self.pid, len(self.groups))
        elif isinstance(notice, OpenFailed):
            self._fail(notice.reason, retry=notice.retry)
        elif isinstance(notice, GroupChanged):
            self.groups[notice.group.name] = notice.group
        elif isinstance(notice, GroupRemoved):
            self.groups.pop(notice.name, None)
        elif isinstance(notice, ArrivalBegun):
            self.arrivals[notice.arrival.group] = notice.arrival.name
        elif isinstance(notice, ArrivalEnded):
            self.arrivals.pop(notice.group, None)

    def closed(self) -> None:
        self._channel_closed.set()
        if self.state is PoolState.FAILED or self._stopping.is_set():
            return
        self._become(PoolState.RESTARTING, "its worker ended and is started again")

    def _fail(self, reason: str, *, retry: bool) -> None:
        if self.state is not PoolState.FAILED or self.reason != reason:
            log.error("%s failed: %s", self.name, reason)
        self._retry = retry
        self._become(PoolState.FAILED, reason)

    def _become(self, state: PoolState, reason: str | None) -> None:
        self.state, self.reason = state, reason
        if state in (PoolState.STARTING, PoolState.RESTARTING):
            self._settled.clear()
        else:
            self._settled.set()

    # --- what the daemon wants of it -------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        return self.state is PoolState.SERVING and self._channel is not None and self._channel.open

    async def wait_settled(self, seconds: float) -> None:
        """Wait, at most so long, while its worker is starting."""
        try:
            await asyncio.wait_for(self._settled.wait(), seconds)
        except TimeoutError:
            return

    async def call(self, call: Call[R], *, seconds: float | None = 60) -> R:
        """Raises Unavailable if it is not served, and what the worker raises."""
        if not self.serving or self._channel is None:
            why = f": {self.reason}" if self.reason else ""
            raise Unavailable(f"pool {self.name} is {self.state}{why}")
        return await self._channel.call(call, seconds=seconds)

    async def answers(self) -> bool:
        """Whether its worker says anything within the time; one that does not serve need not."""
        return not self.serving or self._channel is None or await _answers(self._channel)

    async def open_pipe(self) -> Pipe:
        """A pipe whose other end the worker has; the call that uses it comes next. Raises Unavailable."""
        ours, theirs = socket.socketpair()
        self._pipes += 1
        channel = self._channel
        if channel is None or not self.serving or not channel.notify(PipeEnd(pipe=self._pipes), [theirs]):
            ours.close()
            theirs.close()
            raise Unavailable(f"pool {self.name} is {self.state}")
        return await open_pipe(self._pipes, ours)

    def hand_over(self, iqn: str, sock: socket.socket, received: bytes, replied: int) -> None:
        """Give a connection to the worker, and keep no copy of its socket."""
        channel = self._channel
        if channel is None or not self.serving:
            sock.close()
            return
        if not channel.notify(Adopt(iqn=iqn, received=received, replied=replied), [sock]):
            log.warning("a connection to %s was closed: the worker of %s does not take it", iqn, self.name)


async def _answers(channel: Channel) -> bool:
    """Whether the worker says anything within the time; a refusal, or its end, is an answer too."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await channel.call(ShowPool(), seconds=None)
    except TimeoutError:
        return False
    except ProductError:
        return True
    return True
