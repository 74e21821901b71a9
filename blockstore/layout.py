"""Every byte format of the pool, declared once: map entry, leaf, page, root, data header, journal batch, records.

Little-endian throughout. Nothing here reads or writes a file. ``docs/formats.md`` holds the same tables
for people. Invariant: what ``pack_*`` makes, ``parse_*`` gives back; garbage is FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from crc32c import crc32c

from blockstore.records import (
    CloneMap,
    Crcs,
    CreateMap,
    Delete,
    DeleteMap,
    Edit,
    Put,
    Record,
    ResizeMap,
    RollbackMap,
    SnapMap,
    Trim,
    Write,
)


class FormatError(ValueError):
    """Bytes that are not what this module describes."""


VERSION = 1
UNIT = 4096  # bytes; block of the data file
UNIT_SHIFT = 12
SECTOR = 512  # bytes; what a device writes whole or not at all: batches start on it

# Map entry, u64. Only block number is set so far; the other fields are format from the first day.
BLOCK_MASK = (1 << 40) - 1  # bits 0-39: block number, 0 = unmapped
DEVICE_SHIFT = 40  # bits 40-47
LENGTH_SHIFT = 48  # bits 48-55: stored length in units - 1
CODEC_SHIFT = 56  # bits 56-58: 0 raw, 1 zstd
ENCRYPTED_BIT = 1 << 59
RESERVED_BITS = 7 << 60  # must be 0
PRIVATE_BIT = 1 << 63

LEAF_SHIFT = 9
LEAF_ENTRIES = 1 << LEAF_SHIFT  # a leaf spans 2 MiB
LEAF_BYTES = LEAF_ENTRIES * 12
PAGE_SHIFT = 12
PAGE_ENTRIES = 1 << PAGE_SHIFT  # a page spans 8 GiB
PAGE_BYTES = PAGE_ENTRIES * 4
PAGE_NODE = 1 << 32  # node ids of pages in meta.db start here; below are leaves

ENTRY = np.dtype("<u8")
CRC = np.dtype("<u4")
NODE_ID = np.dtype("<u4")

ZERO_GRAIN = bytes(UNIT)
ZERO_CRC = crc32c(ZERO_GRAIN)

# ---------------------------------------------------------------------------------------------------- data file

_DATA_HEADER = struct.Struct("<8sI16sI")  # magic, version, pool uuid, device id; then crc32c of these
_DATA_MAGIC = b"BYRDDATA"
_U32 = struct.Struct("<I")


def pack_data_header(pool: UUID, device: int) -> bytes:
    body = _DATA_HEADER.pack(_DATA_MAGIC, VERSION, pool.bytes, device)
    return (body + _U32.pack(crc32c(body))).ljust(UNIT, b"\0")


def parse_data_header(block: bytes) -> tuple[UUID, int]:
    """(pool uuid, device id). Raises FormatError."""
    body = block[: _DATA_HEADER.size]
    if len(block) < UNIT or _U32.unpack_from(block, _DATA_HEADER.size)[0] != crc32c(body):
        raise FormatError("data header: checksum does not match")
    magic, version, pool, device = _DATA_HEADER.unpack(body)
    if magic != _DATA_MAGIC or version != VERSION:
        raise FormatError(f"data header: magic {magic!r}, version {version}; known is version {VERSION}")
    return UUID(bytes=pool), device


# ---------------------------------------------------------------------------------------------------- nodes


def pack_node(body: bytes) -> bytes:
    """A node's blob: SQLite has no page checksums by default, so each carries its own."""
    return _U32.pack(crc32c(body)) + body


def parse_node(blob: bytes, length: int) -> memoryview:
    """The node's body. Raises FormatError."""
    if len(blob) != 4 + length:
        raise FormatError(f"node of {len(blob)} bytes; allowed are {4 + length}")
    body = memoryview(blob)[4:]
    if crc32c(body) != _U32.unpack_from(blob)[0]:
        raise FormatError("node: checksum does not match")
    return body


# ---------------------------------------------------------------------------------------------------- journal

_HEADER = struct.Struct("<4sIQIIQQQII8x")
HEADER_BYTES = _HEADER.size
JOURNAL_MAGIC = b"BYJB"
_CRC_FROM = 8  # the crc covers everything behind itself: header and records, not the padding


@dataclass(frozen=True, slots=True)
class BatchHeader:
    crc: int
    epoch: int
    length: int
    """Bytes of header and records."""
    seq: int
    synced_seq: int
    """Every batch up to this one was durable when this one was formed."""
    prev_crc: int


def pool_tag(pool: UUID) -> int:
    """What a batch carries of the pool's uuid, so that a journal of another pool is never replayed."""
    return int(struct.unpack("<Q", pool.bytes[:8])[0])


def pack_batch(
    records: list[bytes], *, epoch: int, seq: int, synced_seq: int, tag: int, prev_crc: int
) -> tuple[bytes, int]:
    """(batch padded to whole sectors, its crc)."""
    body = b"".join(records)
    length = HEADER_BYTES + len(body)
    header = _HEADER.pack(JOURNAL_MAGIC, 0, epoch, length, len(records), seq, synced_seq, tag, prev_crc, VERSION)
    crc = crc32c(body, crc32c(header[_CRC_FROM:]))
    padding = bytes(-length % SECTOR)
    return b"".join((JOURNAL_MAGIC, _U32.pack(crc), header[_CRC_FROM:], body, padding)), crc


def parse_batch(journal: memoryview, offset: int, tag: int) -> BatchHeader | None:
    """The header of a whole, intact batch of this pool at ``offset``; None if there is none."""
    if journal[offset : offset + 4] != JOURNAL_MAGIC or len(journal) - offset < HEADER_BYTES:
        return None
    _, crc, epoch, length, _, seq, synced_seq, its_tag, prev_crc, version = _HEADER.unpack_from(journal, offset)
    if its_tag != tag or version != VERSION or not HEADER_BYTES <= length <= len(journal) - offset:
        return None
    if crc32c(journal[offset + _CRC_FROM : offset + length]) != crc:
        return None
    return BatchHeader(crc, epoch, length, seq, synced_seq, prev_crc)


# ---------------------------------------------------------------------------------------------------- records

_WRITE, _TRIM, _CREATE, _SNAP, _CLONE, _ROLLBACK, _RESIZE, _DELETE, _PUT, _ERASE = 1, 2, 5, 6, 7, 8, 9, 10, 11, 12
# 3 is REMAP and 4 is COPY: kept free for relocation and copies, which nothing writes so far.

_WRITE_RECORD = struct.Struct("<BxxxIIxxxxQQ")  # kind, map, grains, first grain, first entry; then crc32c of each
_TRIM_RECORD = struct.Struct("<BxxxIQQ")  # kind, map, first grain, grains
_SIZE_RECORD = struct.Struct("<BBxxIQ")  # kind, log2 of the grain, map, size in bytes: CREATE, RESIZE
_PAIR_RECORD = struct.Struct("<BxxxII4x")  # kind, map, source: SNAP, CLONE, ROLLBACK; DELETE with source 0
_TEXT_RECORD = struct.Struct("<BxHII4x")  # kind, lengths of kind, key, value: PUT, DELETE of the catalogue

_PAIRS: dict[int, type[SnapMap] | type[CloneMap] | type[RollbackMap]] = {
    _SNAP: SnapMap,
    _CLONE: CloneMap,
    _ROLLBACK: RollbackMap,
}

pack_one_write = struct.Struct("<BxxxIIxxxxQQI").pack
"""The commonest record, one grain, in one call: bench/store.py, 250 ns."""
WRITE_KIND = _WRITE


def pack_write(map_number: int, grain: int, entry: int, crcs: Crcs) -> bytes:
    return _WRITE_RECORD.pack(_WRITE, map_number, len(crcs), grain, entry) + crcs.astype(CRC, copy=False).tobytes()


def pack_trim(map_number: int, grain: int, count: int) -> bytes:
    return _TRIM_RECORD.pack(_TRIM, map_number, grain, count)


def pack_edit(edit: Edit) -> bytes:
    match edit:
        case CreateMap(number, size):
            return _SIZE_RECORD.pack(_CREATE, UNIT_SHIFT, number, size)
        case ResizeMap(number, size):
            return _SIZE_RECORD.pack(_RESIZE, UNIT_SHIFT, number, size)
        case SnapMap(number, source):
            return _PAIR_RECORD.pack(_SNAP, number, source)
        case CloneMap(number, source):
            return _PAIR_RECORD.pack(_CLONE, number, source)
        case RollbackMap(number, source):
            return _PAIR_RECORD.pack(_ROLLBACK, number, source)
        case DeleteMap(number):
            return _PAIR_RECORD.pack(_DELETE, number, 0)
        case Put(kind, key, value):
            return _pack_text(_PUT, kind, key, value)
        case Delete(kind, key):
            return _pack_text(_ERASE, kind, key, b"")


def _pack_text(kind: int, name: str, key: str, value: bytes) -> bytes:
    texts = name.encode(), key.encode()
    return _TEXT_RECORD.pack(kind, len(texts[0]), len(texts[1]), len(value)) + b"".join((*texts, value))


def parse_records(body: memoryview) -> Iterator[Record]:
    """The records of an intact batch. Raises FormatError when they are none of ours (a newer version's, say)."""
    at = 0
    while at < len(body):
        try:
            record, at = _parse_record(body, at)
        except (struct.error, ValueError) as error:
            raise FormatError(f"journal record of kind {body[at]}: {error}") from error
        yield record


def _parse_record(body: memoryview, at: int) -> tuple[Record, int]:
    kind = body[at]
    if kind == _WRITE:
        _, number, count, grain, entry = _WRITE_RECORD.unpack_from(body, at)
        at += _WRITE_RECORD.size
        crcs = np.frombuffer(body, CRC, count, at).astype(np.uint32)
        return Write(number, grain, entry, crcs), at + 4 * count
    if kind == _TRIM:
        _, number, grain, count = _TRIM_RECORD.unpack_from(body, at)
        return Trim(number, grain, count), at + _TRIM_RECORD.size
    if kind in (_CREATE, _RESIZE):
        _, shift, number, size = _SIZE_RECORD.unpack_from(body, at)
        if shift != UNIT_SHIFT:
            raise FormatError(f"grain of 2^{shift} bytes; known is 2^{UNIT_SHIFT}")
        return (CreateMap if kind == _CREATE else ResizeMap)(number, size), at + _SIZE_RECORD.size
    if kind in _PAIRS:
        _, number, source = _PAIR_RECORD.unpack_from(body, at)
        return _PAIRS[kind](number, source), at + _PAIR_RECORD.size
    if kind == _DELETE:
        return DeleteMap(_PAIR_RECORD.unpack_from(body, at)[1]), at + _PAIR_RECORD.size
    if kind in (_PUT, _ERASE):
        return _parse_text(body, at, kind)
    raise FormatError("unknown kind")


def _parse_text(body: memoryview, at: int, kind: int) -> tuple[Put | Delete, int]:
    _, name_length, key_length, value_length = _TEXT_RECORD.unpack_from(body, at)
    at += _TEXT_RECORD.size
    end = at + name_length + key_length + value_length
    if end > len(body):
        raise FormatError(f"text ends {end - len(body)} bytes behind the batch")
    name = bytes(body[at : at + name_length]).decode()
    key = bytes(body[at + name_length : at + name_length + key_length]).decode()
    if kind == _ERASE:
        return Delete(name, key), end
    return Put(name, key, bytes(body[end - value_length : end])), end
