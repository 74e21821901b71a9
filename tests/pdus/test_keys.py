"""The key table and the forms of its values."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdus.errors import FormatError
from pdus.iscsi.keys import (
    KEYS,
    Kind,
    Result,
    check_name,
    check_value,
    combine,
    format_binary,
    parse_binary,
    parse_boolean,
    parse_list,
    parse_number,
)


@pytest.mark.parametrize(
    ("offered", "ours", "result"), [("Yes", "No", "Yes"), ("No", "No", "No"), ("No", "Yes", "Yes")]
)
def test_initial_r2t_is_the_or_of_both_wishes(offered: str, ours: str, result: str) -> None:
    assert combine(KEYS["InitialR2T"], offered, ours) == result


@pytest.mark.parametrize(
    ("offered", "ours", "result"), [("Yes", "No", "No"), ("Yes", "Yes", "Yes"), ("No", "Yes", "No")]
)
def test_immediate_data_is_the_and_of_both_wishes(offered: str, ours: str, result: str) -> None:
    assert combine(KEYS["ImmediateData"], offered, ours) == result


@pytest.mark.parametrize(
    "name", ["MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T", "MaxConnections", "DefaultTime2Retain"]
)
def test_lengths_and_counts_become_the_smaller_number(name: str) -> None:
    assert combine(KEYS[name], "600", "700") == "600"
    assert combine(KEYS[name], "700", "600") == "600"


def test_time2wait_becomes_the_larger_number() -> None:
    assert combine(KEYS["DefaultTime2Wait"], "0", "2") == "2"
    assert combine(KEYS["DefaultTime2Wait"], "5", "2") == "5"


def test_a_digest_is_the_first_of_the_offerers_list_that_we_know() -> None:
    assert combine(KEYS["HeaderDigest"], "CRC32C,None", ("None", "CRC32C")) == "CRC32C"
    assert combine(KEYS["HeaderDigest"], "X-new,None,CRC32C", ("CRC32C", "None")) == "None"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "16777216"),
        ("MaxBurstLength", "many"),
        ("MaxBurstLength", "-600"),
        ("ErrorRecoveryLevel", "3"),
        ("InitialR2T", "yes"),
        ("HeaderDigest", "MD5"),
        ("HeaderDigest", "None,,CRC32C"),
    ],
)
def test_what_a_key_does_not_allow_is_a_format_error(name: str, value: str) -> None:
    ours = ("None",) if KEYS[name].kind is Kind.LIST else "Yes" if KEYS[name].kind is Kind.BOOLEAN else "2"
    with pytest.raises(FormatError):
        combine(KEYS[name], value, "600" if "Length" in name else ours)


def test_every_default_is_a_value_that_its_key_allows() -> None:
    for key in KEYS.values():
        if key.default is None:
            continue
        if key.kind is Kind.BOOLEAN:
            parse_boolean(key.default)
        elif key.kind is Kind.NUMBER:
            parse_number(key.default, key.range)
        else:
            assert key.default in key.values


def test_the_markers_are_known_and_obsolete() -> None:
    assert {name for name, key in KEYS.items() if key.result is Result.OBSOLETE} == {
        "IFMarker",
        "OFMarker",
        "IFMarkInt",
        "OFMarkInt",
    }


def test_numbers_are_decimal_or_hexadecimal() -> None:
    assert parse_number("0x200") == parse_number("512") == 512


@given(st.binary(min_size=1, max_size=1024))
def test_binary_values_read_back_in_both_forms(data: bytes) -> None:
    assert parse_binary(format_binary(data)) == data
    assert parse_binary("0b" + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("value", ["", "0x", "0b", "12", "0xzz", "0b!!!!", "0x" + "00" * 1025, "0x0 1"])
def test_a_malformed_binary_value_is_a_format_error(value: str) -> None:
    with pytest.raises(FormatError):
        parse_binary(value)


def test_an_odd_number_of_hexadecimal_digits_lacks_its_leading_zero() -> None:
    assert parse_binary("0x123") == b"\x01\x23"


def test_names_and_values_have_their_longest() -> None:
    check_name("X" * 63)
    with pytest.raises(FormatError, match="64 bytes exceeds 63"):
        check_name("X" * 64)
    check_value("TargetAlias", "a" * 255)
    with pytest.raises(FormatError, match="256 bytes exceeds 255"):
        check_value("TargetAlias", "a" * 256)
    check_value("CHAP_C", "0x" + "00" * 1024)


def test_a_list_keeps_the_offerers_order() -> None:
    assert parse_list("CHAP,None") == ["CHAP", "None"]
