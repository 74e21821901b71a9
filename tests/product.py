"""The product as a user runs it: ``blockyard serve`` in a process of its own, spoken to through the CLI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCKYARD = Path(sys.executable).with_name("blockyard")
READY_SECONDS = 30.0
STOP_SECONDS = 20.0
"""What SIGTERM may take; longer is a defect."""


class Refused(subprocess.CalledProcessError):
    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr}"


class Product:
    """A daemon with a store in ``folder``. As a context manager it runs inside the ``with``."""

    def __init__(self, folder: Path, *options: str, launcher: Sequence[str] = (str(BLOCKYARD),)) -> None:
        """``launcher``: what is run with ``serve`` and its options."""
        self.store = folder / "store"
        self.api = f"unix:{folder / 'api.sock'}"
        self.log = folder / "daemon.log"
        self.port = free_port()
        self._options = options
        self._launcher = launcher
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def daemon(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Product:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the API answers and every worker serves."""
        where = ["--portal", f"127.0.0.1:{self.port}", "--api", self.api]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._launcher, "serve", "--create", "--store", str(self.store), *where, *self._options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + READY_SECONDS
        while self.try_cli("group", "ls") is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not come up:\n{self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutExpired if it takes longer than promised."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_SECONDS)
        self._process = None
        return code

    def kill(self) -> None:
        """SIGKILL of the daemon; its workers end by themselves."""
        workers = self.workers()
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        for pid in workers:
            wait_gone(pid, STOP_SECONDS)

    def workers(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def pids(self) -> list[int]:
        return [self.daemon, *self.workers()]

    def cli(self, *arguments: str) -> Any:
        """Run a verb with ``--json``; returns what it printed. Raises CalledProcessError with its message."""
        done = subprocess.run(
            [BLOCKYARD, *arguments, "--json"],
            env={**os.environ, "BLOCKYARD_API": self.api},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise Refused(done.returncode, done.args, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def try_cli(self, *arguments: str) -> Any | None:
        try:
            return self.cli(*arguments)
        except subprocess.CalledProcessError:
            return None

    def create_group(self, name: str, size: int, *options: str) -> str:
        """Open to every initiator unless ``options`` name clients; returns the IQN."""
        clients = [] if "--client" in options else ["--client", "any"]
        return str(self.cli("group", "create", name, "--size", str(size), *clients, *options)["iqn"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_gone(pid: int, seconds: float) -> None:
    """Until the process ``pid`` has ended (or is a zombie that its parent will reap)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.02)
    raise TimeoutError(f"process {pid} still runs after {seconds} s")
