"""The API's sockets and the HTTP servers behind them: the Unix socket, and one that speaks TLS.

The socket is made here, not by uvicorn, because uvicorn would make it writable for everybody: who can open it rules
the store (mode 0600). The daemon owns the signals, so the server must not take them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from blockyard.errors import Invalid, Locked

BACKLOG = 64
HEAD_SECONDS = 10.0  # that the head of a request may take over the network; guessed, as long as a login may
MAX_CONNECTIONS = 256  # over the network, at a time; guessed: hosts of a yard, with some requests each


class ApiSocket:
    """A listening Unix socket. ``close`` removes its file, unless somebody else has replaced it, or has given it."""

    def __init__(self, path: Path, given: socket.socket | None = None) -> None:
        """A file left by a daemon that died is replaced. ``given``: a socket that listens already, whose file is the
        giver's. Raises Locked if a live one answers there, Invalid."""
        self.path = path
        self._identity: tuple[int, int] | None = None
        if given is not None:
            self.sock = given
            return
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
            if self._identity is not None and _identity(self.path) == self._identity:
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


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM: the certificate with its chain, and its key."""

    certificate: Path
    key: Path


class TlsSocket:
    """A listening TCP socket whose connections will speak TLS."""

    def __init__(self, host: str, port: int, files: TlsFiles) -> None:
        """Raises Invalid when the address or the files cannot be used."""
        self.files = files
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError; named for the reader
            raise Invalid(
                f"TLS certificate {files.certificate} with key {files.key} cannot be used: {error.strerror or error}"
            ) from error
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise Invalid(f"API address {host}:{port} cannot be opened: {error.strerror or error}") from error
        self.port = int(self.sock.getsockname()[1])

    def close(self) -> None:
        self.sock.close()


class PromptHttp(H11Protocol):
    """uvicorn's HTTP, for a network: a connection that keeps the head of a request to itself is closed. Without this,
    whoever says nothing would hold one of ``MAX_CONNECTIONS`` for ever, and needs no token for it."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """Between two requests uvicorn's own, shorter time for idle connections holds until a byte comes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class ApiServer(uvicorn.Server):
    """uvicorn without its signal handlers; ``stop`` ends ``serve``."""

    def __init__(self, app: ASGIApp, tls: TlsFiles | None = None) -> None:
        # The shutdown deadline is short: a long sweep's client must not hold the daemon's end. No proxy is trusted:
        # the address that the limits and the audit log see is the peer's own.
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                http=PromptHttp if tls else "auto",
                limit_concurrency=MAX_CONNECTIONS if tls else None,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
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
