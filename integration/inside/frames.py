"""The wire between host and guest: frames of (length, kind, command) and a payload, the same both ways.

Used by both ends, so it imports only what python3-minimal has. A command is a number that the host chose; frames of
several commands interleave freely.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

_HEADER = struct.Struct("!IBI")  # payload length, kind, command
PAYLOAD_MAX = 64 * 1024  # bytes; larger data is several frames, so that a long output delays nobody

# Host to guest.
START = 1  # payload: a line for /bin/sh
STDIN = 2  # payload: bytes for its standard input; an empty payload is its end
KILL = 3  # payload: the signal's number in decimal; goes to the command's whole process group
# Guest to host.
READY = 4  # once, after the guest's set-up; payload: what it found to complain about
STDOUT = 5
STDERR = 6
EXIT = 7  # payload: the exit code in decimal, negative for a signal; nothing of that command follows


class Disconnected(Exception):
    """The other end is gone."""


def encode(kind: int, command: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload), kind, command) + payload


def frames(read: Callable[[int], bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Every frame that ``read`` (at most n bytes, empty at the end) brings, until it ends."""
    try:
        while True:
            length, kind, command = _HEADER.unpack(_exactly(read, _HEADER.size))
            yield kind, command, _exactly(read, length)
    except Disconnected:
        return


def _exactly(read: Callable[[int], bytes], length: int) -> bytes:
    parts = []
    while length:
        part = read(length)
        if not part:
            raise Disconnected
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
