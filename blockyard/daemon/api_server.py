"""The API's Unix socket and the HTTP server behind it.

The socket is made here, not by uvicorn, because uvicorn would make it writable for everybody: who can open it rules
the store (mode 0600). The daemon owns the signals, so the server must not take them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from blockyard.errors import Invalid, Locked

BACKLOG = 64


class ApiSocket:
    """A listening Unix socket. ``close`` removes its file, unless somebody else has replaced it."""

    def __init__(self, path: Path) -> None:
        """A file left by a daemon that died is replaced. Raises Locked if a live one answers there, Invalid."""
        self.path = path
        try:
            _remove_stale(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sock = _bind(path)
        except OSError as error:
            raise Invalid(f"API socket {path} cannot be made: {error.strerror or error}") from error
        self._identity = _identity(path)

    def close(self) -> None:
        self.sock.close()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is set by the umask at the moment of bind: a chmod afterwards would leave a moment open.
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Invalid(f"API socket {path} cannot be made: there is a file of that name that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise Locked(f"API socket {path} is served by another daemon: give this one another --api")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


class ApiServer(uvicorn.Server):
    """uvicorn without its signal handlers; ``stop`` ends ``serve``."""

    def __init__(self, app: FastAPI) -> None:
        # The shutdown deadline is short: a long sweep's client must not hold the daemon's end.
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        )

        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
