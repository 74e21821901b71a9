"""Sense conditions by name, and their encoding as sense data (SPC-4, Sense data).

The names are those of SPC-4's table of additional sense codes. Which store error or which field provokes which
condition is decided elsewhere (``errors.py``, ``result.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from pdus.scsi.sense import (
    DescriptorFormat,
    FixedFormat,
    InformationDescriptor,
    SenseKey,
    SenseKeySpecificDescriptor,
)

_FIXED_INFORMATION_LIMIT = 1 << 32  # INFORMATION has four bytes in the fixed format


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table: sense key, additional sense code and its qualifier."""

    name: str
    key: SenseKey
    asc: int
    ascq: int

    def fixed(self, *, information: int | None = None, specific: bytes = bytes(3)) -> bytes:
        """Fixed format sense data. An ``information`` over 32 bits leaves VALID zero, as SPC-4 demands."""
        valid = information is not None and information < _FIXED_INFORMATION_LIMIT
        return FixedFormat(
            valid=valid,
            sense_key=self.key,
            information=information if valid and information is not None else 0,
            additional_sense_code=self.asc,
            additional_sense_code_qualifier=self.ascq,
            sense_key_specific=specific,
        ).encode()

    def descriptor(self, *, information: int | None = None, specific: bytes = bytes(3)) -> bytes:
        """Descriptor format sense data, with descriptors only for what is there."""
        descriptors = b""
        if information is not None:
            descriptors += InformationDescriptor(information=information).encode()
        if any(specific):
            descriptors += SenseKeySpecificDescriptor(sense_key_specific=specific).encode()
        header = DescriptorFormat(
            sense_key=self.key,
            additional_sense_code=self.asc,
            additional_sense_code_qualifier=self.ascq,
            additional_sense_length=len(descriptors),
        )
        return header.encode() + descriptors


def _row(name: str, key: SenseKey, code: int) -> Condition:
    return Condition(name, key, code >> 8, code & 0xFF)


NO_ADDITIONAL_SENSE_INFORMATION = _row("no additional sense information", SenseKey.NO_SENSE, 0x0000)

LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY = _row("becoming ready", SenseKey.NOT_READY, 0x0401)

WRITE_ERROR = _row("write error", SenseKey.MEDIUM_ERROR, 0x0C00)
UNRECOVERED_READ_ERROR = _row("unrecovered read error", SenseKey.MEDIUM_ERROR, 0x1100)
INTERNAL_TARGET_FAILURE = _row("internal target failure", SenseKey.HARDWARE_ERROR, 0x4400)

PARAMETER_LIST_LENGTH_ERROR = _row("parameter list length error", SenseKey.ILLEGAL_REQUEST, 0x1A00)
INVALID_COMMAND_OPERATION_CODE = _row("invalid command operation code", SenseKey.ILLEGAL_REQUEST, 0x2000)
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = _row("logical block address out of range", SenseKey.ILLEGAL_REQUEST, 0x2100)
INVALID_FIELD_IN_CDB = _row("invalid field in CDB", SenseKey.ILLEGAL_REQUEST, 0x2400)
LOGICAL_UNIT_NOT_SUPPORTED = _row("logical unit not supported", SenseKey.ILLEGAL_REQUEST, 0x2500)
INVALID_FIELD_IN_PARAMETER_LIST = _row("invalid field in parameter list", SenseKey.ILLEGAL_REQUEST, 0x2600)
SAVING_PARAMETERS_NOT_SUPPORTED = _row("saving parameters not supported", SenseKey.ILLEGAL_REQUEST, 0x3900)
INVALID_MESSAGE_ERROR = _row("invalid message error", SenseKey.ILLEGAL_REQUEST, 0x4900)

POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = _row("power on or reset occurred", SenseKey.UNIT_ATTENTION, 0x2900)
BUS_DEVICE_RESET_FUNCTION_OCCURRED = _row("bus device reset function occurred", SenseKey.UNIT_ATTENTION, 0x2903)
I_T_NEXUS_LOSS_OCCURRED = _row("I_T nexus loss occurred", SenseKey.UNIT_ATTENTION, 0x2907)
MODE_PARAMETERS_CHANGED = _row("mode parameters changed", SenseKey.UNIT_ATTENTION, 0x2A01)
CAPACITY_DATA_HAS_CHANGED = _row("capacity data has changed", SenseKey.UNIT_ATTENTION, 0x2A09)
COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = _row("commands cleared by another initiator", SenseKey.UNIT_ATTENTION, 0x2F00)
REPORTED_LUNS_DATA_HAS_CHANGED = _row("reported LUNs data has changed", SenseKey.UNIT_ATTENTION, 0x3F0E)

WRITE_PROTECTED = _row("write protected", SenseKey.DATA_PROTECT, 0x2700)
SPACE_ALLOCATION_FAILED_WRITE_PROTECT = _row("space allocation failed", SenseKey.DATA_PROTECT, 0x2707)
INCORRECT_AMOUNT_OF_DATA = _row("incorrect amount of data", SenseKey.ABORTED_COMMAND, 0x0C0D)
MISCOMPARE_DURING_VERIFY_OPERATION = _row("miscompare during verify operation", SenseKey.MISCOMPARE, 0x1D00)
