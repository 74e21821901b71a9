"""CRC32C header and data digests (RFC 7143 13.1).

The CRC travels as the little-endian word of the reflected Castagnoli CRC; the data digest covers the padding.
"""

from __future__ import annotations

from crc32c import crc32c

from pdus.codec import Buffer


def digest(*parts: Buffer) -> bytes:
    """The four digest bytes over ``parts`` in order."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value.to_bytes(4, "little")
