"""SCSI Data-Out and Data-In (RFC 7143 11.7)."""

from __future__ import annotations

from construct import BitStruct, Flag, Int8ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, final_flag, request, response, segment_lengths


@layout(
    Struct(
        request(Opcode.DATA_OUT),
        final_flag(),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        Padding(4),
        "exp_stat_sn" / Int32ub,
        Padding(4),
        "data_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        Padding(4),
    )
)
class DataOut(FixedLayout):
    """RFC 7143 11.7.1. Never immediate: its I bit is reserved, but senders may set it."""

    immediate: bool = False
    final: bool = False
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    exp_stat_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0


@layout(
    Struct(
        response(Opcode.DATA_IN),
        BitStruct(
            "final" / Flag, "acknowledge" / Flag, Padding(3), "overflow" / Flag, "underflow" / Flag, "has_status" / Flag
        ),
        Padding(1),
        "status" / Int8ub,
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "data_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        "residual_count" / Int32ub,
    )
)
class DataIn(FixedLayout):
    """RFC 7143 11.7.2. ``has_status`` is the S bit."""

    final: bool = False
    acknowledge: bool = False
    overflow: bool = False
    underflow: bool = False
    has_status: bool = False
    status: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0
    residual_count: int = 0
