"""One end of the SOCK_SEQPACKET pair between daemon and worker: framing, replies, sockets handed over.

Knows no verb: it moves the declarations of ``calls``. A message is ``kind id name\\n`` and a JSON body, cut into
packets of one flag byte (more to come, or last) and up to 32 KiB; packets of two messages never mix, because each
side queues whole messages. Sockets travel with the first packet of theirs. asyncio's transports drop ancillary
data, hence ``add_reader``.

Invariants: every call is answered exactly once, with ``Unavailable`` when the other side dies first; a socket given
to ``notify`` is owned by the channel, which closes this process's copy as soon as it is sent or cannot be sent (a
kept copy would hide the worker's death from the initiator).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from blockyard.errors import Detail, Internal, ProductError, Unavailable, error_from
from blockyard.model import Value
from blockyard.rpc.calls import CALLS, NOTICES, Call, Notice

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Value)

PACKET = 32 << 10  # bytes; well under the smallest default socket buffer (guessed: 208 KiB), so a few fit
MAX_MESSAGE = 64 << 20  # bytes; a report of 10,000 groups has about 10 MiB
MAX_SOCKETS = 1  # with one message; more are a defect of the sender
MAX_QUEUED = 1024  # messages not yet taken by the other side; above it, it is stuck and gets no more connections
PACKETS_A_TICK = 64  # then the loop gets its turn
MORE, LAST = b"+", b"."


class ErrorBody(Value):
    code: str
    message: str
    details: dict[str, Detail]


class Server(Protocol):
    """What a channel's owner does with what the other side says."""

    async def serve(self, call: Call[Any]) -> Value:
        """The reply; a ProductError is sent back as it is, anything else as Internal."""

    def notice(self, notice: Notice, sockets: Sequence[socket.socket]) -> None:
        """The sockets belong to the receiver from now on."""

    def closed(self) -> None:
        """The other side is gone. Called once, also after ``close``."""


@dataclass(slots=True)
class _Outgoing:
    packets: deque[bytes]
    sockets: tuple[socket.socket, ...]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair, close-on-exec both."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        self._sock = sock
        self._loop = loop
        self._server = server
        self._outgoing: deque[_Outgoing] = deque()
        self._incoming: list[bytes] = []
        self._incoming_size = 0
        self._incoming_sockets: list[socket.socket] = []
        self._calls: dict[int, tuple[Call[Any], asyncio.Future[Value]]] = {}
        self._next_id = 0
        self._serving: set[asyncio.Task[Value]] = set()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self.open = True
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    # --- saying ----------------------------------------------------------------------------------------------------

    async def call(self, call: Call[R], *, seconds: float | None = 60) -> R:
        """The reply. Raises what the other side raised, Unavailable when it dies or is silent for ``seconds``."""
        if not self.open:
            raise Unavailable("the pool's worker is not running")
        self._next_id += 1
        number = self._next_id
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls[number] = (call, future)
        self._send("call", number, type(call).__name__, call)
        try:
            async with asyncio.timeout(seconds):
                reply: R = await future
        except TimeoutError:
            raise Unavailable(f"the pool's worker did not answer {type(call).__name__} in {seconds:g} s") from None
        finally:
            self._calls.pop(number, None)
        return reply

    def notify(self, notice: Notice, sockets: Sequence[socket.socket] = ()) -> bool:
        """Send ``notice`` and its sockets; False if it cannot be: then the sockets are closed unsent."""
        if not self.open or len(self._outgoing) >= MAX_QUEUED:
            _close(sockets)
            return False
        self._send("notice", 0, type(notice).__name__, notice, tuple(sockets))
        return True

    def _send(self, kind: str, number: int, name: str, body: Value, sockets: tuple[socket.socket, ...] = ()) -> None:
        if not self.open:
            _close(sockets)
            return
        message = f"{kind} {number} {name}\n".encode() + body.model_dump_json().encode()
        starts = range(0, len(message), PACKET)
        packets = deque((LAST if at == starts[-1] else MORE) + message[at : at + PACKET] for at in starts)
        self._outgoing.append(_Outgoing(packets, sockets))
        if len(self._outgoing) == 1:
            self._all_sent.clear()
            self._writable()

    def _writable(self) -> None:
        while self._outgoing:
            if not self._send_packets(self._outgoing[0]):
                return
            self._outgoing.popleft()
        self._all_sent.set()
        if self.open:
            self._loop.remove_writer(self._sock.fileno())

    def _send_packets(self, outgoing: _Outgoing) -> bool:
        """False: the other side has to read first, or is gone."""
        while outgoing.packets:
            try:
                _transmit(self._sock, outgoing.packets[0], outgoing.sockets)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return False
            except OSError as error:
                log.info("channel: cannot send (%s)", error)
                self.close()
                return False
            outgoing.packets.popleft()
            _close(outgoing.sockets)
            outgoing.sockets = ()
        return True

    # --- hearing ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(PACKETS_A_TICK):
            try:
                packet, sockets, flags = _receive(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                log.info("channel: cannot receive (%s)", error)
                self.close()
                return
            self._incoming_sockets += sockets
            if not packet:  # the other side closed, or died
                self.close()
            elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self._broken("a packet or its sockets were cut off")
            else:
                self._packet(packet)
            if not self.open:
                return

    def _packet(self, packet: bytes) -> None:
        self._incoming.append(packet[1:])
        self._incoming_size += len(packet) - 1
        if self._incoming_size > MAX_MESSAGE:
            self._broken(f"a message has more than {MAX_MESSAGE} bytes")
        elif packet[:1] == LAST:
            self._message()

    def _message(self) -> None:
        header, _, body = b"".join(self._incoming).partition(b"\n")
        sockets, self._incoming_sockets = self._incoming_sockets, []
        self._incoming, self._incoming_size = [], 0
        try:
            kind, number, name = header.decode().split(" ")
            self._dispatch(kind, int(number), name, body, sockets)
        except (ValueError, KeyError) as error:  # pydantic's ValidationError is a ValueError
            _close(sockets)
            reason = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else str(error)
            self._broken(f"cannot understand {header[:100]!r}: {reason}")

    def _dispatch(self, kind: str, number: int, name: str, body: bytes, sockets: list[socket.socket]) -> None:
        if kind == "notice":
            notice = NOTICES[name].model_validate_json(body)
            self._loop.call_soon(self._server.notice, notice, sockets)
            return
        _close(sockets)
        if kind == "call":
            self._serve(number, CALLS[name].model_validate_json(body))
        elif kind == "error":
            error = ErrorBody.model_validate_json(body)
            self._answered(number, error_from(error.code, error.message, error.details))
        elif kind == "reply" and number in self._calls:
            self._answered(number, self._calls[number][0].reply_type().model_validate_json(body))

    def _answered(self, number: int, answer: Value | ProductError) -> None:
        _, future = self._calls.get(number, (None, None))
        if future is None or future.done():
            return  # its caller gave up
        if isinstance(answer, ProductError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _serve(self, number: int, call: Call[Any]) -> None:
        task = self._loop.create_task(self._server.serve(call))
        self._serving.add(task)
        task.add_done_callback(lambda done: self._served(number, call, done))

    def _served(self, number: int, call: Call[Any], task: asyncio.Task[Value]) -> None:
        self._serving.discard(task)
        error = Unavailable("cancelled") if task.cancelled() else task.exception()
        if error is None:
            self._send("reply", number, type(call).__name__, task.result())
            return
        if not isinstance(error, ProductError):
            log.error("%s failed", type(call).__name__, exc_info=error)
            error = Internal(f"{type(call).__name__} failed ({type(error).__name__}): the daemon's log has the details")
        body = ErrorBody(code=error.answer.code, message=str(error), details=error.details)
        self._send("error", number, type(call).__name__, body)

    # --- ending ----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until every call that the other side made is served and everything said is sent."""
        while self._serving:
            await asyncio.wait(set(self._serving))
        await self._all_sent.wait()

    def _broken(self, reason: str) -> None:
        log.error("channel: %s", reason)
        self.close()

    def close(self) -> None:
        """Close; callers that wait get Unavailable, sockets on the way are closed."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for outgoing in self._outgoing:
            _close(outgoing.sockets)
        self._outgoing.clear()
        self._all_sent.set()
        _close(self._incoming_sockets)
        self._incoming_sockets = []
        for call, future in self._calls.values():
            if not future.done():
                name = type(call).__name__
                future.set_exception(Unavailable(f"the pool's worker ended during {name}: repeat it in a moment"))
        self._loop.call_soon(self._server.closed)


# Not socket.send_fds and recv_fds: Python 3.11's ignore their ``flags``, so that what was received would be inherited
# by the next process started.
def _transmit(sock: socket.socket, packet: bytes, sockets: Sequence[socket.socket]) -> None:
    descriptors = array("i", [each.fileno() for each in sockets])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if sockets else []
    sock.sendmsg([packet], ancillary, socket.MSG_NOSIGNAL)


def _receive(sock: socket.socket) -> tuple[bytes, list[socket.socket], int]:
    """A packet, the sockets that came with it, and the flags of recvmsg(2)."""
    room = socket.CMSG_LEN(MAX_SOCKETS * array("i").itemsize)
    packet, ancillary, flags, _ = sock.recvmsg(PACKET + 1, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return packet, [socket.socket(fileno=descriptor) for descriptor in descriptors], flags


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
