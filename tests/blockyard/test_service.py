"""What a service and its manager say to each other: sockets, ready, alive, stopping."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockyard.service import Notifier, take_sockets
from tests.product import BLOCKYARD, wait_gone

ANSWER_SECONDS = 30.0
# Becomes its arguments after the variables of sd_listen_fds(3): the process id is known only from within.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='a:b'); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(ANSWER_SECONDS)
        yield sock


def test_a_notifier_tells_the_manager(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environment)
    assert notifier.watchdog == 6.0
    notifier.ready("2 pools")
    notifier.alive()
    notifier.stopping()
    assert [manager.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=2 pools", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_a_manager_nothing_is_told(tmp_path: Path) -> None:
    notifier = Notifier({})
    assert notifier.watchdog is None
    notifier.ready("nobody hears it")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("nobody hears it any more")


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "1"}).watchdog is None


def test_sockets_for_another_process_are_not_taken() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2"}
    assert take_sockets(environment) == []
    assert environment == {}


@pytest.mark.slow
def test_serve_takes_its_sockets_and_tells_its_manager(tmp_path: Path, manager: socket.socket) -> None:
    """As blockyard.service does it: a configuration file, the portal and the API's socket handed over."""
    store, api = tmp_path / "store", tmp_path / "api.sock"
    file = tmp_path / "blockyard.toml"
    file.write_text(f'store = "{store}"\ncreate = true\nworkers = 1\npool-size = "64M"\nmap-memory = "32M"\n')
    with socket.create_server(("127.0.0.1", 0)) as portal, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(api))
        unix.listen()
        environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "4000000"}
        command = [sys.executable, "-c", LAUNCH, str(portal.fileno()), str(unix.fileno())]
        command += [sys.executable, str(BLOCKYARD), "serve", "--config", str(file)]
        process = subprocess.Popen(command, env=environment, pass_fds=(portal.fileno(), unix.fileno()))
        try:
            assert _next(manager).startswith(b"READY=1\nSTATUS=1 of 1 pool(s) serving")
            began = time.monotonic()
            assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1"] * 2
            assert time.monotonic() - began < 4
            asked = subprocess.run(
                [BLOCKYARD, "pool", "ls"],
                env={**os.environ, "BLOCKYARD_API": f"unix:{api}"},
                capture_output=True,
                timeout=60,
            )
            assert b"pool-0" in asked.stdout, asked
            socket.create_connection(portal.getsockname(), 5).close()
            process.terminate()
            assert _next(manager) == b"STOPPING=1"
            assert process.wait(20) == 0
        finally:
            process.kill()
            wait_gone(process.pid, 5)
    assert api.exists(), "the file of a socket that was handed over is its giver's"


def _next(manager: socket.socket) -> bytes:
    """What is said next beside signs of life."""
    while (said := manager.recv(200)) == b"WATCHDOG=1":
        pass
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stroe = '/srv'", "unknown key stroe; allowed are store"),
        ("store = ", "is no TOML"),
        ("workers = 1", "--store"),
        ("store = '/srv'\nworkers = 0", "--workers"),
        ("store = '/srv'\ncreate = true", "at least 1 portal"),
        ("store = '/srv'\npool-size = 'big'", "pool-size: "),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "blockyard.toml"
    file.write_text(text.replace("/srv", str(tmp_path / "store")))
    done = subprocess.run([BLOCKYARD, "serve", "--config", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_an_option_goes_before_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "blockyard.toml"
    file.write_text(f"store = '{tmp_path}'\nworkers = 3\nportal = '127.0.0.1:0'\n")
    done = subprocess.run(
        [BLOCKYARD, "serve", "--config", str(file), "--workers", "0"], capture_output=True, text=True, timeout=60
    )
    assert "--workers" in done.stderr


def test_what_root_installs_can_be_read_by_the_targets_user_whatever_its_umask(tmp_path: Path) -> None:
    install = Path(__file__).parents[2] / "tools" / "install"
    command = [str(install), str(tmp_path), "/opt/blockyard", sys.executable, "/bin/true"]  # no pip: only what is ours
    subprocess.run(command, umask=0o077, check=True, timeout=ANSWER_SECONDS)
    paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert (tmp_path / "opt/blockyard/bin/blockyard") in paths
    assert [path for path in paths if path.stat().st_mode & 0o044 != 0o044] == []
