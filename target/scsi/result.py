"""How a command ends: status, sense data, Data-In; and short words for the usual endings.

Sense data is in the fixed format because the Control mode page says D_SENSE=0 and cannot be changed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from blockstore.api import Buffer
from pdus.scsi.cdb import Cdb
from pdus.scsi.sense import FieldPointer
from target.scsi import sense
from target.scsi.sense import Condition


class Status(IntEnum):
    """SAM-5, Status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08


class Result(NamedTuple):
    """The end of one command. A named tuple because one is made per READ (0.2 µs; a frozen dataclass takes 0.7)."""

    status: int
    sense: bytes = b""
    data: Buffer | None = None


GOOD = Result(Status.GOOD)
BUSY = Result(Status.BUSY)
UNANSWERED = Result(-1)
"""No status may be sent: the task was revoked, or nobody knows whether its write happened. Compared by identity."""


def check_condition(condition: Condition, *, information: int | None = None, specific: bytes = bytes(3)) -> Result:
    return Result(Status.CHECK_CONDITION, condition.fixed(information=information, specific=specific))


def invalid_field_in_cdb(cdb: type[Cdb], name: str) -> Result:
    """CHECK CONDITION whose field pointer is where the declaration puts the field called ``name``."""
    byte, bit = cdb.field_pointer(name)
    return invalid_bit_in_cdb(byte, bit)


def invalid_bit_in_cdb(byte: int, bit: int) -> Result:
    pointer = FieldPointer(command_data=True, bpv=True, bit_pointer=bit, byte_pointer=byte)
    return check_condition(sense.INVALID_FIELD_IN_CDB, specific=pointer.encode())


def invalid_field_in_parameter_list(byte: int) -> Result:
    """``byte``: offset of the field in the parameter list."""
    pointer = FieldPointer(byte_pointer=byte)
    return check_condition(sense.INVALID_FIELD_IN_PARAMETER_LIST, specific=pointer.encode())


def data_in(data: bytes, allocation_length: int) -> Result:
    """GOOD with at most ``allocation_length`` bytes of ``data`` (SPC-4, ALLOCATION LENGTH field)."""
    return Result(Status.GOOD, b"", data[:allocation_length])
