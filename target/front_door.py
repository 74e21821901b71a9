"""Where initiators arrive: listening sockets, discovery, and the first Login Request that tells whose socket it is.

The front door reads with the same sans-IO ``Connection`` as a worker, up to ``LoginStarted``. A normal login is then
handed over with every byte received and the number of bytes answered so far; the worker's connection reads them
again and goes on. Discovery sessions are answered here. It has no authority: the worker checks access and CHAP.

Invariant: connections here are bounded in number and time: those that have not logged in (``portal.MAX_WAITING``,
the login deadline) and discovery sessions (``MAX_DISCOVERY``, ``DISCOVERY_SECONDS``), so that none can starve others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pdus.iscsi.login import LoginStatus
from target.access import host_of
from target.iscsi.events import Event, LoginStarted, LogoutRequested, SendTargets, SessionRequested
from target.iscsi.login import LoginPolicy
from target.iscsi.settings import Settings
from target.portal import Portal, Stream, local_address

log = logging.getLogger("blockyard.portal")

DISCOVERY_SECONDS = 60.0
"""Guessed: iscsiadm needs one round trip; a session left open is of no use to anybody."""
MAX_DISCOVERY = 256
"""Discovery sessions open at a time; guessed, as many as may wait for their login."""
BACKLOG = 128
DISCOVERY_TSIH = 1
"""Discovery sessions have one connection each and are never reinstated by TSIH: one number serves all."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a login belongs. ``key`` means something only to whoever gave it."""

    key: object


class Directory(Protocol):
    """What the daemon knows of the targets: a projection, asked once per login."""

    def route(self, target: str, initiator: str, address: str) -> Route | LoginStatus:
        """The worker of ``target``, or why not: NOT_FOUND, AUTHORIZATION_FAILURE, SERVICE_UNAVAILABLE (try again)."""

    def visible(self, initiator: str, address: str) -> list[str]:
        """IQNs to name to ``initiator`` in a discovery session from ``address``."""


HandOver = Callable[[object, socket.socket, bytes, int], None]
"""(route key, connected socket, bytes received, bytes answered). The callee owns the socket from then on."""


class FrontDoor:
    """Owns the listening sockets. ``advertise`` is the ``host:port`` that SendTargets names; None: the address that
    the initiator reached."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Directory,
        hand_over: HandOver,
        *,
        advertise: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._hand_over = hand_over
        self._advertise = advertise
        self._portal = Portal(loop, self, settings)
        self._listeners: list[socket.socket] = []
        self._ends: dict[Stream, asyncio.TimerHandle] = {}
        """When each discovery session has taken too long."""

    # --- listening -----------------------------------------------------------------------------------------------

    def listen(self, host: str, port: int) -> socket.socket:
        """Bind and serve. Raises OSError (address in use, not ours)."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self.serve(listener)
        return listener

    def serve(self, listener: socket.socket) -> None:
        """Accept from a socket that listens already (socket activation)."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor left, most likely: the peer stays in the backlog, others are served meanwhile.
            log.error("cannot accept a connection: %s", error.strerror)
            self._loop.remove_reader(listener)
            self._loop.call_later(1.0, self._resume, listener)
            return
        self._portal.adopt(sock, record=True)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    async def close(self) -> None:
        """Stop listening and end every connection that has not been handed over."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        self._portal.close("the target is shutting down")

    # --- Handler -------------------------------------------------------------------------------------------------

    def on_event(self, stream: Stream, event: Event) -> None:
        if isinstance(event, LoginStarted):
            if event.session_type == "Discovery":
                self._discover(stream, event)
            else:
                self._route(stream, event)
        elif isinstance(event, SessionRequested):
            self._begin_discovery(stream)
        elif isinstance(event, SendTargets):
            self._name_targets(stream, event)
        elif isinstance(event, LogoutRequested):
            stream.connection.answer_logout(event)
        else:
            stream.close(f"{type(event).__name__} in a discovery session")

    def on_closed(self, stream: Stream) -> None:
        end = self._ends.pop(stream, None)
        if end is not None:
            end.cancel()

    def _begin_discovery(self, stream: Stream) -> None:
        if len(self._ends) >= MAX_DISCOVERY:
            stream.connection.refuse_login(LoginStatus.OUT_OF_RESOURCES, f"{MAX_DISCOVERY} discovery sessions are open")
            return
        stream.connection.establish(DISCOVERY_TSIH, None)
        self._ends[stream] = self._loop.call_later(DISCOVERY_SECONDS, stream.close, "discovery session took too long")

    def _discover(self, stream: Stream, event: LoginStarted) -> None:
        stream.context = event.initiator_name
        stream.recording = None
        stream.connection.accept_login(LoginPolicy())

    def _route(self, stream: Stream, event: LoginStarted) -> None:
        target = event.target_name or ""
        route = self._directory.route(target, event.initiator_name, host_of(stream.peer))
        if not isinstance(route, Route):
            log.warning("login of %s from %s to %s refused: %s", event.initiator_name, stream.peer, target, route.name)
            stream.connection.refuse_login(route)
            return
        received = bytes(stream.recording or b"")
        sock = stream.detach()
        self._hand_over(route.key, sock, received, stream.sent)

    def _name_targets(self, stream: Stream, event: SendTargets) -> None:
        visible = self._directory.visible(str(stream.context), host_of(stream.peer))
        if event.which != "All":
            visible = [iqn for iqn in visible if iqn.lower() == event.which.lower()]
        address = self._advertise or local_address(stream.sock)
        stream.connection.answer_send_targets(event, [(iqn, [address]) for iqn in visible])
