"""The composition root: configuration → store lock → workers → portals → API; and everything back in reverse order.

Wiring only. Invariant: it ends within 20 s of SIGTERM: connections that are not handed over at once, workers within
``pool_worker.STOP_SECONDS`` (all at the same time).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from typing import Any

from blockyard import __version__
from blockyard.api.app import make_app
from blockyard.config import Portal, ServeConfig
from blockyard.daemon.api_server import ApiServer, ApiSocket
from blockyard.daemon.directory import YardDirectory
from blockyard.daemon.pool_worker import PoolWorker, spawn_worker
from blockyard.daemon.ready import ready_block
from blockyard.daemon.store import StoreDirectory
from blockyard.errors import Invalid
from blockyard.operations import Operations
from target.front_door import FrontDoor

log = logging.getLogger("blockyard.daemon")

READY_SECONDS = 60.0  # that the ready message waits for pools that are being recovered; logins are answered before


class Yard:
    """One daemon over one store."""

    def __init__(self, config: ServeConfig, store: StoreDirectory, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._loop = loop
        self._ending = asyncio.Event()
        self._listening: list[Portal] = []
        advertise = str(config.advertise) if config.advertise else None
        pings = (config.ping_interval, config.ping_timeout)
        self.pools = {
            name: PoolWorker(name, spawn_worker(name, path, config.pool_size, advertise, pings=pings), loop)
            for name, path in store.pools(config.workers).items()
        }
        directory = YardDirectory(self.pools)
        self._front_door = FrontDoor(loop, directory, directory.hand_over, advertise=advertise)
        self.operations = Operations(self.pools, version=__version__, store=str(store.path), portals=())

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises Invalid, Locked before anything is served."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ending.set)
        api_socket = ApiSocket(self._config.api)
        try:
            self._listen()
            await self._serve(api_socket)
        finally:
            await self._front_door.close()
            api_socket.close()

    def _listen(self) -> None:
        """Open every portal, and note where initiators are told to connect."""
        reachable = []
        for portal in self._config.portals:
            try:
                listener = self._front_door.listen(portal.host, portal.port)
            except OSError as error:
                raise Invalid(f"portal {portal} cannot be opened: {error.strerror or error}") from error
            port = listener.getsockname()[1]
            self._listening.append(Portal(host=portal.host, port=port))
            reachable.append(str(Portal(host=_reachable_host(portal.host), port=port)))
        advertised = self._config.advertise
        self.operations.portals = (str(advertised),) if advertised else tuple(reachable)

    async def _serve(self, api_socket: ApiSocket) -> None:
        server = ApiServer(make_app(self.operations))
        workers = [self._loop.create_task(pool.run()) for pool in self.pools.values()]
        api = self._loop.create_task(server.serve(sockets=[api_socket.sock]))
        announcement = self._loop.create_task(self._announce(server))
        ending = self._loop.create_task(self._ending.wait())
        try:
            await _watch({api, ending, *workers}, until=(api, ending))
            log.info("stopping")
        finally:
            await self._front_door.close()
            announcement.cancel()
            ending.cancel()
            server.stop()
            await asyncio.gather(*(pool.stop() for pool in self.pools.values()))
            await asyncio.gather(api, *workers)
            await asyncio.gather(announcement, ending, return_exceptions=True)
        log.info("stopped")

    async def _announce(self, server: ApiServer) -> None:
        await server.listening.wait()
        await asyncio.gather(*(pool.wait_settled(READY_SECONDS) for pool in self.pools.values()))
        groups = sum(len(pool.groups) for pool in self.pools.values())
        print(ready_block(self._config, self._listening, list(self.pools.values()), groups), flush=True)


async def _watch(tasks: set[asyncio.Task[Any]], *, until: Sequence[asyncio.Task[Any]]) -> None:
    """Until one of ``until`` ends, or any with an exception: that is a defect, and must not leave half a daemon behind.
    The task of a worker whose pool cannot be opened does end: that pool stays failed, the others serve on."""
    while not any(task.done() for task in until):
        ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


def _reachable_host(host: str) -> str:
    """For the wildcard address the one by which this machine reaches the world; a datagram socket that is connected
    sends nothing."""
    if host not in ("0.0.0.0", "::"):
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    somewhere = "2001:db8::1" if ":" in host else "192.0.2.1"  # RFC 3849, RFC 5737: belongs to nobody
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))
        except OSError:  # no route out: this machine only
            return "::1" if ":" in host else "127.0.0.1"
        return str(probe.getsockname()[0])
