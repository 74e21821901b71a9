"""The plugin as a process: everything put together, its socket, its end.

Wiring only. Volumes stay mounted when it ends: containers go on without it, and the next one finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from blockyard.client import BlockyardClient
from blockyard.docker.book import Book
from blockyard.docker.catalogue import Catalogue
from blockyard.docker.config import DockerConfig, read_initiator_name
from blockyard.docker.driver import Driver
from blockyard.docker.server import make_app
from blockyard.docker.upkeep import Upkeep
from blockyard.docker.volumes import Volumes
from blockyard.errors import Invalid
from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Host, LinuxHost
from blockyard.hosts.initiator import Initiator
from blockyard.service import Notifier, take_sockets

log = logging.getLogger("blockyard.docker")

BACKLOG = 128
API_SECONDS = 30.0  # for one verb of the target; Docker gives a mount 120
GLANCE_SECONDS = 5.0  # for what only refreshes what is known


class Plugin:
    """The parts of one plugin, over any host and any target."""

    def __init__(self, host: Host, api: HostApi, glance: HostApi, iqn: str, config: DockerConfig) -> None:
        """``glance``: the same target, asked with less patience."""
        initiator = Initiator(host, config.timing)
        book = Book(host, str(config.state / "state.json"))
        catalogue = Catalogue(host, glance, str(config.state / "volumes.json"))
        self.catalogue = catalogue
        self.volumes = Volumes(host, api, iqn, initiator, book, catalogue, config)
        self.upkeep = Upkeep(host, initiator, self.volumes, catalogue)
        self.driver = Driver(
            host, api, iqn, self.volumes, catalogue, default_size=config.default_size, default_fs=config.default_fs
        )


def connect(config: DockerConfig, seconds: float) -> BlockyardClient:
    """Raises Invalid."""
    token = None
    if config.token_file is not None:
        try:
            token = config.token_file.read_text().strip()
        except OSError as error:
            raise Invalid(f"token file {config.token_file} cannot be read: {error.strerror or error}") from error
    return BlockyardClient(config.api, token=token, authority=config.ca_file, seconds=seconds)


async def serve(config: DockerConfig) -> None:
    """Until SIGTERM or SIGINT. Raises Invalid."""
    notifier, sockets = Notifier(), take_sockets() or [listen(config.socket)]
    iqn = read_initiator_name(config.initiator_name_file)
    with connect(config, API_SECONDS) as api, connect(config, GLANCE_SECONDS) as glance:
        plugin = Plugin(LinuxHost(), api, glance, iqn, config)
        await asyncio.to_thread(plugin.upkeep.recover)
        plugin.upkeep.start()
        server = PluginServer(make_app(plugin.driver))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        sign_of_life = loop.create_task(_prove_life(notifier, plugin.upkeep))
        notifier.ready(f"{len(plugin.volumes.book.all())} volumes in use, target {config.api}")
        log.info("serving for host %s, target %s", iqn, config.api)
        try:
            await server.serve(sockets=sockets)
        finally:
            notifier.stopping()
            sign_of_life.cancel()
            plugin.upkeep.stop()
    log.info("stopped")


async def _prove_life(notifier: Notifier, upkeep: Upkeep) -> None:
    """While the loop runs and upkeep's rounds come round."""
    while notifier.watchdog is not None:
        if upkeep.turning:
            notifier.alive()
        await asyncio.sleep(notifier.watchdog / 3)


class PluginServer(uvicorn.Server):
    """uvicorn without its signal handlers. A mount under way may end; its answer is worth a few seconds."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=10)
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def listen(path: Path) -> socket.socket:
    """Docker is root, and nobody else has a say."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise Invalid(f"{path} is no socket: remove it, or give the plugin another one")
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Invalid(f"socket {path} cannot be made: {error.strerror or error}") from error
    return sock
