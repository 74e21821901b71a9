"""Asynchronous Message (RFC 7143 11.9)."""

from __future__ import annotations

from enum import IntEnum

from construct import Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import RESERVED_TAG, Opcode, always_final, response, segment_lengths


class AsyncEvent(IntEnum):
    """RFC 7143 11.9.1."""

    SCSI = 0
    REQUEST_LOGOUT = 1
    DROP_CONNECTION = 2
    DROP_SESSION = 3
    REQUEST_NEGOTIATION = 4


@layout(
    Struct(
        response(Opcode.ASYNC_MESSAGE),
        always_final(),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Const(RESERVED_TAG, Int32ub),
        Padding(4),
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "event" / Int8ub,
        "vendor_code" / Int8ub,
        "parameter1" / Int16ub,
        "parameter2" / Int16ub,
        "parameter3" / Int16ub,
        Padding(4),
    )
)
class AsyncMessage(FixedLayout):
    """RFC 7143 11.9. The parameters' meaning depends on ``event`` (an AsyncEvent)."""

    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    event: int = AsyncEvent.SCSI
    vendor_code: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0
