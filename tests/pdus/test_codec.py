"""The derived codec equals construct, both ways, for every declaration there is."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pdus
from pdus.codec import FixedLayout, layout, layouts
from pdus.errors import FormatError

for module in pkgutil.walk_packages(pdus.__path__, "pdus."):
    importlib.import_module(module.name)

ALL = [made for made in layouts() if made.__module__.startswith("pdus.")]


def members(declaration: Any) -> list[tuple[str | None, Any]]:
    return [(member.name, member) for member in declaration.subcons]


def parse_with_construct(declaration: Any, data: bytes) -> dict[str, Any]:
    """Unnamed bit structures are grouping only: their fields belong to the whole, so each member is parsed alone."""
    values: dict[str, Any] = {}
    for name, member in members(declaration):
        part, data = data[: member.sizeof()], data[member.sizeof() :]
        value = member.parse(part)
        if name is not None:
            values[name] = value
        elif isinstance(value, c.Container):
            values.update({key: item for key, item in value.items() if not key.startswith("_")})
    return values


def build_with_construct(declaration: Any, values: dict[str, Any]) -> bytes:
    return b"".join(member.build(values[name] if name else values) for name, member in members(declaration))


def value_for(made: type[FixedLayout]) -> st.SearchStrategy[dict[str, Any]]:
    kinds: dict[str, st.SearchStrategy[Any]] = {}
    for field in made.LAYOUT:
        if field.name is None or field.const is not None:
            continue
        if field.kind is bytes:
            kinds[field.name] = st.binary(min_size=field.width // 8, max_size=field.width // 8)
        elif field.kind is bool:
            kinds[field.name] = st.booleans()
        else:
            kinds[field.name] = st.integers(0, (1 << field.width) - 1)
    return st.fixed_dictionaries(kinds)


def normal(value: Any) -> Any:
    return bytes(value) if isinstance(value, (bytes, bytearray)) else value


@pytest.mark.parametrize("made", ALL, ids=lambda made: made.__name__)
@given(data=st.data())
def test_codec_and_construct_agree_both_ways(made: type[FixedLayout], data: st.DataObject) -> None:
    values = data.draw(value_for(made))
    wire = made(**values).encode()
    constants = {f.name: f.const for f in made.LAYOUT if f.name is not None and f.const is not None}
    assert wire == build_with_construct(made.DECLARATION, {**values, **constants})

    noise = int.from_bytes(data.draw(st.binary(min_size=made.SIZE, max_size=made.SIZE)), "big")
    unnamed = int.from_bytes(bytes(0xFF ^ byte for byte in made.usage_mask()), "big")
    noisy = (int.from_bytes(wire, "big") | (noise & unnamed)).to_bytes(made.SIZE, "big")
    decoded = made.decode(b"??" + noisy, 2)
    parsed = parse_with_construct(made.DECLARATION, noisy)
    assert {name: getattr(decoded, name) for name in made.FIELDS} == {n: normal(parsed[n]) for n in made.FIELDS}
    assert decoded == made(**values)


@pytest.mark.parametrize("made", ALL, ids=lambda made: made.__name__)
def test_every_declaration_has_a_fixed_size(made: type[FixedLayout]) -> None:
    assert made.DECLARATION.sizeof() == made.SIZE == len(made.usage_mask())


@layout(
    c.Struct(
        c.BitStruct("flag" / c.Flag, "opcode" / c.Const(5, c.BitsInteger(4)), "wide" / c.BitsInteger(11)),
        c.Padding(1),
        "triple" / c.Int24ub,
        "raw" / c.Bytes(2),
    )
)
class Sample(FixedLayout):
    flag: bool = False
    wide: int = 7
    triple: int = 0
    raw: bytes = b"ab"


def test_class_defaults_and_zero_defaults_are_used() -> None:
    sample = Sample()
    assert (sample.flag, sample.wide, sample.triple, sample.raw) == (False, 7, 0, b"ab")


def test_named_constant_is_a_class_attribute() -> None:
    assert vars(Sample)["opcode"] == 5


def test_decoding_too_few_bytes_says_how_many_are_needed() -> None:
    with pytest.raises(FormatError, match="Sample: 3 bytes at offset 0, needs 8"):
        Sample.decode(b"abc")


def test_decoding_another_constant_is_refused() -> None:
    with pytest.raises(FormatError, match="opcode is 0, must be 5"):
        Sample.decode(bytes(8))


@pytest.mark.parametrize(("name", "value"), [("wide", 1 << 11), ("triple", 1 << 24), ("raw", b"abc"), ("triple", -1)])
def test_encoding_a_value_that_does_not_fit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=f"{name}=.* does not fit"):
        Sample(**{name: value}).encode()


def test_usage_mask_marks_fields_and_constants_only() -> None:
    assert Sample.usage_mask().hex() == "ffff00ffffffffff"


def test_field_pointer_counts_bits_from_the_right() -> None:
    assert Sample.field_pointer("flag") == (0, 7)
    assert Sample.field_pointer("wide") == (0, 2)
    assert Sample.field_pointer("triple") == (3, 7)


def test_declaration_and_annotations_must_name_the_same_fields() -> None:
    with pytest.raises(TypeError, match="is annotated"):

        @layout(c.Struct("a" / c.Int8ub))
        class Wrong(FixedLayout):
            b: int = 0
