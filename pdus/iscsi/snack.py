"""SNACK Request (RFC 7143 11.16). At ErrorRecoveryLevel 0 it is only ever rejected."""

from __future__ import annotations

from construct import BitsInteger, BitStruct, Const, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, request, segment_lengths


@layout(
    Struct(
        request(Opcode.SNACK_REQUEST),
        BitStruct("final" / Const(1, BitsInteger(1)), Padding(3), "kind" / BitsInteger(4)),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "target_transfer_tag" / Int32ub,
        Padding(4),
        "exp_stat_sn" / Int32ub,
        Padding(8),
        "beg_run" / Int32ub,
        "run_length" / Int32ub,
    )
)
class SnackRequest(FixedLayout):
    """RFC 7143 11.16."""

    immediate: bool = False
    kind: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    exp_stat_sn: int = 0
    beg_run: int = 0
    run_length: int = 0
