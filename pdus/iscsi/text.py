"""Text negotiation on the wire: ``key=value`` pairs ended by NUL (RFC 7143 6.1), and the Text PDUs (11.10, 11.11)."""

from __future__ import annotations

from collections.abc import Iterable

from construct import BitStruct, Flag, Int32ub, Int64ub, Padding, Struct

from pdus.codec import Buffer, FixedLayout, layout
from pdus.errors import FormatError
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, request, response, segment_lengths

MAX_KEY = 63
"""Bytes of a key's name (RFC 7143 6.1)."""
MAX_VALUE = 8192
"""Bytes of a value that we still read: more than the 255 of RFC 7143 6.1, since CHAP's large binary values and
lists of addresses may be longer; a login PDU cannot carry more."""


def encode_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


def parse_pairs(data: Buffer) -> list[tuple[str, str]]:
    """The pairs of one whole text, in order. FormatError names the first that is malformed."""
    text = bytes(data)
    if text and not text.endswith(b"\0"):
        raise FormatError(f"text ends in {text[-20:]!r}, must end with NUL")
    return [_parse_pair(item) for item in text.split(b"\0") if item]


def _parse_pair(item: bytes) -> tuple[str, str]:
    key, equals, value = item.partition(b"=")
    if not equals or not key:
        raise FormatError(f"{item[:40]!r} is no key=value pair")
    if len(key) > MAX_KEY or len(value) > MAX_VALUE:
        raise FormatError(
            f"key of {len(key)} bytes with value of {len(value)}, at most {MAX_KEY} and {MAX_VALUE} are allowed"
        )
    try:
        return key.decode("ascii"), value.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{item[:40]!r} is not UTF-8") from None


_FLAGS = BitStruct("final" / Flag, "continue_" / Flag, Padding(6))


@layout(
    Struct(
        request(Opcode.TEXT_REQUEST),
        _FLAGS,
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        Padding(16),
    )
)
class TextRequest(FixedLayout):
    """RFC 7143 11.10."""

    immediate: bool = False
    final: bool = True
    continue_: bool = False
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@layout(
    Struct(
        response(Opcode.TEXT_RESPONSE),
        _FLAGS,
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        Padding(12),
    )
)
class TextResponse(FixedLayout):
    """RFC 7143 11.11."""

    final: bool = True
    continue_: bool = False
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
