"""NOP-Out and NOP-In (RFC 7143 11.18, 11.19)."""

from __future__ import annotations

from construct import Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, always_final, request, response, segment_lengths


@layout(
    Struct(
        request(Opcode.NOP_OUT),
        always_final(),
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
class NopOut(FixedLayout):
    """RFC 7143 11.18."""

    immediate: bool = False
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@layout(
    Struct(
        response(Opcode.NOP_IN),
        always_final(),
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
class NopIn(FixedLayout):
    """RFC 7143 11.19. As an answer it echoes the ITT and its TTT is reserved; as a ping it is the other way round."""

    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
