"""Logical unit numbers in eight bytes (SAM-5, Logical unit number; RFC 7143 11.2.1.7)."""

from __future__ import annotations

SIZE = 8  # bytes
UNKNOWN = -1
"""What ``decode_lun`` answers for an addressing method that is not understood."""

_PERIPHERAL = 0b00
_FLAT = 0b01
MAX_LUN = 0x3FFF  # flat space addressing ends here


def encode_lun(lun: int) -> bytes:
    """Peripheral device addressing (bus 0) below 256, flat space addressing up to 16383."""
    if not 0 <= lun <= MAX_LUN:
        raise ValueError(f"LUN {lun}: allowed is 0 to {MAX_LUN}")
    method = _PERIPHERAL if lun < 256 else _FLAT
    return (method << 14 | lun).to_bytes(2, "big") + bytes(SIZE - 2)


def decode_lun(field: bytes) -> int:
    """The LUN in an eight-byte field, or UNKNOWN: another bus, another method, or a second addressing level."""
    first = int.from_bytes(field[:2], "big")
    method, number = first >> 14, first & MAX_LUN
    if any(field[2:SIZE]):
        return UNKNOWN
    if method == _FLAT or (method == _PERIPHERAL and number < 256):
        return number
    return UNKNOWN
