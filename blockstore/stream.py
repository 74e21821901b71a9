"""The stream that carries a snapshot: records (``export_diff``) in zstd frames, between envelopes of our own.

Formats only: bytes to values and back, no map, no I/O, no clock (``send`` and ``receive`` do the work,
``docs/streams.md`` has the byte tables). An envelope is a zstd *skippable frame*, so that ``zstd -d`` alone leaves
plain export-diff records, volume after volume, which ``rbd import-diff`` takes.

Invariants: every byte is under a checksum (envelopes are chained, so that none can be lost, doubled or reordered; a
frame's bytes are under its envelope's, its content under zstd's own); garbage is Corrupt, never another exception.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import zstandard
from crc32c import crc32c

from blockstore.api import GRAIN, MAX_LUN, MAX_VOLUME_SIZE, Buffer, Corrupt, Invalid

FORMAT = 1
LEVEL = 1  # zstd: 1.8 GB/s against 1.1 at level 3, for about 3 % of size (measured on 64 KiB pieces)
MAX_CONTENT = 8 << 20  # bytes of records in one frame; senders make about 1 MiB. A receiver holds one frame at a time
MAX_HEAD = 1 << 20  # bytes of an envelope; a head with 256 volumes has about 30 KiB

_SKIPPABLE = struct.Struct("<II")  # magic, payload length (RFC 8878 3.1.2)
_MAGIC = 0x184D2A5B  # one of the sixteen magics for skippable frames; B for Blockyard
_ENVELOPE = struct.Struct("<4sI")  # kind, chained crc32c; then the body
_HEAD, _PIECE, _TAIL = b"HEAD", b"PIEC", b"TAIL"
_PIECE_BODY = struct.Struct("<IIQIII")  # number, lun, position, frame length, content length, crc32c of the frame
_TAIL_BODY = struct.Struct("<IIQ")  # pieces, 0, content bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # as ``group`` allows


@dataclass(frozen=True, slots=True)
class Ref:
    """A snapshot, by the name that it has there and by what stays the same everywhere."""

    name: str
    identity: UUID


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Everything before ``offset`` (bytes) of volume ``lun``, and every volume before it, is covered."""

    lun: int
    offset: int


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class StreamVolume:
    lun: int
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a stream carries: ``to``, as it differs from ``base`` (None: all of it), from ``start`` on."""

    group: str
    to: Ref
    created: float
    base: Ref | None
    volumes: tuple[StreamVolume, ...]
    """By rising LUN."""
    start: Position = START

    def same_transfer(self, other: Head) -> bool:
        """Whether a stream of ``other`` goes on where one of this was cut."""
        mine, theirs = self.base and self.base.identity, other.base and other.base.identity
        return (self.to.identity, mine, self.volumes) == (other.to.identity, theirs, other.volumes)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of one volume, packed. After it the stream is at ``position`` of volume ``lun``."""

    number: int
    lun: int
    position: int
    frame: bytes = field(repr=False)
    length: int
    """Of the content."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end: nothing is missing before it."""

    pieces: int
    length: int
    """Of all contents."""


# ---------------------------------------------------------------------------------------------------- envelopes


class StreamEncoder:
    """Values to bytes. One stream's chain of checksums and counts."""

    def __init__(self) -> None:
        self._chain = 0
        self._pieces = 0
        self._length = 0

    def head(self, head: Head) -> bytes:
        return self._envelope(_HEAD, json.dumps(head_to_json(head), separators=(",", ":")).encode())

    def piece(self, lun: int, position: int, frame: bytes, length: int) -> bytes:
        """``frame``: of ``pack``; ``length``: of what it holds."""
        body = _PIECE_BODY.pack(self._pieces, lun, position, len(frame), length, crc32c(frame))
        self._pieces += 1
        self._length += length
        return self._envelope(_PIECE, body) + frame

    def tail(self) -> bytes:
        return self._envelope(_TAIL, _TAIL_BODY.pack(self._pieces, 0, self._length))

    def _envelope(self, kind: bytes, body: bytes) -> bytes:
        self._chain = crc32c(body, crc32c(kind, self._chain))
        return _SKIPPABLE.pack(_MAGIC, _ENVELOPE.size + len(body)) + _ENVELOPE.pack(kind, self._chain) + body


class StreamDecoder:
    """Bytes to values: ``feed`` what came, then ``next`` until it gives None. Raises Corrupt, and stays at the bad
    place. Holds at most what it was fed and one frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._chain = 0
        self._pieces = 0
        self._length = 0
        self._begun = False
        self.ended = False
        """The tail came: nothing may follow."""

    def feed(self, data: Buffer) -> None:
        self._buffer += data
        if self.ended and self._buffer:
            raise Corrupt(f"stream: {len(self._buffer)} bytes follow its end")

    def next(self) -> Head | Piece | Tail | None:
        """None: more bytes are needed."""
        if len(self._buffer) < _SKIPPABLE.size or self.ended:
            return None
        magic, length = _SKIPPABLE.unpack_from(self._buffer)
        if magic != _MAGIC or not _ENVELOPE.size <= length <= MAX_HEAD:
            raise Corrupt(f"stream: no envelope where one must be (magic {magic:#x}, length {length})")
        end = _SKIPPABLE.size + length
        if len(self._buffer) < end:
            return None
        kind, crc = _ENVELOPE.unpack_from(self._buffer, _SKIPPABLE.size)
        body = bytes(self._buffer[_SKIPPABLE.size + _ENVELOPE.size : end])
        chain = crc32c(body, crc32c(kind, self._chain))
        if chain != crc:
            raise Corrupt(f"stream: checksum of envelope {self._pieces} does not match, or one is missing before it")
        return self._value(kind, body, end, chain)

    def _value(self, kind: bytes, body: bytes, end: int, chain: int) -> Head | Piece | Tail | None:
        if self._begun == (kind == _HEAD):
            raise Corrupt("stream: it must begin with one head")
        value: Head | Piece | Tail | None
        if kind == _HEAD:
            value = _parse_head(body)
            self._begun = True
        elif kind == _PIECE and len(body) == _PIECE_BODY.size:
            value = self._piece(body, end)
            if value is None:
                return None  # the frame has not come whole
            end += len(value.frame)
        elif kind == _TAIL and len(body) == _TAIL_BODY.size:
            value = self._tail(body)
        else:
            raise Corrupt(f"stream: envelope of kind {kind!r} with {len(body)} bytes is not known")
        self._chain = chain
        del self._buffer[:end]
        if self.ended and self._buffer:
            raise Corrupt(f"stream: {len(self._buffer)} bytes follow its end")
        return value

    def _piece(self, body: bytes, end: int) -> Piece | None:
        number, lun, position, frame_length, length, crc = _PIECE_BODY.unpack(body)
        if number != self._pieces or length > MAX_CONTENT or frame_length > MAX_CONTENT + MAX_HEAD:
            raise Corrupt(f"stream: piece {number} of {length} bytes where {self._pieces} is next")
        if len(self._buffer) < end + frame_length:
            return None
        frame = bytes(self._buffer[end : end + frame_length])
        if crc32c(frame) != crc:
            raise Corrupt(f"stream: checksum of frame {number} does not match")
        self._pieces += 1
        self._length += length
        return Piece(number, lun, position, frame, length)

    def _tail(self, body: bytes) -> Tail:
        pieces, _, length = _TAIL_BODY.unpack(body)
        if (pieces, length) != (self._pieces, self._length):
            raise Corrupt(f"stream: its end counts {pieces} pieces and {length} bytes; {self._pieces} came")
        self.ended = True
        return Tail(pieces, length)


def head_to_json(head: Head) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "group": head.group,
        "to": _ref_to_json(head.to),
        "created": head.created,
        "from": _ref_to_json(head.base) if head.base is not None else None,
        "volumes": [{"lun": each.lun, "name": each.name, "size": each.size} for each in head.volumes],
        "start": [head.start.lun, head.start.offset],
    }


def head_from_json(value: dict[str, Any]) -> Head:
    """Raises Corrupt for what is no head, or of a newer format."""
    try:
        if value["format"] != FORMAT:
            raise Corrupt(f"stream: format {value['format']!r}; known is {FORMAT}")
        head = Head(
            group=_name(value["group"]),
            to=_ref_from_json(value["to"]),
            created=float(value["created"]),
            base=None if value["from"] is None else _ref_from_json(value["from"]),
            volumes=tuple(StreamVolume(int(v["lun"]), _name(v["name"]), int(v["size"])) for v in value["volumes"]),
            start=Position(int(value["start"][0]), int(value["start"][1])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Corrupt(f"stream: its head is not understood: {error!r}") from error
    luns = [volume.lun for volume in head.volumes]
    if luns != sorted(set(luns)) or any(not 0 <= lun <= MAX_LUN for lun in luns):
        raise Corrupt(f"stream: LUNs {luns}; allowed are rising numbers from 0 to {MAX_LUN}")
    for volume in head.volumes:
        if volume.size <= 0 or volume.size % GRAIN or volume.size > MAX_VOLUME_SIZE:
            raise Corrupt(f"stream: LUN {volume.lun} has {volume.size} bytes; allowed are multiples of {GRAIN}")
    return head


def _parse_head(body: bytes) -> Head:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise Corrupt(f"stream: its head is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Corrupt("stream: its head is no object")
    return head_from_json(value)


def _ref_to_json(ref: Ref) -> dict[str, str]:
    return {"name": ref.name, "identity": ref.identity.hex}


def _ref_from_json(value: dict[str, Any]) -> Ref:
    return Ref(_name(value["name"]), UUID(value["identity"]))


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not allowed as a name")
    return text


# ---------------------------------------------------------------------------------------------------- resume token


def pack_token(to: UUID, position: Position) -> str:
    """What a receiver says so that a sender can go on: opaque to people, one word."""
    value = [FORMAT, to.hex, position.lun, position.offset]
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")


def parse_token(token: str) -> tuple[UUID, Position]:
    """(identity of the snapshot, where to go on). Raises Invalid."""
    try:
        value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        form, to, lun, offset = value
        position = Position(int(lun), int(offset))
        if form != FORMAT or position < START:
            raise ValueError(f"format {form}, position {position}")
        return UUID(to), position
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise Invalid(f"{token!r} is no resume token; `blockyard snapshot receive --status` shows it") from error


# ---------------------------------------------------------------------------------------------------- frames


def pack(content: Buffer) -> bytes:
    """One zstd frame with content size and checksum."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True).compress(content)


def unpack(piece: Piece) -> bytes:
    """The content of its frame. Raises Corrupt."""
    try:
        stated = zstandard.frame_content_size(piece.frame)
        if stated != piece.length:  # before anything is allocated for it
            raise Corrupt(f"stream: frame {piece.number} states {stated} bytes instead of {piece.length}")
        content = zstandard.ZstdDecompressor().decompress(piece.frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"stream: frame {piece.number}: {error}") from error
    if len(content) != piece.length:
        raise Corrupt(f"stream: frame {piece.number} holds {len(content)} bytes instead of {piece.length}")
    return content
