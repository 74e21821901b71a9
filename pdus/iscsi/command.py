"""SCSI Command and SCSI Response (RFC 7143 11.3, 11.4)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Bytes, Const, Flag, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import Opcode, request, response, segment_lengths


class TaskAttribute(IntEnum):
    """RFC 7143 11.3.1."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class ServiceResponse(IntEnum):
    """RFC 7143 11.4.3."""

    COMPLETED = 0
    TARGET_FAILURE = 1


class AhsType(IntEnum):
    """RFC 7143 11.2.2.1."""

    EXTENDED_CDB = 1
    BIDIRECTIONAL_READ_LENGTH = 2


@layout(
    Struct(
        request(Opcode.SCSI_COMMAND),
        BitStruct("final" / Flag, "read" / Flag, "write" / Flag, Padding(2), "attribute" / BitsInteger(3)),
        Padding(2),
        *segment_lengths(),
        "lun" / Int64ub,
        "initiator_task_tag" / Int32ub,
        "expected_data_transfer_length" / Int32ub,
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        "cdb" / Bytes(16),
    )
)
class ScsiCommand(FixedLayout):
    """RFC 7143 11.3. ``expected_data_transfer_length`` is in bytes; ``attribute`` is a TaskAttribute."""

    immediate: bool = False
    final: bool = True
    read: bool = False
    write: bool = False
    attribute: int = TaskAttribute.SIMPLE
    total_ahs_length: int = 0
    data_segment_length: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    expected_data_transfer_length: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    cdb: bytes = bytes(16)


@layout(
    Struct(
        response(Opcode.SCSI_RESPONSE),
        BitStruct(
            "final" / Const(1, BitsInteger(1)),
            Padding(2),
            "bidirectional_overflow" / Flag,
            "bidirectional_underflow" / Flag,
            "overflow" / Flag,
            "underflow" / Flag,
            Padding(1),
        ),
        "response" / Int8ub,
        "status" / Int8ub,
        *segment_lengths(),
        "status_qualifier" / Int16ub,
        Padding(6),
        "initiator_task_tag" / Int32ub,
        "snack_tag" / Int32ub,
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "exp_data_sn" / Int32ub,
        "bidirectional_read_residual_count" / Int32ub,
        "residual_count" / Int32ub,
    )
)
class ScsiResponse(FixedLayout):
    """RFC 7143 11.4 (the status qualifier: RFC 7144 5.2)."""

    bidirectional_overflow: bool = False
    bidirectional_underflow: bool = False
    overflow: bool = False
    underflow: bool = False
    response: int = ServiceResponse.COMPLETED
    status: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    status_qualifier: int = 0
    initiator_task_tag: int = 0
    snack_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    exp_data_sn: int = 0
    bidirectional_read_residual_count: int = 0
    residual_count: int = 0
