"""Logout Request and Logout Response (RFC 7143 11.14, 11.15)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Const, Int8ub, Int16ub, Int32ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import Opcode, always_final, request, response, segment_lengths


class LogoutReason(IntEnum):
    """RFC 7143 11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutStatus(IntEnum):
    """RFC 7143 11.15.1."""

    SUCCESS = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


@layout(
    Struct(
        request(Opcode.LOGOUT_REQUEST),
        BitStruct("final" / Const(1, BitsInteger(1)), "reason" / BitsInteger(7)),
        Padding(2),
        *segment_lengths(),
        Padding(8),
        "initiator_task_tag" / Int32ub,
        "cid" / Int16ub,
        Padding(2),
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        Padding(16),
    )
)
class LogoutRequest(FixedLayout):
    """RFC 7143 11.14."""

    immediate: bool = False
    reason: int = LogoutReason.CLOSE_SESSION
    total_ahs_length: int = 0
    data_segment_length: int = 0
    initiator_task_tag: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@layout(
    Struct(
        response(Opcode.LOGOUT_RESPONSE),
        always_final(),
        "response" / Int8ub,
        Padding(1),
        *segment_lengths(),
        Padding(8),
        "initiator_task_tag" / Int32ub,
        Padding(4),
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        Padding(4),
        "time_to_wait" / Int16ub,
        "time_to_retain" / Int16ub,
        Padding(4),
    )
)
class LogoutResponse(FixedLayout):
    """RFC 7143 11.15. Times are in seconds."""

    response: int = LogoutStatus.SUCCESS
    total_ahs_length: int = 0
    data_segment_length: int = 0
    initiator_task_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    time_to_wait: int = 0
    time_to_retain: int = 0
