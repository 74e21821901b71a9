"""Sense data formats (SPC-4, Sense data). Which condition is reported when is the device server's business."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Bytes, Const, Flag, Int8ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout


class SenseKey(IntEnum):
    """SPC-4, sense key descriptions."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


@layout(
    Struct(
        BitStruct("valid" / Flag, "response_code" / Const(0x70, BitsInteger(7))),
        Padding(1),
        BitStruct(Padding(4), "sense_key" / BitsInteger(4)),
        "information" / Int32ub,
        "additional_sense_length" / Const(10, Int8ub),
        "command_specific_information" / Int32ub,
        "additional_sense_code" / Int8ub,
        "additional_sense_code_qualifier" / Int8ub,
        Padding(1),
        "sense_key_specific" / Bytes(3),
    )
)
class FixedFormat(FixedLayout):
    """SPC-4, fixed format sense data: current information."""

    valid: bool = False
    sense_key: int = 0
    information: int = 0
    command_specific_information: int = 0
    additional_sense_code: int = 0
    additional_sense_code_qualifier: int = 0
    sense_key_specific: bytes = bytes(3)


@layout(
    Struct(
        BitStruct(Padding(1), "response_code" / Const(0x72, BitsInteger(7))),
        BitStruct(Padding(4), "sense_key" / BitsInteger(4)),
        "additional_sense_code" / Int8ub,
        "additional_sense_code_qualifier" / Int8ub,
        Padding(3),
        "additional_sense_length" / Int8ub,
    )
)
class DescriptorFormat(FixedLayout):
    """SPC-4, descriptor format sense data: current information. Descriptors follow."""

    sense_key: int = 0
    additional_sense_code: int = 0
    additional_sense_code_qualifier: int = 0
    additional_sense_length: int = 0


@layout(
    Struct(
        "descriptor_type" / Const(0x00, Int8ub),
        "additional_length" / Const(0x0A, Int8ub),
        BitStruct("valid" / Const(1, BitsInteger(1)), Padding(7)),
        Padding(1),
        "information" / Int64ub,
    )
)
class InformationDescriptor(FixedLayout):
    """SPC-4, information sense data descriptor."""

    information: int = 0


@layout(
    Struct(
        "descriptor_type" / Const(0x02, Int8ub),
        "additional_length" / Const(0x06, Int8ub),
        Padding(2),
        "sense_key_specific" / Bytes(3),
        Padding(1),
    )
)
class SenseKeySpecificDescriptor(FixedLayout):
    """SPC-4, sense key specific sense data descriptor."""

    sense_key_specific: bytes = bytes(3)


@layout(
    Struct(
        BitStruct(
            "sksv" / Const(1, BitsInteger(1)),
            "command_data" / Flag,
            Padding(2),
            "bpv" / Flag,
            "bit_pointer" / BitsInteger(3),
            "byte_pointer" / BitsInteger(16),
        ),
    )
)
class FieldPointer(FixedLayout):
    """SPC-4, field pointer sense key specific data (FIELD POINTER is ``byte_pointer`` here).

    ``command_data``: the field is in the CDB, not in parameter data.
    """

    command_data: bool = False
    bpv: bool = False
    bit_pointer: int = 0
    byte_pointer: int = 0
