"""Records of one volume as Ceph's ``rbd export-diff`` (format v1) writes them: what the content of a stream is.

A format only; frames and envelopes around it are ``stream``'s. Invariant: garbage is Corrupt, never another exception.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from blockstore.api import Corrupt

RBD_BANNER = b"rbd diff v1\n"
_TEXT = struct.Struct("<cI")  # f: snapshot that it starts from, t: that it ends at; length of the name, then the name
_SIZE = struct.Struct("<cQ")  # s: size of the image in bytes
_RANGE = struct.Struct("<cQQ")  # w: offset, length, then the data; z: the range reads as zeros
RBD_END = b"e"


@dataclass(frozen=True, slots=True)
class Begin:
    """The banner and what describes the volume."""

    base: str | None
    to: str
    size: int


@dataclass(frozen=True, slots=True)
class Data:
    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Zero:
    offset: int
    length: int


class End:
    """No record of this volume follows."""


RbdRecord = Begin | Data | Zero | End


def pack_begin(begin: Begin) -> bytes:
    texts = [(b"f", begin.base.encode())] if begin.base is not None else []
    texts.append((b"t", begin.to.encode()))
    named = b"".join(_TEXT.pack(kind, len(text)) + text for kind, text in texts)
    return RBD_BANNER + named + _SIZE.pack(b"s", begin.size)


def pack_data(offset: int, length: int) -> bytes:
    """What goes before ``length`` bytes of data."""
    return _RANGE.pack(b"w", offset, length)


def pack_zero(offset: int, length: int) -> bytes:
    return _RANGE.pack(b"z", offset, length)


def parse_rbd(content: bytes) -> Iterator[RbdRecord]:
    """The records in one frame's content. Raises Corrupt."""
    view, at = memoryview(content), 0
    while at < len(view):
        try:
            record, at = _parse_rbd(view, at)
        except (struct.error, UnicodeDecodeError) as error:
            raise Corrupt(f"stream: record {bytes(view[at : at + 1])!r}: {error}") from error
        if at > len(view):
            raise Corrupt(f"stream: a record ends {at - len(view)} bytes behind its frame")
        yield record


def _parse_rbd(view: memoryview, at: int) -> tuple[RbdRecord, int]:
    if view[at : at + len(RBD_BANNER)] == RBD_BANNER:
        return _parse_begin(view, at + len(RBD_BANNER))
    kind = bytes(view[at : at + 1])
    if kind == RBD_END:
        return End(), at + 1
    if kind not in (b"w", b"z"):
        raise Corrupt(f"stream: record of kind {kind!r} is not known")
    _, offset, length = _RANGE.unpack_from(view, at)
    at += _RANGE.size
    if kind == b"z":
        return Zero(offset, length), at
    return Data(offset, view[at : at + length]), at + length


def _parse_begin(view: memoryview, at: int) -> tuple[Begin, int]:
    names: dict[bytes, str] = {}
    while (kind := bytes(view[at : at + 1])) in (b"f", b"t"):
        _, length = _TEXT.unpack_from(view, at)
        at += _TEXT.size
        names[kind] = bytes(view[at : at + length]).decode()
        at += length
    if kind != b"s" or b"t" not in names:
        raise Corrupt("stream: a volume begins without its snapshot's name and its size")
    return Begin(names.get(b"f"), names[b"t"], _SIZE.unpack_from(view, at)[1]), at + _SIZE.size
