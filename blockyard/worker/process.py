"""The life of a worker: open the pool, stand the targets up, serve, and end in good order.

Not the verbs (``verbs``). It ends when the daemon says ``Stop``, when the channel reaches EOF (the daemon died), or on
SIGTERM; each way it refuses new commands, commits what it has, and releases the pool's lock by exiting. Invariant:
no connection is adopted before the pool is open, or after the end has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blockstore.api import Corrupt, Invalid, Locked, Pool, Runner, StoreError
from blockstore.pool import open_pool
from blockyard.errors import ProductError, Unavailable
from blockyard.model import Value
from blockyard.rpc.calls import Adopt, Call, Nothing, Notice, Opened, OpenFailed, PipeEnd, Stop
from blockyard.rpc.channel import Channel
from blockyard.worker.records import wait_for_store
from blockyard.worker.verbs import Verbs
from target.iscsi.settings import Settings
from target.portal import Portal
from target.runner import LoopRunner
from target.targets import Targets

log = logging.getLogger("blockyard.worker")

LOCK_SECONDS = 20.0  # what an orderly end may take a worker; after it somebody else holds the pool
LOCK_RETRY_SECONDS = 0.25  # guessed: short beside the initiators' own retries of 2 s

Opener = Callable[[Path, str, Runner, int | None], Pool]
"""(directory, name, runner, cap in bytes) → the recovered pool; raises StoreError, OSError."""


def open_store(path: Path, name: str, runner: Runner, size: int | None) -> Pool:
    """The embedded engine's pool; made if there is none yet."""
    return open_pool(path, runner, create=True, name=name, size_limit=size)


class Worker:
    def __init__(
        self,
        name: str,
        path: Path,
        size: int | None,
        opener: Opener = open_store,
        *,
        advertise: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._name = name
        self._path = path
        self._size = size
        self._opener = opener
        self._advertise = advertise
        self._settings = settings
        self._ending = asyncio.Event()
        self._closed = asyncio.Event()
        self._verbs: Verbs | None = None
        self._portal: Portal | None = None

    async def run(self, sock: socket.socket) -> int:
        """Serve until the end; the process's exit code."""
        loop = asyncio.get_running_loop()
        # Ctrl-C reaches the whole process group: the daemon stops its workers in its own order.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        channel = Channel(sock, loop, self)
        runner = LoopRunner(loop)
        try:
            return await self._serve_pool(channel, loop, runner)
        finally:
            self._ending.set()
            runner.close()
            channel.close()

    async def _serve_pool(self, channel: Channel, loop: asyncio.AbstractEventLoop, runner: Runner) -> int:
        try:
            pool = await self._open_pool(runner)
        except (StoreError, OSError) as error:
            reason = f"cannot open {self._path}: {error}"
            log.error("%s", reason)
            channel.notify(OpenFailed(reason=reason, retry=not isinstance(error, Corrupt | Invalid)))
            self._closed.set()
            await channel.drain()
            return 1
        targets = Targets(pool.barrier, advertise=self._advertise)
        self._portal = Portal(loop, targets, self._settings)
        self._verbs = Verbs(self._name, pool, targets, channel.notify)
        channel.notify(Opened(uuid=pool.uuid, groups=self._verbs.project()))
        # What exists now lives as long as the process: no collection need ever look at it.
        gc.collect()
        gc.freeze()
        log.info("pool %s is open with %d group(s)", pool.uuid, len(pool.groups))
        await self._ending.wait()
        return await self._finish(pool, channel)

    async def _open_pool(self, runner: Runner) -> Pool:
        """Wait for the lock a while: the worker of a daemon that was killed still commits and closes.

        Raises StoreError, OSError."""
        deadline = runner.now() + LOCK_SECONDS
        while True:
            try:
                return self._opener(self._path, self._name, runner, self._size)
            except Locked as error:
                if runner.now() >= deadline or self._ending.is_set():
                    raise
                log.info("%s: waiting for it", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOCK_RETRY_SECONDS)

    async def _finish(self, pool: Pool, channel: Channel) -> int:
        assert self._portal is not None
        assert self._verbs is not None
        self._portal.close("the worker is ending")
        await self._verbs.transfers.close()
        try:
            await wait_for_store(pool.close())
        except ProductError as error:
            log.error("the pool did not close in good order: %s", error)
            return 1
        finally:
            # The answer to Stop leaves after the last commit.
            self._closed.set()
            await channel.drain()
        log.info("pool closed")
        return 0

    # --- what the daemon says --------------------------------------------------------------------------------------

    async def serve(self, call: Call[Any]) -> Value:
        if isinstance(call, Stop):
            self._ending.set()
            await self._closed.wait()
            return Nothing()
        if self._verbs is None or self._ending.is_set():
            raise Unavailable(
                f"pool {self._name} is {'stopping' if self._verbs else 'being opened'}: repeat in a moment"
            )
        return await self._verbs.serve(call)

    def notice(self, notice: Notice, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            if isinstance(notice, PipeEnd) and self._verbs is not None and not self._ending.is_set():
                self._verbs.transfers.adopt(notice.pipe, sock)
                continue
            portal = self._portal_of(notice)
            if portal is None or not isinstance(notice, Adopt):
                sock.close()  # the initiator tries again
            else:
                portal.adopt(sock, notice.received, notice.replied)

    def _portal_of(self, notice: Notice) -> Portal | None:
        """What takes the connection now; None: nothing does."""
        if self._verbs is None or self._ending.is_set():
            return None
        paused = isinstance(notice, Adopt) and notice.iqn in self._verbs.paused
        return None if paused else self._portal

    def closed(self) -> None:
        if not self._ending.is_set():
            log.warning("the daemon is gone: ending")
        self._ending.set()
