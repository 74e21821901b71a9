"""Hosts with the plugin, in front of one target: all simulated but the plugin itself."""

from __future__ import annotations

from blockyard.docker.config import DockerConfig
from blockyard.docker.driver import Driver
from blockyard.docker.service import Plugin
from blockyard.model.attachments import Attachment
from tests.blockyard.hosts.simulated_host import SimulatedHost
from tests.blockyard.hosts.simulated_target import SimulatedTarget

A = "iqn.2026-01.example.blockyard:host-a"
B = "iqn.2026-01.example.blockyard:host-b"
STATE = "/var/lib/blockyard-docker"
LONG = 1000.0  # seconds; longer than every patience


class Node:
    """A host with Docker and the plugin. ``restart`` is a new plugin process on the same host."""

    def __init__(self, target: SimulatedTarget, iqn: str, config: DockerConfig | None = None) -> None:
        self.target = target
        self.iqn = iqn
        self.host = SimulatedHost(target, iqn)
        self.host.start_dockerd()
        self._config = config or DockerConfig()
        self.restart()

    def restart(self) -> None:
        self.target.steps.restart()
        self.restart_only()

    def restart_only(self) -> None:
        """Without giving up a kill that is planned."""
        self.host.clock += 1
        self.plugin = Plugin(self.host, self.target, self.target, self.iqn, self._config)
        self.plugin.upkeep.recover()

    @property
    def driver(self) -> Driver:
        return self.plugin.driver

    def ids(self, volume: str) -> set[str]:
        record = self.plugin.volumes.book.get(volume)
        return set(record.ids) if record else set()

    def later(self, seconds: float = LONG) -> None:
        """Time passes, and a round of upkeep."""
        self.host.clock += seconds
        self.plugin.catalogue.refresh()
        self.plugin.upkeep.check()

    def attachments(self) -> tuple[Attachment, ...]:
        return self.target.attachments(host=self.iqn)

    def write(self, volume: str, name: str, content: bytes) -> None:
        self.host.replace(f"{STATE}/volumes/{volume}/{name}", content)

    def read(self, volume: str, name: str) -> bytes:
        return self.host.read(f"{STATE}/volumes/{volume}/{name}")

    def nothing_is_left(self) -> None:
        assert self.host.left() == []
        assert self.plugin.volumes.book.all() == {}
        assert self.attachments() == ()
