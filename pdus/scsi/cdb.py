"""Command descriptor blocks: one declaration per command that the device server knows.

Only bytes and names: what a command does stands in ``target/scsi/commands.py``. Field names are those of SPC-4 and
SBC-3. Reserved and obsolete bits are unnamed; so is the CONTROL byte: NACA is not supported, and the rest of it is
obsolete or vendor specific. The usage data of REPORT SUPPORTED OPERATION CODES is computed from these declarations.

Invariant: every class has ``opcode``, and those of an opcode with service actions have ``service_action``; decoding
checks both.
"""

from __future__ import annotations

from typing import Any, ClassVar

from construct import BitsInteger, BitStruct, Const, Flag, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout


class Cdb(FixedLayout):
    """Base of every CDB."""

    __slots__ = ()
    opcode: ClassVar[int]


def _opcode(value: int) -> Any:
    return "opcode" / Const(value, Int8ub)


def _service_action(value: int) -> Any:
    return BitStruct(Padding(3), "service_action" / Const(value, BitsInteger(5)))


def _group_number() -> Any:
    return BitStruct(Padding(3), "group_number" / BitsInteger(5))


def _immed() -> Any:
    return BitStruct(Padding(6), "immed" / Flag, Padding(1))


_CONTROL = Padding(1)


@layout(
    Struct(
        _opcode(0x00),
        Padding(4),
        _CONTROL,
    )
)
class TestUnitReady(Cdb):
    """SPC-4, TEST UNIT READY command."""


@layout(
    Struct(
        _opcode(0x03),
        BitStruct(Padding(7), "desc" / Flag),
        Padding(2),
        "allocation_length" / Int8ub,
        _CONTROL,
    )
)
class RequestSense(Cdb):
    """SPC-4, REQUEST SENSE command. ``allocation_length`` is in bytes."""

    desc: bool = False
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x12),
        BitStruct(Padding(7), "evpd" / Flag),
        "page_code" / Int8ub,
        "allocation_length" / Int16ub,
        _CONTROL,
    )
)
class Inquiry(Cdb):
    """SPC-4, INQUIRY command. ``allocation_length`` is in bytes."""

    evpd: bool = False
    page_code: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0xA0),
        Padding(1),
        "select_report" / Int8ub,
        Padding(3),
        "allocation_length" / Int32ub,
        Padding(1),
        _CONTROL,
    )
)
class ReportLuns(Cdb):
    """SPC-4, REPORT LUNS command. ``allocation_length`` is in bytes."""

    select_report: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x1A),
        BitStruct(Padding(4), "dbd" / Flag, Padding(3)),
        BitStruct("page_control" / BitsInteger(2), "page_code" / BitsInteger(6)),
        "subpage_code" / Int8ub,
        "allocation_length" / Int8ub,
        _CONTROL,
    )
)
class ModeSense6(Cdb):
    """SPC-4, MODE SENSE(6) command. ``allocation_length`` is in bytes."""

    dbd: bool = False
    page_control: int = 0
    page_code: int = 0
    subpage_code: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x5A),
        BitStruct(Padding(3), "llbaa" / Flag, "dbd" / Flag, Padding(3)),
        BitStruct("page_control" / BitsInteger(2), "page_code" / BitsInteger(6)),
        "subpage_code" / Int8ub,
        Padding(3),
        "allocation_length" / Int16ub,
        _CONTROL,
    )
)
class ModeSense10(Cdb):
    """SPC-4, MODE SENSE(10) command. ``allocation_length`` is in bytes."""

    llbaa: bool = False
    dbd: bool = False
    page_control: int = 0
    page_code: int = 0
    subpage_code: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0xA3),
        _service_action(0x0C),
        BitStruct("rctd" / Flag, Padding(4), "reporting_options" / BitsInteger(3)),
        "requested_operation_code" / Int8ub,
        "requested_service_action" / Int16ub,
        "allocation_length" / Int32ub,
        Padding(1),
        _CONTROL,
    )
)
class ReportSupportedOperationCodes(Cdb):
    """SPC-4, REPORT SUPPORTED OPERATION CODES command. ``allocation_length`` is in bytes."""

    rctd: bool = False
    reporting_options: int = 0
    requested_operation_code: int = 0
    requested_service_action: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x1B),
        BitStruct(Padding(7), "immed" / Flag),
        Padding(1),
        BitStruct(Padding(4), "power_condition_modifier" / BitsInteger(4)),
        BitStruct("power_condition" / BitsInteger(4), Padding(1), "no_flush" / Flag, "loej" / Flag, "start" / Flag),
        _CONTROL,
    )
)
class StartStopUnit(Cdb):
    """SBC-3, START STOP UNIT command."""

    immed: bool = False
    power_condition_modifier: int = 0
    power_condition: int = 0
    no_flush: bool = False
    loej: bool = False
    start: bool = False


@layout(
    Struct(
        _opcode(0x25),
        Padding(8),
        _CONTROL,
    )
)
class ReadCapacity10(Cdb):
    """SBC-3, READ CAPACITY (10) command; LOGICAL BLOCK ADDRESS and PMI are obsolete."""


@layout(
    Struct(
        _opcode(0x9E),
        _service_action(0x10),
        Padding(8),
        "allocation_length" / Int32ub,
        Padding(1),
        _CONTROL,
    )
)
class ReadCapacity16(Cdb):
    """SBC-3, READ CAPACITY (16) command. ``allocation_length`` is in bytes."""

    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x9E),
        _service_action(0x12),
        "lba" / Int64ub,
        "allocation_length" / Int32ub,
        Padding(1),
        _CONTROL,
    )
)
class GetLbaStatus(Cdb):
    """SBC-3, GET LBA STATUS command. ``allocation_length`` is in bytes."""

    lba: int = 0
    allocation_length: int = 0


@layout(
    Struct(
        _opcode(0x08),
        BitStruct(Padding(3), "lba" / BitsInteger(21)),
        "transfer_length" / Int8ub,
        _CONTROL,
    )
)
class Read6(Cdb):
    """SBC-3, READ (6) command. A ``transfer_length`` of 0 means 256 blocks."""

    lba: int = 0
    transfer_length: int = 0


@layout(
    Struct(
        _opcode(0x28),
        BitStruct("rdprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int32ub,
        _group_number(),
        "transfer_length" / Int16ub,
        _CONTROL,
    )
)
class Read10(Cdb):
    """SBC-3, READ (10) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    rdprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    group_number: int = 0
    transfer_length: int = 0


@layout(
    Struct(
        _opcode(0xA8),
        BitStruct("rdprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int32ub,
        "transfer_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Read12(Cdb):
    """SBC-3, READ (12) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    rdprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    transfer_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x88),
        BitStruct("rdprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int64ub,
        "transfer_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Read16(Cdb):
    """SBC-3, READ (16) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    rdprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    transfer_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x0A),
        BitStruct(Padding(3), "lba" / BitsInteger(21)),
        "transfer_length" / Int8ub,
        _CONTROL,
    )
)
class Write6(Cdb):
    """SBC-3, WRITE (6) command. A ``transfer_length`` of 0 means 256 blocks."""

    lba: int = 0
    transfer_length: int = 0


@layout(
    Struct(
        _opcode(0x2A),
        BitStruct("wrprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int32ub,
        _group_number(),
        "transfer_length" / Int16ub,
        _CONTROL,
    )
)
class Write10(Cdb):
    """SBC-3, WRITE (10) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    wrprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    group_number: int = 0
    transfer_length: int = 0


@layout(
    Struct(
        _opcode(0xAA),
        BitStruct("wrprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int32ub,
        "transfer_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Write12(Cdb):
    """SBC-3, WRITE (12) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    wrprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    transfer_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x8A),
        BitStruct("wrprotect" / BitsInteger(3), "dpo" / Flag, "fua" / Flag, Padding(3)),
        "lba" / Int64ub,
        "transfer_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Write16(Cdb):
    """SBC-3, WRITE (16) command. ``lba`` and ``transfer_length`` are in logical blocks."""

    wrprotect: int = 0
    dpo: bool = False
    fua: bool = False
    lba: int = 0
    transfer_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x2F),
        BitStruct("vrprotect" / BitsInteger(3), "dpo" / Flag, Padding(1), "bytchk" / BitsInteger(2), Padding(1)),
        "lba" / Int32ub,
        _group_number(),
        "verification_length" / Int16ub,
        _CONTROL,
    )
)
class Verify10(Cdb):
    """SBC-3, VERIFY (10) command. ``lba`` and ``verification_length`` are in logical blocks."""

    vrprotect: int = 0
    dpo: bool = False
    bytchk: int = 0
    lba: int = 0
    group_number: int = 0
    verification_length: int = 0


@layout(
    Struct(
        _opcode(0xAF),
        BitStruct("vrprotect" / BitsInteger(3), "dpo" / Flag, Padding(1), "bytchk" / BitsInteger(2), Padding(1)),
        "lba" / Int32ub,
        "verification_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Verify12(Cdb):
    """SBC-3, VERIFY (12) command. ``lba`` and ``verification_length`` are in logical blocks."""

    vrprotect: int = 0
    dpo: bool = False
    bytchk: int = 0
    lba: int = 0
    verification_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x8F),
        BitStruct("vrprotect" / BitsInteger(3), "dpo" / Flag, Padding(1), "bytchk" / BitsInteger(2), Padding(1)),
        "lba" / Int64ub,
        "verification_length" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class Verify16(Cdb):
    """SBC-3, VERIFY (16) command. ``lba`` and ``verification_length`` are in logical blocks."""

    vrprotect: int = 0
    dpo: bool = False
    bytchk: int = 0
    lba: int = 0
    verification_length: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x35),
        _immed(),
        "lba" / Int32ub,
        _group_number(),
        "number_of_logical_blocks" / Int16ub,
        _CONTROL,
    )
)
class SynchronizeCache10(Cdb):
    """SBC-3, SYNCHRONIZE CACHE (10) command. A ``number_of_logical_blocks`` of 0 means up to the last block."""

    immed: bool = False
    lba: int = 0
    group_number: int = 0
    number_of_logical_blocks: int = 0


@layout(
    Struct(
        _opcode(0x91),
        _immed(),
        "lba" / Int64ub,
        "number_of_logical_blocks" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class SynchronizeCache16(Cdb):
    """SBC-3, SYNCHRONIZE CACHE (16) command. A ``number_of_logical_blocks`` of 0 means up to the last block."""

    immed: bool = False
    lba: int = 0
    number_of_logical_blocks: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x41),
        BitStruct("wrprotect" / BitsInteger(3), "anchor" / Flag, "unmap" / Flag, Padding(3)),
        "lba" / Int32ub,
        _group_number(),
        "number_of_logical_blocks" / Int16ub,
        _CONTROL,
    )
)
class WriteSame10(Cdb):
    """SBC-3, WRITE SAME (10) command. A ``number_of_logical_blocks`` of 0 means up to the last block."""

    wrprotect: int = 0
    anchor: bool = False
    unmap: bool = False
    lba: int = 0
    group_number: int = 0
    number_of_logical_blocks: int = 0


@layout(
    Struct(
        _opcode(0x93),
        BitStruct("wrprotect" / BitsInteger(3), "anchor" / Flag, "unmap" / Flag, Padding(2), "ndob" / Flag),
        "lba" / Int64ub,
        "number_of_logical_blocks" / Int32ub,
        _group_number(),
        _CONTROL,
    )
)
class WriteSame16(Cdb):
    """SBC-3, WRITE SAME (16) command. A ``number_of_logical_blocks`` of 0 means up to the last block."""

    wrprotect: int = 0
    anchor: bool = False
    unmap: bool = False
    ndob: bool = False
    lba: int = 0
    number_of_logical_blocks: int = 0
    group_number: int = 0


@layout(
    Struct(
        _opcode(0x42),
        BitStruct(Padding(7), "anchor" / Flag),
        Padding(4),
        _group_number(),
        "parameter_list_length" / Int16ub,
        _CONTROL,
    )
)
class Unmap(Cdb):
    """SBC-3, UNMAP command. ``parameter_list_length`` is in bytes."""

    anchor: bool = False
    group_number: int = 0
    parameter_list_length: int = 0
