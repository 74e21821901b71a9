"""The Basic Header Segment: what all PDUs share, and the opcodes (RFC 7143 11.2).

Each PDU's own 48 bytes are declared whole in the module named after it; the shared openings are built here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from construct import BitsInteger, BitStruct, Const, Flag, Int8ub, Int24ub, Padding, Struct

from pdus.codec import FixedLayout, layout

BHS_SIZE = 48
"""Bytes of every header, without AHS and digest."""
RESERVED_TAG = 0xFFFFFFFF
"""An Initiator or Target Task Tag, or Target Transfer Tag, that names nothing (RFC 7143 11.2.1.8)."""


class Opcode(IntEnum):
    """RFC 7143 11.2.1.2."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    READY_TO_TRANSFER = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


def request(opcode: Opcode) -> Any:
    """Byte 0 of an initiator's PDU: the immediate bit and the opcode."""
    return BitStruct(Padding(1), "immediate" / Flag, "opcode" / Const(int(opcode), BitsInteger(6)))


def response(opcode: Opcode) -> Any:
    """Byte 0 of a PDU that is never immediate (the bit is reserved)."""
    return BitStruct(Padding(2), "opcode" / Const(int(opcode), BitsInteger(6)))


def final_flag() -> Any:
    """Byte 1 of the PDUs in which only F has a meaning."""
    return BitStruct("final" / Flag, Padding(7))


def always_final() -> Any:
    """Byte 1 of the PDUs in which F is prescribed to be 1 and all else reserved."""
    return BitStruct("final" / Const(1, BitsInteger(1)), Padding(7))


def segment_lengths() -> tuple[Any, Any]:
    """Bytes 4 to 7: the AHS length in words, the data segment length in bytes without padding."""
    return "total_ahs_length" / Int8ub, "data_segment_length" / Int24ub


@layout(
    Struct(
        BitStruct(Padding(1), "immediate" / Flag, "opcode" / BitsInteger(6)),
        BitStruct("final" / Flag, Padding(7)),
        Padding(2),
        *segment_lengths(),
        Padding(40),
    )
)
class BasicHeader(FixedLayout):
    """What can be read of any PDU before its opcode is known."""

    immediate: bool = False
    opcode: int = 0
    final: bool = False
    total_ahs_length: int = 0
    data_segment_length: int = 0
