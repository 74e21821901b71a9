"""Reject (RFC 7143 11.17). Its data segment is the header of the PDU that it rejects."""

from __future__ import annotations

from enum import IntEnum

from construct import Const, Int8ub, Int32ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, always_final, response, segment_lengths


class RejectReason(IntEnum):
    """RFC 7143 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    OUT_OF_RESOURCES = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


@layout(
    Struct(
        response(Opcode.REJECT),
        always_final(),
        "reason" / Int8ub,
        Padding(1),
        *segment_lengths(),
        Padding(8),
        "initiator_task_tag" / Const(RESERVED_TAG, Int32ub),
        Padding(4),
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "data_sn" / Int32ub,
        Padding(8),
    )
)
class Reject(FixedLayout):
    """RFC 7143 11.17. ``data_sn`` is DataSN or R2TSN, reserved unless a data SNACK is rejected."""

    reason: int = RejectReason.PROTOCOL_ERROR
    total_ahs_length: int = 0
    data_segment_length: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
