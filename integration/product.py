"""The product as its user starts it: ``blockyard serve`` in a process of its own, asked by its command line.

Nothing is imported from the product: what these scenarios prove holds for somebody who has only the command.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.guest import HOST_ADDRESS

COMMAND = Path(sys.executable).with_name("blockyard")
START_LIMIT = 30.0  # seconds until the API answers
STOP_LIMIT = 20.0  # seconds; promised by the product for SIGTERM
ANSWER_LIMIT = 60.0  # seconds for one command line


class ProductError(AssertionError):
    """The product did not keep a promise."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command line printed, and its exit code."""

    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        output = "\n".join(part for part in (self.stdout.strip(), self.stderr.strip()) if part)
        return f"`blockyard {' '.join(self.words)}` ended with code {self.code}:\n{output[-4000:]}"


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group that a scenario made."""

    name: str
    iqn: str


class Product:
    """One store with its daemon, on a loopback port that stays the same over restarts."""

    def __init__(self, folder: Path, *, advertise: str | None = HOST_ADDRESS, options: Sequence[str] = ()) -> None:
        """``advertise`` is the address that SendTargets answers; None: the connection's own. ``options``: more of
        serve's."""
        self.folder = folder
        self.store = folder / "store"
        self.log = folder / "serve.log"
        self.port = free_port()
        self.api = f"unix:{folder / 'api'}"
        self._advertise = advertise
        self._options = tuple(options)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._orphans: list[int] = []
        self._names = itertools.count(1)

    @property
    def portal(self) -> str:
        """The portal as a guest reaches it."""
        return f"{HOST_ADDRESS}:{self.port}"

    # Life

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        assert self._daemon is None, "the daemon runs"
        command = [str(COMMAND), "serve", "--create", "--store", str(self.store), "--portal", f"127.0.0.1:{self.port}"]
        command += ["--api", self.api, *self._options]
        if self._advertise is not None:
            command += ["--advertise", f"{self._advertise}:{self.port}"]
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + START_LIMIT
        while True:
            answer = self.ask("group", "ls", "--json")
            if answer.code == 0:
                return
            if self._daemon.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise ProductError(f"the daemon did not become ready: {answer}\nits log:\n{self.log_tail()}")

    def stop(self) -> None:
        """SIGTERM, as a service manager does; the daemon has ``STOP_LIMIT`` seconds and must end with code 0."""
        daemon = self._running()
        workers = self.worker_pids()
        daemon.terminate()
        try:
            code = daemon.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProductError(f"not stopped {STOP_LIMIT} s after SIGTERM; its log:\n{self.log_tail()}") from None
        self._daemon = None
        if code != 0:
            raise ProductError(f"the daemon ended with code {code} after SIGTERM; its log:\n{self.log_tail()}")
        left = [pid for pid in workers if _alive(pid)]
        if left:
            raise ProductError(f"workers {left} are still there after their daemon has stopped")

    def kill(self) -> None:
        """SIGKILL of the daemon alone: its workers must notice by themselves."""
        daemon = self._running()
        self._orphans += self.worker_pids()
        daemon.kill()
        daemon.wait()
        self._daemon = None

    def clean_up(self) -> None:
        """Leave no process behind, whatever the product did."""
        if self._daemon is not None:
            self.kill()
        for pid in self._orphans:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)

    def kill_workers(self) -> None:
        """SIGKILL of every worker, while the daemon lives."""
        workers = self.worker_pids()
        assert workers, "the daemon has no worker"
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    def worker_pids(self) -> list[int]:
        """The daemon's children."""
        return sorted(pid for pid, parent in _parents().items() if parent == self._running().pid)

    def wait_for_other_workers(self, before: list[int]) -> list[int]:
        """Until the daemon has replaced the workers that it had ``before``; returns the new ones."""
        _wait_until(lambda: bool(set(self.worker_pids()) - set(before)), "the daemon to start a new worker")
        return self.worker_pids()

    def wait_until_gone(self, pids: list[int]) -> None:
        """Until these workers, whose daemon was killed, have noticed and ended."""
        _wait_until(lambda: not any(_alive(pid) for pid in pids), f"workers {pids} to end after their daemon died")

    @property
    def running(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    def check(self, *, deep: bool = False) -> None:
        """Prove the (stopped) store whole with the product's own check; ``deep``: every stored block too."""
        assert not self.running, "check wants the store for itself"
        answer = self.ask("check", "--store", str(self.store), "--json", *(["--deep"] if deep else []))
        if answer.code != 0:
            raise ProductError(f"the store is damaged: {answer}")

    def log_tail(self, length: int = 6000) -> str:
        return self.log.read_bytes()[-length:].decode(errors="replace") if self.log.exists() else ""

    # Command line

    def ask(self, *words: str) -> Answer:
        """A command line that may fail."""
        environment = {**os.environ, "BLOCKYARD_API": self.api}
        command = [str(COMMAND), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_LIMIT, env=environment, check=False
        )
        return Answer(words, done.returncode, done.stdout, done.stderr)

    def cli(self, *words: str) -> Any:
        """A command line that must succeed; its answer as JSON (``--json`` is added)."""
        answer = self.ask(*words, "--json")
        if answer.code != 0:
            raise ProductError(str(answer))
        return json.loads(answer.stdout) if answer.stdout.strip() else None

    def create_group(self, *, size: str = "512M", client: str = "any") -> Group:
        """A new group with one volume, LUN 0."""
        name = f"group-{next(self._names)}"
        created = self.cli("group", "create", name, "--size", size, "--client", client)
        return Group(name, created["iqn"])

    def clone(self, group: Group, snapshot: str, name: str) -> Group:
        cloned = self.cli("group", "clone", f"{group.name}@{snapshot}", name)
        return Group(name, cloned["iqn"])

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._daemon is not None, "the daemon does not run"
        return self._daemon


def _wait_until(done: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + STOP_LIMIT
    while not done():
        if time.monotonic() > limit:
            raise ProductError(f"waited {STOP_LIMIT} s in vain for {what}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _parents() -> dict[int, int]:
    """Parent of every process, zombies left out."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # ended meanwhile
            continue
        state, parent = text.rpartition(")")[2].split()[:2]  # proc(5): the name in brackets may hold anything
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def _alive(pid: int) -> bool:
    return pid in _parents()
