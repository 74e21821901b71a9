"""The I/O edge: sockets in, sockets out, once per tick. Knows no SCSI and decides nothing.

A ``Stream`` joins one socket to one sans-IO ``Connection``; a ``Portal`` owns the streams of a process and their
clock. What the connection's events mean is the ``Handler``'s business (a target node, or the front door).

Raw non-blocking sockets with ``add_reader`` rather than asyncio's transports: they arrive as file descriptors
from another process, ``recv_into`` lands large Data-Out in its task's own buffer, and ``sendmsg`` gathers a tick's
answers (measured: a transport that joins its buffers costs 40 % of 1 MiB reads).

Invariants: a stream's socket is closed exactly once, after the handler has been told (``on_closed``); an error in what
one stream does (``Stream.guard``) ends that stream and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Protocol

from target.iscsi.budget import WorkerBudget
from target.iscsi.connection import Connection
from target.iscsi.events import Event
from target.iscsi.session import Task
from target.iscsi.settings import Settings

log = logging.getLogger("blockyard.portal")

MAX_COMMANDS_PER_TICK = 64
MAX_BYTES_PER_TICK = 1 << 20
"""Fairness: what one connection may execute before the others have their turn."""
MAX_UNSENT = 4 << 20
"""Bytes queued for a peer that does not read, or being read for it, above which none of its commands execute."""
MAX_WAITING = 256
"""Connections that have not logged in yet; each has its login deadline."""
MAX_RECORDED = 128 << 10
"""Bytes kept to be read again elsewhere: a login's longest first request (``login.MAX_TEXT``) with its headers."""
TICK_SECONDS = 1.0
"""How often login deadlines and pings are looked at; both are counted in seconds."""
LATE_SECONDS = 0.5
"""How late that may be until it is us who were deaf, and not the peers who were silent; guessed."""
LINGER_SECONDS = 2.0
"""How long a closing stream may take to send what is queued."""


class Handler(Protocol):
    """Who gives a stream's events their meaning."""

    def on_event(self, stream: Stream, event: Event) -> None: ...

    def on_closed(self, stream: Stream) -> None:
        """The connection is gone, whatever the reason. Called once."""


def peer_name(sock: socket.socket) -> str:
    """``address:port`` of the other side, for logs and access checks; IPv6 in brackets."""
    try:
        return _name(sock.getpeername())
    except OSError:
        return "(gone)"


def local_address(sock: socket.socket) -> str:
    """``address:port`` of our side: what the initiator reached."""
    return _name(sock.getsockname())


def _name(address: tuple[str, int]) -> str:
    host = address[0].removeprefix("::ffff:")  # IPv4 on a socket that listens for both
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


class Stream:
    """One socket, its connection, its handler."""

    __slots__ = (
        "_busy",
        "_portal",
        "_reading",
        "_scheduled",
        "_skip",
        "_writing",
        "closed",
        "connection",
        "context",
        "handler",
        "held_since",
        "peer",
        "recording",
        "sent",
        "sock",
    )

    def __init__(
        self, portal: Portal, sock: socket.socket, handler: Handler, connection: Connection, skip: int
    ) -> None:
        self._portal = portal
        self.sock = sock
        self.handler = handler
        self.connection = connection
        self.context: object | None = None
        """The handler's own: what it knows of this connection."""
        self.peer = peer_name(sock)
        self.closed = False
        self.held_since: float | None = None
        self.recording: bytearray | None = None
        """What was received, when somebody else will have to read it again."""
        self.sent = 0
        """Bytes sent so far."""
        self._skip = skip
        self._reading = False
        self._writing = False
        self._busy = False
        self._scheduled = False  # the rest of the events has its turn in the next tick, once however often we are woken

    @property
    def silence(self) -> float:
        """Seconds since the peer's last sign of life."""
        return self._portal.now() - self.connection.last_heard

    # --- input ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes that were received for this socket elsewhere (before it was handed over)."""
        self.connection.receive(data, self._portal.now())
        self._process()

    def on_readable(self) -> None:
        self.guard(self._receive)

    def _receive(self) -> None:
        into = self.connection.get_buffer()
        try:
            received = self.sock.recv_into(into)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"receive failed: {os.strerror(error.errno or 0)}")
            return
        if received == 0:
            self.close("closed by the initiator")
            return
        if self.recording is not None:
            self.recording += into[:received]
            if len(self.recording) > MAX_RECORDED:
                self.close(f"more than {MAX_RECORDED} bytes before the login named its target")
                return
        self.connection.buffer_updated(received, self._portal.now())
        self._process()

    def guard(self, step: Callable[..., None], *arguments: object) -> None:
        """Run ``step(*arguments)`` for this stream. A defect of ours that shows there costs this connection, not the
        loop or the store that called: the initiator logs in again. The only place that catches everything."""
        try:
            step(*arguments)
        except Exception:
            log.exception("connection from %s: internal error", self.peer)
            self.close("internal error")

    def process(self) -> None:
        """Hand events to the handler within this tick's budget, then send what is there."""
        self.guard(self._process)

    def _process(self) -> None:
        if self._busy or self.closed:
            return
        self._busy = True
        try:
            drained = self._handle_events()
        finally:
            self._busy = False
        if self.closed:
            return
        self.flush()
        if self.closed:
            return
        connection = self.connection
        # What waits for the store must not deafen us to pings; what waits for the peer is the peer's own doing.
        full, waits = connection.out_bytes > MAX_UNSENT, connection.unsent > MAX_UNSENT
        self._read((drained or waits) and not full and not connection.closing)
        if not drained and not waits and not self._scheduled:
            self._scheduled = True
            self._portal.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        self.process()

    def _handle_events(self) -> bool:
        """Returns whether no event is left."""
        connection, on_event = self.connection, self.handler.on_event
        events = connection.events
        commands = moved = 0
        while events and not self.closed:
            if connection.unsent > MAX_UNSENT or commands >= MAX_COMMANDS_PER_TICK or moved >= MAX_BYTES_PER_TICK:
                return False
            event = events.popleft()
            commands += 1
            if type(event) is Task:
                moved += event.expected_length
            on_event(self, event)
        return True

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading or self.closed:
            return
        self._reading = wanted
        if wanted:
            self._portal.loop.add_reader(self.sock, self.on_readable)
        else:
            self._portal.loop.remove_reader(self.sock)

    # --- output --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Answers were queued outside ``process``: send them at the end of this tick."""
        if not self._busy and not self.closed:
            self._portal.wake(self)

    def woken(self) -> None:
        """The end of the tick in which answers were queued."""
        if not self.closed:
            self.guard(self.flush if self._scheduled else self._process)

    def flush(self) -> None:
        """Send until nothing is queued or the socket is full."""
        connection = self.connection
        try:
            while connection.out_bytes:
                buffers = connection.outgoing()
                if self._skip:
                    self._drop_replayed(buffers)
                    continue
                count = self.sock.sendmsg(buffers)
                self.sent += count
                connection.sent(count)
        except (BlockingIOError, InterruptedError):
            self._wait_writable()
            return
        except OSError as error:
            self.close(f"send failed: {os.strerror(error.errno or 0)}")
            return
        if self._writing:
            self._writing = False
            self._portal.loop.remove_writer(self.sock)
        if connection.failed is not None:
            self.close(connection.failed)
        elif connection.closing:
            self.close(connection.close_reason)

    def _drop_replayed(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        """What the front door has already answered is made again here, and not sent again."""
        part = min(self._skip, sum(memoryview(buffer).nbytes for buffer in buffers))
        self._skip -= part
        self.connection.sent(part)

    def _wait_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._portal.loop.add_writer(self.sock, self._on_writable)
        if (self.connection.failed is not None or self.connection.closing) and self.held_since is None:
            self.held_since = self._portal.now()

    def _on_writable(self) -> None:
        # The peer took something since the socket was full: it lives, though we may have stopped listening to it.
        self.connection.heard(self._portal.now())
        self.process()

    # --- time and end --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self.guard(self._tick, now)

    def _tick(self, now: float) -> None:
        self.connection.tick(now)
        if self.held_since is not None and now - self.held_since > LINGER_SECONDS:
            self.close(self.connection.failed or "peer did not take the last answer")
            return
        self._process()

    def detach(self) -> socket.socket:
        """Stop serving the socket without closing it: it goes to another process. The handler is not told."""
        self._forget()
        return self.sock

    def close(self, reason: str) -> None:
        if self.closed:
            return
        self._forget()
        self.guard(self.handler.on_closed, self)
        self.connection.close()
        log.info("connection from %s ended: %s", self.peer, reason)
        self.sock.close()

    def _forget(self) -> None:
        self._read(False)
        if self._writing:
            self._portal.loop.remove_writer(self.sock)
            self._writing = False
        self.closed = True
        self._portal.forget(self)


class Portal:
    """The streams of one process and their clock. Owner of every socket that it adopted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Handler, settings: Settings | None = None) -> None:
        self.loop = loop
        self.now: Callable[[], float] = loop.time
        self.streams: set[Stream] = set()
        self._handler = handler
        self._settings = settings or Settings()
        self._budget = WorkerBudget(self._settings.worker_buffers)
        self._awake: dict[Stream, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tick_in(TICK_SECONDS)

    def adopt(
        self, sock: socket.socket, received: bytes = b"", replied: int = 0, *, record: bool = False
    ) -> Stream | None:
        """Serve a connected socket. ``received`` is what was read from it before; of the answers to that, the first
        ``replied`` bytes have been sent already. Too many that have not logged in: closed at once (they try again)."""
        if sum(stream.connection.session is None for stream in self.streams) >= MAX_WAITING:
            log.warning("connection from %s refused: %d others have not logged in yet", peer_name(sock), MAX_WAITING)
            sock.close()
            return None
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(
            self._settings, self.now(), random_bytes=os.urandom, peer=peer_name(sock), budget=self._budget
        )
        stream = Stream(self, sock, self._handler, connection, replied)
        connection.owner = stream
        connection.wake = stream.wake
        if record:
            stream.recording = bytearray()
        self.streams.add(stream)
        stream.guard(stream.feed, received)
        return stream

    def wake(self, stream: Stream) -> None:
        if not self._awake:
            self.loop.call_soon(self._flush_awake)
        self._awake[stream] = None

    def forget(self, stream: Stream) -> None:
        self.streams.discard(stream)
        self._awake.pop(stream, None)

    def _flush_awake(self) -> None:
        awake, self._awake = self._awake, {}
        for stream in awake:
            stream.woken()

    def _tick_in(self, seconds: float, late: bool = False) -> None:
        self._timer = self.loop.call_later(seconds, self._tick, self.now() + seconds, late)

    def _tick(self, due: float, late: bool) -> None:
        now = self.now()
        if now - due > LATE_SECONDS and not late:
            # The loop stood still, and runs its timers before it looks at sockets (uvloop does): first everybody is
            # heard who has answered meanwhile. A host that is dropped here counts as dead, and may lose its group.
            self._tick_in(0, late=True)
            return
        for stream in tuple(self.streams):
            stream.tick(now)
        self._tick_in(TICK_SECONDS)

    def close(self, reason: str) -> None:
        """End every stream now. What waits for the store is revoked by the handler."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in tuple(self.streams):
            stream.close(reason)
