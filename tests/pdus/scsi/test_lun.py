"""LUNs in eight bytes."""

from __future__ import annotations

import pytest

from pdus.scsi.lun import MAX_LUN, UNKNOWN, decode_lun, encode_lun


@pytest.mark.parametrize("lun", [0, 1, 255, 256, MAX_LUN])
def test_a_lun_survives_encoding(lun: int) -> None:
    assert decode_lun(encode_lun(lun)) == lun


def test_small_luns_use_peripheral_addressing() -> None:
    assert encode_lun(5) == bytes([0, 5, 0, 0, 0, 0, 0, 0])


def test_big_luns_use_flat_addressing() -> None:
    assert encode_lun(256) == bytes([0x41, 0, 0, 0, 0, 0, 0, 0])


def test_a_small_lun_is_understood_in_flat_addressing_too() -> None:
    assert decode_lun(bytes([0x40, 5, 0, 0, 0, 0, 0, 0])) == 5


@pytest.mark.parametrize("field", ["0105000000000000", "8005000000000000", "c101000000000000", "0005000100000000"])
def test_other_buses_methods_and_levels_are_unknown(field: str) -> None:
    assert decode_lun(bytes.fromhex(field)) == UNKNOWN


@pytest.mark.parametrize("lun", [-1, MAX_LUN + 1])
def test_a_lun_that_cannot_be_addressed_is_refused(lun: int) -> None:
    with pytest.raises(ValueError, match="allowed is 0 to 16383"):
        encode_lun(lun)
