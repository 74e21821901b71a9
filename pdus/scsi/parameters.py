"""Parameter data that is neither INQUIRY, mode nor sense: lists in and out of single commands."""

from __future__ import annotations

from construct import BitsInteger, BitStruct, Const, Flag, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout


@layout(Struct("returned_lba" / Int32ub, "logical_block_length" / Int32ub))
class ReadCapacity10Data(FixedLayout):
    """SBC-3, READ CAPACITY (10) parameter data. ``returned_lba`` is the last block's, ffffffffh if it does not fit."""

    returned_lba: int = 0
    logical_block_length: int = 0


@layout(
    Struct(
        "returned_lba" / Int64ub,
        "logical_block_length" / Int32ub,
        BitStruct(
            Padding(4),
            "p_type" / BitsInteger(3),
            "prot_en" / Flag,
            "p_i_exponent" / BitsInteger(4),
            "logical_blocks_per_physical_block_exponent" / BitsInteger(4),
            "lbpme" / Flag,
            "lbprz" / Flag,
            "lowest_aligned_lba" / BitsInteger(14),
        ),
        Padding(16),
    )
)
class ReadCapacity16Data(FixedLayout):
    """SBC-3, READ CAPACITY (16) parameter data."""

    returned_lba: int = 0
    logical_block_length: int = 0
    p_type: int = 0
    prot_en: bool = False
    p_i_exponent: int = 0
    logical_blocks_per_physical_block_exponent: int = 0
    lbpme: bool = False
    lbprz: bool = False
    lowest_aligned_lba: int = 0


@layout(Struct("lun_list_length" / Int32ub, Padding(4)))
class ReportLunsHeader(FixedLayout):
    """SPC-4, REPORT LUNS parameter data; ``lun_list_length`` bytes of LUNs follow."""

    lun_list_length: int = 0


@layout(Struct("unmap_data_length" / Int16ub, "unmap_block_descriptor_data_length" / Int16ub, Padding(4)))
class UnmapHeader(FixedLayout):
    """SBC-3, UNMAP parameter list; lengths in bytes, the first without itself."""

    unmap_data_length: int = 0
    unmap_block_descriptor_data_length: int = 0


@layout(Struct("lba" / Int64ub, "number_of_logical_blocks" / Int32ub, Padding(4)))
class UnmapBlockDescriptor(FixedLayout):
    """SBC-3, UNMAP block descriptor."""

    lba: int = 0
    number_of_logical_blocks: int = 0


@layout(Struct("command_data_length" / Int32ub))
class AllCommandsHeader(FixedLayout):
    """SPC-4, all_commands parameter data; ``command_data_length`` bytes of descriptors follow."""

    command_data_length: int = 0


@layout(
    Struct(
        "operation_code" / Int8ub,
        Padding(1),
        "service_action" / Int16ub,
        Padding(1),
        BitStruct(Padding(6), "ctdp" / Flag, "servactv" / Flag),
        "cdb_length" / Int16ub,
    )
)
class CommandDescriptor(FixedLayout):
    """SPC-4, command descriptor of all_commands parameter data."""

    operation_code: int = 0
    service_action: int = 0
    ctdp: bool = False
    servactv: bool = False
    cdb_length: int = 0


@layout(Struct(Padding(1), BitStruct("ctdp" / Flag, Padding(4), "support" / BitsInteger(3)), "cdb_size" / Int16ub))
class OneCommandHeader(FixedLayout):
    """SPC-4, one_command parameter data; ``cdb_size`` bytes of CDB usage data follow."""

    ctdp: bool = False
    support: int = 0
    cdb_size: int = 0


NOT_SUPPORTED = 1
SUPPORTED = 3  # in conformance with a standard


@layout(
    Struct(
        "descriptor_length" / Const(0x0A, Int16ub),
        Padding(1),
        "command_specific" / Int8ub,
        "nominal_command_processing_timeout" / Int32ub,
        "recommended_command_timeout" / Int32ub,
    )
)
class CommandTimeoutsDescriptor(FixedLayout):
    """SPC-4, command timeouts descriptor. Timeouts are in seconds; 0: none is stated."""

    command_specific: int = 0
    nominal_command_processing_timeout: int = 0
    recommended_command_timeout: int = 0


@layout(Struct("parameter_data_length" / Int32ub, Padding(4)))
class LbaStatusHeader(FixedLayout):
    """SBC-3, GET LBA STATUS parameter data; ``parameter_data_length`` counts the bytes after itself."""

    parameter_data_length: int = 0


@layout(
    Struct(
        "lba" / Int64ub,
        "blocks" / Int32ub,
        BitStruct(Padding(4), "provisioning_status" / BitsInteger(4)),
        Padding(3),
    )
)
class LbaStatusDescriptor(FixedLayout):
    """SBC-3, LBA status descriptor: ``blocks`` from ``lba`` are all in the same state."""

    lba: int = 0
    blocks: int = 0
    provisioning_status: int = 0


MAPPED = 0
DEALLOCATED = 1
