"""Additional header segments of a SCSI Command: extended CDB and bidirectional read length (RFC 7143 11.2.2).

Unknown types are skipped. Invariant: a segment that reaches past the header's end is a FormatError, never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pdus.codec import Buffer
from pdus.errors import FormatError
from pdus.iscsi.command import AhsType
from pdus.iscsi.framing import padded

_PREFIX = 3  # bytes: AHSLength and AHSType
_RESERVED = 1  # byte that opens AHS-Specific of both known types; AHSLength counts it
_MAX_CDB = 260 - 16  # bytes beyond the first 16 (SPC-4, variable length CDB: 260 at most)


@dataclass(frozen=True, slots=True)
class AdditionalHeaders:
    """``cdb`` continues the CDB behind its first 16 bytes; ``read_length`` is in bytes."""

    cdb: bytes = b""
    read_length: int = 0


def read_additional_headers(data: Buffer) -> AdditionalHeaders:
    """Read all segments. FormatError when one is malformed."""
    cdb, read_length = b"", 0
    for kind, specific in _segments(bytes(data)):
        if kind == AhsType.EXTENDED_CDB:
            if cdb or not 0 < len(specific) <= _MAX_CDB:
                raise FormatError(f"extended CDB of {len(specific)} bytes, allowed is one of 1..{_MAX_CDB}")
            cdb = specific
        elif kind == AhsType.BIDIRECTIONAL_READ_LENGTH:
            if len(specific) != 4:
                raise FormatError(f"bidirectional read length of {len(specific)} bytes, allowed are 4")
            read_length = int.from_bytes(specific, "big")
    return AdditionalHeaders(cdb, read_length)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 2], "big")
        end = position + _PREFIX + length
        if length < _RESERVED or end > len(data):
            raise FormatError(f"additional header of {length} bytes at {position}, header has {len(data)}")
        yield data[position + 2], data[position + _PREFIX + _RESERVED : end]
        position = padded(end)
