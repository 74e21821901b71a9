"""Vital product data pages (SPC-4, Vital product data; SBC-3, VPD parameters for direct access block devices).

A page is its four-byte header followed by its body; bodies of fixed length are declared here, the others are
descriptors joined together.
"""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Flag, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout


class VpdPage(IntEnum):
    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    EXTENDED_INQUIRY_DATA = 0x86
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


class CodeSet(IntEnum):
    """SPC-4, CODE SET field."""

    BINARY = 1
    ASCII = 2


class Association(IntEnum):
    """SPC-4, ASSOCIATION field."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1


class DesignatorType(IntEnum):
    """SPC-4, DESIGNATOR TYPE field."""

    T10_VENDOR_ID = 1
    NAA = 3
    RELATIVE_TARGET_PORT = 4
    TARGET_PORT_GROUP = 5


ISCSI_PROTOCOL_IDENTIFIER = 5


@layout(
    Struct(
        BitStruct("peripheral_qualifier" / BitsInteger(3), "peripheral_device_type" / BitsInteger(5)),
        "page_code" / Int8ub,
        "page_length" / Int16ub,
    )
)
class VpdHeader(FixedLayout):
    """What every page begins with. ``page_length`` is in bytes, without this header."""

    peripheral_qualifier: int = 0
    peripheral_device_type: int = 0
    page_code: int = 0
    page_length: int = 0


@layout(
    Struct(
        BitStruct(
            "protocol_identifier" / BitsInteger(4),
            "code_set" / BitsInteger(4),
            "piv" / Flag,
            Padding(1),
            "association" / BitsInteger(2),
            "designator_type" / BitsInteger(4),
        ),
        Padding(1),
        "designator_length" / Int8ub,
    )
)
class DesignationHeader(FixedLayout):
    """SPC-4, designation descriptor; the designator follows."""

    protocol_identifier: int = 0
    code_set: int = CodeSet.BINARY
    piv: bool = False
    association: int = Association.LOGICAL_UNIT
    designator_type: int = 0
    designator_length: int = 0


@layout(
    Struct(
        BitStruct(
            "naa" / BitsInteger(4),
            "ieee_company_id" / BitsInteger(24),
            "vendor_specific_identifier" / BitsInteger(36),
        ),
        "vendor_specific_identifier_extension" / Int64ub,
    )
)
class NaaRegisteredExtended(FixedLayout):
    """SPC-4, NAA IEEE Registered Extended designator."""

    naa: int = 6
    ieee_company_id: int = 0
    vendor_specific_identifier: int = 0
    vendor_specific_identifier_extension: int = 0


@layout(Struct(Padding(2), "number" / Int16ub))
class PortDesignator(FixedLayout):
    """SPC-4, relative target port designator and target port group designator."""

    number: int = 0


@layout(
    Struct(
        Padding(1),  # ACTIVATE_MICROCODE, SPT, GRD_CHK, APP_CHK, REF_CHK
        BitStruct(
            Padding(3),  # UASK_SUP, GROUP_SUP, PRIOR_SUP
            "headsup" / Flag,
            "ordsup" / Flag,
            "simpsup" / Flag,
            Padding(2),
            Padding(7),  # WU_SUP, CRD_SUP, NV_SUP
            "v_sup" / Flag,
            Padding(7),  # P_I_I_SUP
            "luiclr" / Flag,
        ),
        Padding(56),
    )
)
class ExtendedInquiryData(FixedLayout):
    """SPC-4, Extended INQUIRY Data VPD page, body."""

    headsup: bool = False
    ordsup: bool = False
    simpsup: bool = False
    v_sup: bool = False
    luiclr: bool = False


@layout(
    Struct(
        BitStruct(Padding(7), "wsnz" / Flag),
        "maximum_compare_and_write_length" / Int8ub,
        "optimal_transfer_length_granularity" / Int16ub,
        "maximum_transfer_length" / Int32ub,
        "optimal_transfer_length" / Int32ub,
        "maximum_prefetch_length" / Int32ub,
        "maximum_unmap_lba_count" / Int32ub,
        "maximum_unmap_block_descriptor_count" / Int32ub,
        "optimal_unmap_granularity" / Int32ub,
        BitStruct("ugavalid" / Flag, "unmap_granularity_alignment" / BitsInteger(31)),
        "maximum_write_same_length" / Int64ub,
        Padding(20),  # atomic limits: WRITE ATOMIC is not supported
    )
)
class BlockLimits(FixedLayout):
    """SBC-3, Block Limits VPD page, body. Lengths are in logical blocks."""

    wsnz: bool = False
    maximum_compare_and_write_length: int = 0
    optimal_transfer_length_granularity: int = 0
    maximum_transfer_length: int = 0
    optimal_transfer_length: int = 0
    maximum_prefetch_length: int = 0
    maximum_unmap_lba_count: int = 0
    maximum_unmap_block_descriptor_count: int = 0
    optimal_unmap_granularity: int = 0
    ugavalid: bool = False
    unmap_granularity_alignment: int = 0
    maximum_write_same_length: int = 0


@layout(
    Struct(
        "medium_rotation_rate" / Int16ub,
        "product_type" / Int8ub,
        BitStruct(Padding(4), "nominal_form_factor" / BitsInteger(4)),
        Padding(56),
    )
)
class BlockDeviceCharacteristics(FixedLayout):
    """SBC-3, Block Device Characteristics VPD page, body."""

    medium_rotation_rate: int = 0
    product_type: int = 0
    nominal_form_factor: int = 0


NON_ROTATING_MEDIUM = 1


@layout(
    Struct(
        "threshold_exponent" / Int8ub,
        BitStruct(
            "lbpu" / Flag,
            "lbpws" / Flag,
            "lbpws10" / Flag,
            "lbprz" / BitsInteger(3),
            "anc_sup" / Flag,
            "dp" / Flag,
        ),
        BitStruct(Padding(5), "provisioning_type" / BitsInteger(3)),
        Padding(1),
    )
)
class LogicalBlockProvisioning(FixedLayout):
    """SBC-3, Logical Block Provisioning VPD page, body. SBC-4 gave ``lbprz`` three bits; 1 means zeros in both."""

    threshold_exponent: int = 0
    lbpu: bool = False
    lbpws: bool = False
    lbpws10: bool = False
    lbprz: int = 0
    anc_sup: bool = False
    dp: bool = False
    provisioning_type: int = 0


THIN_PROVISIONED = 2
