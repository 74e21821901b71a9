"""The protocol as Docker speaks it, over a Unix socket."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockyard.docker.server import make_app
from blockyard.docker.service import PluginServer, listen
from blockyard.errors import Invalid
from tests.blockyard.docker.world import STATE, A, Node
from tests.blockyard.hosts.simulated_target import SimulatedTarget

DOCKERS_TYPE = "application/vnd.docker.plugins.v1.2+json"


class Docker:
    """A plugin's server in a thread, and what asks it."""

    def __init__(self, path: Path) -> None:
        self.node = Node(SimulatedTarget(), A)
        self.server = PluginServer(make_app(self.node.driver))
        sock = listen(path)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[sock])))
        self._thread.start()
        limits = httpx.Limits(max_connections=None)
        transport = httpx.HTTPTransport(uds=str(path), limits=limits)
        self.http = httpx.Client(transport=transport, base_url="http://plugin.moby.localhost", timeout=30)

    def stop(self) -> None:
        self.http.close()
        self.server.stop()
        self._thread.join(15)

    def ask(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        answer = self.http.post(f"/{verb}", content=content, headers={"Content-Type": DOCKERS_TYPE})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == DOCKERS_TYPE
        said = answer.json()
        assert isinstance(said, dict)
        return said

    def volume(self, verb: str, **body: Any) -> dict[str, Any]:
        return self.ask(f"VolumeDriver.{verb}", body)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    plugin = Docker(tmp_path / "plugins" / "blockyard.sock")
    yield plugin
    plugin.stop()


def test_the_socket_is_roots_alone_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "blockyard.sock"
    listen(path).close()
    listen(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "file").write_text("not a socket")
    with pytest.raises(Invalid, match="is no socket"):
        listen(tmp_path / "file")


def test_activation_and_capabilities_need_no_body(docker: Docker) -> None:
    assert docker.ask("Plugin.Activate")["Implements"] == ["VolumeDriver"]
    assert docker.ask("VolumeDriver.Capabilities", {})["Capabilities"] == {"Scope": "global"}


def test_a_volume_lives_as_docker_asks_for_it(docker: Docker) -> None:
    folder = f"{STATE}/volumes/db"
    assert "no such volume" in docker.volume("Get", Name="db")["Err"]
    assert docker.volume("Create", Name="db", Opts={"size": "1G"}) == {"Err": ""}
    assert docker.volume("Get", Name="db")["Volume"]["Mountpoint"] == ""
    assert docker.volume("Mount", Name="db", ID="abc") == {"Mountpoint": folder, "Err": ""}
    assert docker.volume("Path", Name="db") == {"Mountpoint": folder, "Err": ""}
    assert docker.volume("List")["Volumes"] == [{"Name": "db", "Mountpoint": folder}]
    assert "mounted" in docker.volume("Remove", Name="db")["Err"]
    assert docker.volume("Unmount", Name="db", ID="abc") == {"Err": ""}
    assert docker.volume("Remove", Name="db") == {"Err": ""}
    assert docker.ask("VolumeDriver.List")["Volumes"] == []


@pytest.mark.parametrize("options", [None, {}])
def test_create_takes_no_options_in_every_form(docker: Docker, options: dict[str, str] | None) -> None:
    assert docker.volume("Create", Name="db", Opts=options) == {"Err": ""}


def test_what_is_no_request_is_told_so(docker: Docker) -> None:
    for content, message in ((b"{", "no JSON"), (b"[]", "an object"), (b"{}", "Name=None"), (b'{"Name": 3}', "Name=3")):
        said = docker.http.post("/VolumeDriver.Get", content=content).json()
        assert message in said["Err"]
    assert "Opts=" in docker.volume("Create", Name="db", Opts=[1])["Err"]


def test_a_defect_is_an_answer_too(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker.node.driver, "list", lambda: 1 / 0)
    assert "the log" in docker.volume("List")["Err"]


def test_lists_are_answered_while_mounts_hang(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    """More mounts than there are threads for them."""
    docker.volume("Create", Name="db")
    ending = threading.Event()
    monkeypatch.setattr(docker.node.driver, "mount", lambda name, each: str(ending.wait(30)))
    mounts = [
        threading.Thread(target=docker.volume, args=("Mount",), kwargs={"Name": "db", "ID": str(number)})
        for number in range(60)
    ]
    for mount in mounts:
        mount.start()
    try:
        assert docker.volume("List")["Volumes"][0]["Name"] == "db"
        assert docker.volume("Get", Name="db")["Volume"]["Name"] == "db"
        assert docker.volume("Path", Name="db")["Err"] == ""
    finally:
        ending.set()
        for mount in mounts:
            mount.join()
