"""Sense data in its two formats."""

from __future__ import annotations

from pdus.scsi.sense import (
    DescriptorFormat,
    FieldPointer,
    FixedFormat,
    InformationDescriptor,
    SenseKeySpecificDescriptor,
)
from target.scsi import sense
from tests.target.scsi.support import CONDITIONS


def test_fixed_format_has_18_bytes_and_says_so() -> None:
    found = sense.UNRECOVERED_READ_ERROR.fixed()
    assert len(found) == 18
    assert found[:8].hex() == "700003000000000a"


def test_information_is_marked_valid() -> None:
    found = FixedFormat.decode(sense.UNRECOVERED_READ_ERROR.fixed(information=0x01020304))
    assert (found.valid, found.information) == (True, 0x01020304)


def test_information_that_does_not_fit_the_fixed_format_is_left_out() -> None:
    found = FixedFormat.decode(sense.UNRECOVERED_READ_ERROR.fixed(information=1 << 32))
    assert (found.valid, found.information) == (False, 0)


def test_descriptor_format_holds_64_bits_of_information_and_the_field_pointer() -> None:
    specific = FieldPointer(command_data=True, bpv=True, bit_pointer=3, byte_pointer=9).encode()
    found = sense.INVALID_FIELD_IN_CDB.descriptor(information=1 << 40, specific=specific)
    header = DescriptorFormat.decode(found)
    assert header.additional_sense_length == len(found) - DescriptorFormat.SIZE
    assert InformationDescriptor.decode(found, 8).information == 1 << 40
    assert SenseKeySpecificDescriptor.decode(found, 20).sense_key_specific == specific


def test_descriptor_format_without_details_is_its_header() -> None:
    assert sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED.descriptor().hex() == "7206290000000000"


def test_no_two_conditions_share_a_code() -> None:
    assert len(CONDITIONS) == sum(isinstance(value, sense.Condition) for value in vars(sense).values())
