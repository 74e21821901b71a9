"""Task Management Function Request and Response (RFC 7143 11.5, 11.6; functions 9 to 12: RFC 7144 4)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Const, Int8ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, always_final, request, response, segment_lengths


class Function(IntEnum):
    """RFC 7143 11.5.1."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class FunctionResponse(IntEnum):
    """RFC 7143 11.6.1."""

    COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    REJECTED = 255


@layout(
    Struct(
        request(Opcode.TASK_MANAGEMENT_REQUEST),
        BitStruct("final" / Const(1, BitsInteger(1)), "function" / BitsInteger(7)),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "referenced_task_tag" / Int32ub,
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        "ref_cmd_sn" / Int32ub,
        "exp_data_sn" / Int32ub,
        Padding(8),
    )
)
class TaskManagementRequest(FixedLayout):
    """RFC 7143 11.5. ``function`` is a Function, or a number that we do not support."""

    immediate: bool = False
    function: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    referenced_task_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0


@layout(
    Struct(
        response(Opcode.TASK_MANAGEMENT_RESPONSE),
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
        Padding(12),
    )
)
class TaskManagementResponse(FixedLayout):
    """RFC 7143 11.6. Never carries data (Linux treats that as a protocol error)."""

    response: int = FunctionResponse.COMPLETE
    total_ahs_length: int = 0
    data_segment_length: int = 0
    initiator_task_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
