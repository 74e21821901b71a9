"""How long a PDU is: header, additional headers, digests, data, padding (RFC 7143 11.2 and 11.1)."""

from __future__ import annotations

from pdus.iscsi.bhs import BHS_SIZE

PAD = (b"", b"\0\0\0", b"\0\0", b"\0")
"""Padding bytes by ``length & 3``: segments end on four-byte words with zeros."""
DIGEST_SIZE = 4


def padded(length: int) -> int:
    """``length`` bytes rounded up to whole four-byte words."""
    return (length + 3) & ~3


def header_size(total_ahs_length: int, header_digest: bool) -> int:
    """Bytes before the data segment. ``total_ahs_length`` is in words."""
    return BHS_SIZE + total_ahs_length * 4 + (DIGEST_SIZE if header_digest else 0)


def data_size(data_segment_length: int, data_digest: bool) -> int:
    """Bytes of the data segment on the wire; an absent segment has no digest either."""
    if data_segment_length == 0:
        return 0
    return padded(data_segment_length) + (DIGEST_SIZE if data_digest else 0)
