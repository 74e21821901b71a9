"""A client of the NBD protocol, just enough to load a peer's server: fixed newstyle handshake, writes, flush.

It is to a foreign server what ``load`` is to our target, in the same way: one connection, a fixed number of writes in
flight, no verification. Rules: NetworkBlockDevice's doc/proto.md. Invariant: a handle is in flight at most once.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import islice

OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
FIXED_NEWSTYLE = 1
NBD_OPT_GO = 7
NBD_REP_ACK, NBD_REP_INFO = 1, 3
NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH = 1, 2, 3

_GREETING = struct.Struct(">8sQH")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class NbdError(ConnectionError):
    """The server said something else than it should have."""


class NbdClient:
    """The default export of the server at ``address``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address, timeout=30)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._negotiate()

    def close(self) -> None:
        self._sock.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, NBD_CMD_DISC, 0, 0, 0))
        self._sock.close()

    def flush(self) -> None:
        self._sock.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, NBD_CMD_FLUSH, 0, 0, 0))
        self._take_replies(bytearray(self._receive(_REPLY.size)))

    def write(self, slots: Sequence[int], data: bytes, depth: int) -> float:
        """Write ``data`` to each of the places (in units of its length), ``depth`` in flight; the seconds it took."""
        began = time.perf_counter()
        left = iter(slots)
        sent = self._send(left, data, depth)
        answered = 0
        buffer = bytearray()
        while answered < sent:
            received = self._sock.recv(1 << 16)
            if not received:
                raise NbdError("the server closed the connection")
            buffer += received
            count = self._take_replies(buffer)
            answered += count
            sent += self._send(left, data, count)
        return time.perf_counter() - began

    def _send(self, left: Iterator[int], data: bytes, count: int) -> int:
        """Request up to ``count`` more writes; how many there still were."""
        out: list[bytes] = []
        for slot in islice(left, count):
            out += (_REQUEST.pack(REQUEST_MAGIC, 0, NBD_CMD_WRITE, slot, slot * len(data), len(data)), data)
        if out:
            self._sock.sendall(b"".join(out))
        return len(out) // 2

    def _take_replies(self, buffer: bytearray) -> int:
        """Remove the whole replies from ``buffer``; how many they were."""
        count = len(buffer) // _REPLY.size
        for magic, error, _handle in _REPLY.iter_unpack(bytes(buffer[: count * _REPLY.size])):
            if magic != REPLY_MAGIC or error:
                raise NbdError(f"reply with magic {magic:#x} and error {error}, expected {REPLY_MAGIC:#x} and 0")
        del buffer[: count * _REPLY.size]
        return count

    def _negotiate(self) -> None:
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if magic != b"NBDMAGIC" or option_magic != OPTION_MAGIC or not flags & FIXED_NEWSTYLE:
            raise NbdError(f"the server greets with {magic!r}, {option_magic:#x}, flags {flags:#x}: not fixed newstyle")
        wanted = struct.pack(">IH", 0, 0)  # the default export's name has no bytes; no information is asked for
        request = _OPTION.pack(OPTION_MAGIC, NBD_OPT_GO, len(wanted)) + wanted
        self._sock.sendall(struct.pack(">I", FIXED_NEWSTYLE) + request)
        while True:
            magic, _option, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            said = self._receive(length)
            if magic != OPTION_REPLY_MAGIC or kind not in (NBD_REP_ACK, NBD_REP_INFO):
                raise NbdError(f"the server refuses the export: reply {kind:#x}, {said.decode(errors='replace')!r}")
            if kind == NBD_REP_ACK:
                return

    def _receive(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            received = self._sock.recv(length - len(parts))
            if not received:
                raise NbdError("the server closed the connection")
            parts += received
        return bytes(parts)
