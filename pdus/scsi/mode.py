"""Mode parameter lists: headers, block descriptors and pages (SPC-4 and SBC-3, Mode parameters)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Const, Flag, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Padding, Struct

from pdus.codec import FixedLayout, layout


class ModePage(IntEnum):
    READ_WRITE_ERROR_RECOVERY = 0x01
    CACHING = 0x08
    CONTROL = 0x0A
    INFORMATIONAL_EXCEPTIONS_CONTROL = 0x1C
    ALL = 0x3F


ALL_SUBPAGES = 0xFF


class PageControl(IntEnum):
    """SPC-4, PC field of MODE SENSE."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


def _device_specific() -> BitStruct:
    """DEVICE-SPECIFIC PARAMETER byte of direct access block devices (SBC-3)."""
    return BitStruct("wp" / Flag, Padding(2), "dpofua" / Flag, Padding(4))


@layout(Struct("mode_data_length" / Int8ub, Padding(1), _device_specific(), "block_descriptor_length" / Int8ub))
class ModeParameterHeader6(FixedLayout):
    """``mode_data_length`` counts the bytes after itself."""

    mode_data_length: int = 0
    wp: bool = False
    dpofua: bool = False
    block_descriptor_length: int = 0


@layout(
    Struct(
        "mode_data_length" / Int16ub,
        Padding(1),
        _device_specific(),
        BitStruct(Padding(7), "longlba" / Flag),
        Padding(1),
        "block_descriptor_length" / Int16ub,
    )
)
class ModeParameterHeader10(FixedLayout):
    """``mode_data_length`` counts the bytes after itself."""

    mode_data_length: int = 0
    wp: bool = False
    dpofua: bool = False
    longlba: bool = False
    block_descriptor_length: int = 0


@layout(Struct("number_of_logical_blocks" / Int32ub, Padding(1), "logical_block_length" / Int24ub))
class ShortBlockDescriptor(FixedLayout):
    """SBC-3, short LBA mode parameter block descriptor. ffffffffh blocks: more than fit."""

    number_of_logical_blocks: int = 0
    logical_block_length: int = 0


@layout(Struct("number_of_logical_blocks" / Int64ub, Padding(4), "logical_block_length" / Int32ub))
class LongBlockDescriptor(FixedLayout):
    """SBC-3, long LBA mode parameter block descriptor."""

    number_of_logical_blocks: int = 0
    logical_block_length: int = 0


def _page(code: ModePage, length: int) -> tuple[BitStruct, object]:
    return BitStruct(Padding(2), "page_code" / Const(int(code), BitsInteger(6))), "page_length" / Const(length, Int8ub)


@layout(Struct(*_page(ModePage.READ_WRITE_ERROR_RECOVERY, 0x0A), BitStruct("awre" / Flag, Padding(7)), Padding(9)))
class ReadWriteErrorRecoveryPage(FixedLayout):
    """SBC-3, Read-Write Error Recovery mode page; nothing is retried and nothing corrected by transfer."""

    awre: bool = False


@layout(
    Struct(
        *_page(ModePage.CACHING, 0x12),
        BitStruct(Padding(5), "wce" / Flag, Padding(1), "rcd" / Flag),
        Padding(9),
        BitStruct(Padding(2), "dra" / Flag, Padding(5)),
        Padding(7),
    )
)
class CachingPage(FixedLayout):
    """SBC-3, Caching mode page."""

    wce: bool = False
    rcd: bool = False
    dra: bool = False


@layout(
    Struct(
        *_page(ModePage.CONTROL, 0x0A),
        BitStruct("tst" / BitsInteger(3), Padding(2), "d_sense" / Flag, Padding(2)),
        BitStruct("queue_algorithm_modifier" / BitsInteger(4), Padding(4)),
        BitStruct(Padding(4), "swp" / Flag, Padding(3)),
        BitStruct(Padding(1), "tas" / Flag, Padding(6)),
        Padding(2),
        "busy_timeout_period" / Int16ub,
        Padding(2),
    )
)
class ControlPage(FixedLayout):
    """SPC-4, Control mode page. ``busy_timeout_period`` is in units of 100 ms."""

    tst: int = 0
    d_sense: bool = False
    queue_algorithm_modifier: int = 0
    swp: bool = False
    tas: bool = False
    busy_timeout_period: int = 0


@layout(
    Struct(
        *_page(ModePage.INFORMATIONAL_EXCEPTIONS_CONTROL, 0x0A),
        BitStruct(Padding(4), "dexcpt" / Flag, Padding(3)),
        BitStruct(Padding(4), "mrie" / BitsInteger(4)),
        Padding(8),
    )
)
class InformationalExceptionsControlPage(FixedLayout):
    """SPC-4, Informational Exceptions Control mode page."""

    dexcpt: bool = False
    mrie: int = 0
