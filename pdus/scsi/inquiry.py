"""Standard INQUIRY data (SPC-4, Standard INQUIRY data)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Bytes, Const, Flag, Int8ub, Int16ub, Padding, Struct

from pdus.codec import FixedLayout, layout


class PeripheralQualifier(IntEnum):
    """SPC-4, PERIPHERAL QUALIFIER field."""

    CONNECTED = 0b000
    NOT_CONNECTED = 0b001
    """The device server could have a logical unit there, and has none now."""
    NOT_SUPPORTED = 0b011


class PeripheralDeviceType(IntEnum):
    """SPC-4, PERIPHERAL DEVICE TYPE field."""

    DIRECT_ACCESS_BLOCK_DEVICE = 0x00
    UNKNOWN = 0x1F


class VersionDescriptor(IntEnum):
    """SPC-4, version descriptor values: no version claimed, each."""

    SAM_5 = 0x00A0
    ISCSI = 0x0960
    SPC_4 = 0x0460
    SBC_3 = 0x04C0


SPC_4_VERSION = 0x06


@layout(
    Struct(
        BitStruct("peripheral_qualifier" / BitsInteger(3), "peripheral_device_type" / BitsInteger(5)),
        Padding(1),  # RMB, LU_CONG
        "version" / Int8ub,
        BitStruct(Padding(2), "normaca" / Flag, "hisup" / Flag, "response_data_format" / Const(2, BitsInteger(4))),
        "additional_length" / Const(91, Int8ub),
        BitStruct(Padding(2), "tpgs" / BitsInteger(2), "third_party_copy" / Flag, Padding(2), "protect" / Flag),
        Padding(1),  # ENCSERV, VS, MULTIP
        BitStruct(Padding(6), "cmdque" / Flag, Padding(1)),
        "t10_vendor_identification" / Bytes(8),
        "product_identification" / Bytes(16),
        "product_revision_level" / Bytes(4),
        Padding(22),
        "version_descriptor_1" / Int16ub,
        "version_descriptor_2" / Int16ub,
        "version_descriptor_3" / Int16ub,
        "version_descriptor_4" / Int16ub,
        Padding(30),
    )
)
class StandardInquiryData(FixedLayout):
    """96 bytes; the last four version descriptors are not used."""

    peripheral_qualifier: int = PeripheralQualifier.CONNECTED
    peripheral_device_type: int = PeripheralDeviceType.DIRECT_ACCESS_BLOCK_DEVICE
    version: int = SPC_4_VERSION
    normaca: bool = False
    hisup: bool = False
    tpgs: int = 0
    third_party_copy: bool = False
    protect: bool = False
    cmdque: bool = False
    t10_vendor_identification: bytes = b" " * 8
    product_identification: bytes = b" " * 16
    product_revision_level: bytes = b" " * 4
    version_descriptor_1: int = 0
    version_descriptor_2: int = 0
    version_descriptor_3: int = 0
    version_descriptor_4: int = 0
