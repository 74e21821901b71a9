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
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from blockyard import __version__
from blockyard.api.app import make_app
from blockyard.api.door import LocalDoor, NetworkDoor
from blockyard.config import Portal, ServeConfig
from blockyard.daemon.api_server import ApiServer, ApiSocket, TlsFiles, TlsSocket
from blockyard.daemon.directory import YardDirectory
from blockyard.daemon.pool_worker import PoolWorker, spawn_worker
from blockyard.daemon.ready import ready_block
from blockyard.daemon.store import StoreDirectory
from blockyard.daemon.watchdog import give_signs_of_life
from blockyard.daemon.yard_database import YardDatabase
from blockyard.errors import Invalid
from blockyard.operations import Operations
from blockyard.service import Notifier
from target.front_door import FrontDoor

log = logging.getLogger("blockyard.daemon")

READY_SECONDS = 60.0  # that the ready message waits for pools that are being recovered; logins are answered before


class Yard:
    """One daemon over one store."""

    def __init__(
        self,
        config: ServeConfig,
        store: StoreDirectory,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """``sockets``: listening already, from a service manager: portals, and a Unix socket for the API."""
        self._config = config
        self._given = tuple(sockets)
        self._loop = loop
        self._notifier = Notifier()
        self._ending = asyncio.Event()
        self._listening: list[Portal] = []
        self._api_over_tls: Portal | None = None
        self._database_path = store.path / "yard.db"
        advertise = str(config.advertise) if config.advertise else None
        self.pools = {
            name: PoolWorker(
                name,
                spawn_worker(name, place.path, config, create=place.create),
                loop,
                path=place.path,
                opened=partial(self._note_served, store, name),
            )
            for name, place in store.pools(config.workers).items()
        }
        directory = YardDirectory(self.pools)
        self._front_door = FrontDoor(loop, directory, directory.hand_over, advertise=advertise)
        self.operations = Operations(self.pools, version=__version__, store=str(store.path), portals=())
        for pool in self.pools.values():
            pool.on_opened = self.operations.moves.wake

    def _note_served(self, store: StoreDirectory, name: str) -> None:
        try:
            store.note_served(name)
        except OSError as error:
            log.warning("that %s is served cannot be noted in %s: %s", name, store.path, error)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises Invalid, Locked before anything is served."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ending.set)
        async with AsyncExitStack() as opened:
            api_socket = self._open_api()
            opened.callback(api_socket.close)
            opened.push_async_callback(self._front_door.close)
            self._listen()
            tls_socket = self._listen_for_api()
            if tls_socket is not None:
                opened.callback(tls_socket.close)
            database = YardDatabase(self._database_path)
            opened.callback(database.close)
            await self._serve(database, api_socket, tls_socket)

    def _listen(self) -> None:
        """Open every portal, and note where initiators are told to connect."""
        reachable = []
        for sock in self._given:
            if sock.family is not socket.AF_UNIX:
                self._front_door.serve(sock)
                host, port = sock.getsockname()[:2]
                self._listening.append(Portal(host=host, port=port))
                reachable.append(str(Portal(host=_reachable_host(host), port=port)))
        if not self._config.portals and not reachable:
            raise Invalid("there must be at least 1 portal: --portal HOST:PORT, or a socket of the service manager")
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

    def _open_api(self) -> ApiSocket:
        """Of several Unix sockets that were given the first one."""
        given = next((sock for sock in self._given if sock.family is socket.AF_UNIX), None)
        return ApiSocket(self._config.api, given)

    def _listen_for_api(self) -> TlsSocket | None:
        where, certificate, key = self._config.api_listen, self._config.tls_cert, self._config.tls_key
        if where is None or certificate is None or key is None:
            return None
        opened = TlsSocket(where.host, where.port, TlsFiles(certificate, key))
        self._api_over_tls = Portal(host=where.host, port=opened.port)
        return opened

    async def _serve(self, database: YardDatabase, api_socket: ApiSocket, tls_socket: TlsSocket | None) -> None:
        app = make_app(self.operations, database)
        servers = [(ApiServer(LocalDoor(app, database)), api_socket.sock)]
        if tls_socket is not None:
            servers.append((ApiServer(NetworkDoor(app, database), tls_socket.files), tls_socket.sock))
        workers = [self._loop.create_task(pool.run()) for pool in self.pools.values()]
        apis = [self._loop.create_task(server.serve(sockets=[sock])) for server, sock in servers]
        announcement = self._loop.create_task(self._announce([server for server, _ in servers]))
        signs = self._loop.create_task(give_signs_of_life(self._notifier, self.pools.values()))
        ending = self._loop.create_task(self._ending.wait())
        moves = self._loop.create_task(self.operations.moves.run())
        try:
            await _watch({*apis, ending, moves, *workers}, until=(*apis, ending))
            log.info("stopping")
        finally:
            self._notifier.stopping()
            await self._front_door.close()
            for task in (announcement, ending, signs, moves):
                task.cancel()
            await self.operations.moves.close()
            for server, _ in servers:
                server.stop()
            await asyncio.gather(*(pool.stop() for pool in self.pools.values()))
            await asyncio.gather(*apis, *workers)
            await asyncio.gather(announcement, ending, signs, moves, return_exceptions=True)
        log.info("stopped")

    async def _announce(self, servers: Sequence[ApiServer]) -> None:
        await asyncio.gather(*(server.listening.wait() for server in servers))
        await asyncio.gather(*(pool.wait_settled(READY_SECONDS) for pool in self.pools.values()))
        groups = sum(len(pool.groups) for pool in self.pools.values())
        pools = list(self.pools.values())
        serving = sum(pool.serving for pool in pools)
        self._notifier.ready(f"{serving} of {len(pools)} pool(s) serving, {groups} group(s)")
        print(ready_block(self._config, self._listening, pools, groups, self._api_over_tls), flush=True)


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
