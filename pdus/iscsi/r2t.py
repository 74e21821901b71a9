"""Ready To Transfer (RFC 7143 11.8)."""

from __future__ import annotations

from construct import Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import Opcode, always_final, response, segment_lengths


@layout(
    Struct(
        response(Opcode.READY_TO_TRANSFER),
        always_final(),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "r2t_sn" / Int32ub,
        "buffer_offset" / Int32ub,
        "desired_data_transfer_length" / Int32ub,
    )
)
class ReadyToTransfer(FixedLayout):
    """RFC 7143 11.8. ``stat_sn`` is the next one, not consumed; ``lun`` is the command's."""

    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    r2t_sn: int = 0
    buffer_offset: int = 0
    desired_data_transfer_length: int = 0
