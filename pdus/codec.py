"""A fast codec derived from a fixed-length construct declaration.

A format is declared once, in construct. construct itself takes 20 to 50 µs for a header, too slow to run per
command, so ``layout`` reads the declaration and generates a slotted class whose ``decode`` and ``encode`` are one
``struct`` call and some shifts (about 0.5 µs). A property test walks every declaration (``layouts()``) and proves
that both agree, both ways, on random bytes. Not for variable-length data.

Invariant: bits that no field names are reserved: written as zero, ignored when read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, cast, dataclass_transform

import construct as c

from pdus.errors import FormatError

Buffer = bytes | bytearray | memoryview
Value = int | bool | bytes

_REGISTRY: list[type[FixedLayout]] = []
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class Field:
    """One named or reserved run of bits. ``bit`` counts from the first byte's most significant bit."""

    name: str | None
    bit: int
    width: int
    kind: type[int] | type[bool] | type[bytes]
    const: Value | None = None


class FixedLayout:
    """Base of every class made by ``layout``: a value of one fixed-length format."""

    __slots__ = ()
    SIZE: ClassVar[int]
    """Bytes."""
    DECLARATION: ClassVar[Any]
    """The construct declaration that everything else is derived from."""
    FIELDS: ClassVar[tuple[str, ...]]
    LAYOUT: ClassVar[tuple[Field, ...]]

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read one value at ``offset``. FormatError if bytes are missing or a constant differs."""
        raise TypeError(f"{cls.__name__} has no declaration")

    def encode_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write this value at ``offset``. FormatError if a field does not fit."""
        raise TypeError(f"{type(self).__name__} has no declaration")

    def encode(self) -> bytes:
        buffer = bytearray(self.SIZE)
        self.encode_into(buffer)
        return bytes(buffer)

    @classmethod
    def usage_mask(cls) -> bytes:
        """One bits where the declaration has a field or constant (SPC-4, CDB usage data)."""
        mask = 0
        for field in cls.LAYOUT:
            if field.name is not None or field.const is not None:
                mask |= ((1 << field.width) - 1) << (cls.SIZE * 8 - field.bit - field.width)
        return mask.to_bytes(cls.SIZE, "big")

    @classmethod
    def field_pointer(cls, name: str) -> tuple[int, int]:
        """(byte, bit) of the field's most significant bit; bit 7 is a byte's highest (SPC-4, field pointer)."""
        for field in cls.LAYOUT:
            if field.name == name:
                return field.bit // 8, 7 - field.bit % 8
        raise KeyError(f"{cls.__name__} has no field {name!r}; it has {', '.join(cls.FIELDS)}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.FIELDS)

    __hash__ = None  # type: ignore[assignment]  # values are mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"


_L = TypeVar("_L", bound=FixedLayout)


def layouts() -> Iterator[type[FixedLayout]]:
    """Every class made by ``layout`` so far, in order of declaration."""
    return iter(tuple(_REGISTRY))


@dataclass_transform(kw_only_default=True)
def layout(declaration: Any) -> Callable[[type[_L]], type[_L]]:
    """Turn an annotated class into a slotted codec for ``declaration`` (a construct ``Struct`` of fixed length).

    The annotations must name the declaration's fields, in order; every field has a default (zero unless the class
    says otherwise). Constants that have a name become class attributes.
    """
    fields = tuple(_flatten(declaration))

    def decorate(template: type[_L]) -> type[_L]:
        named = {field.name: field for field in fields if field.name is not None and field.const is None}
        annotated = tuple(name for name, kind in template.__annotations__.items() if "ClassVar" not in str(kind))
        if annotated != tuple(named):
            raise TypeError(f"{template.__name__} is annotated {annotated}, its declaration has {tuple(named)}")
        return cast("type[_L]", _build(template, declaration, fields, annotated))

    return decorate


# --- reading the declaration -------------------------------------------------------------------------------------


def _flatten(declaration: Any) -> Iterator[Field]:
    bit = 0
    for name, subcon in _members(declaration):
        for field in _fields_of(name, subcon, bit):
            yield field
            bit += field.width


def _members(declaration: Any) -> Iterator[tuple[str | None, Any]]:
    for member in declaration.subcons:
        subcon = member
        while isinstance(subcon, c.Renamed):
            subcon = subcon.subcon
        yield member.name, subcon


def _fields_of(name: str | None, subcon: Any, bit: int) -> Iterator[Field]:
    if isinstance(subcon, c.Const):
        inner = next(_fields_of(name, _bare(subcon.subcon), bit))
        yield Field(name, bit, inner.width, inner.kind, subcon.value)
    elif isinstance(subcon, (c.Transformed, c.Restreamed)):
        for inner_name, inner_subcon in _members(_bare(subcon.subcon)):
            field = _bit_field(inner_name, inner_subcon, bit)
            yield field
            bit += field.width
    elif isinstance(subcon, (c.FormatField, c.BytesInteger)):
        yield Field(name, bit, subcon.sizeof() * 8, int)
    elif isinstance(subcon, c.Bytes):
        yield Field(name, bit, subcon.sizeof() * 8, bytes)
    elif isinstance(subcon, c.Padded):
        yield Field(None, bit, subcon.sizeof() * 8, bytes)
    else:
        raise TypeError(f"{name or 'unnamed field'}: {subcon!r} has no derived codec")


def _bit_field(name: str | None, subcon: Any, bit: int) -> Field:
    if isinstance(subcon, c.Const):
        return Field(name, bit, _bare(subcon.subcon).sizeof(), int, subcon.value)
    if isinstance(subcon, c.Padded):
        return Field(None, bit, subcon.sizeof(), int)
    if isinstance(subcon, c.BitsInteger):
        return Field(name, bit, subcon.sizeof(), int)
    if subcon is c.Flag:
        return Field(name, bit, 1, bool)
    raise TypeError(f"{name or 'unnamed bits'}: {subcon!r} has no derived codec")


def _bare(subcon: Any) -> Any:
    while isinstance(subcon, c.Renamed):
        subcon = subcon.subcon
    return subcon


# --- generating the class ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Word:
    """One ``struct`` item: an integer of 1, 2, 4 or 8 bytes, or raw bytes. ``bit`` as in Field."""

    code: str
    bit: int
    width: int


def _words(fields: tuple[Field, ...]) -> list[_Word]:
    """Cut the layout into struct items. Bit fields are gathered until they end on a byte boundary."""
    words: list[_Word] = []
    start = 0
    for field in fields:
        end = field.bit + field.width
        if field.kind is bytes:
            words.append(_Word(f"{field.width // 8}{'x' if field.name is None else 's'}", field.bit, field.width))
            start = end
        elif end % 8 == 0:
            words.extend(_integers(start, (end - start) // 8))
            start = end
    return words


def _integers(bit: int, size: int) -> Iterator[_Word]:
    while size:
        part = size if size in _CODES else max(n for n in _CODES if n <= size and (size != 3 or n == 1))
        yield _Word(_CODES[part], bit, part * 8)
        bit, size = bit + part * 8, size - part


def _pieces(field: Field, words: list[_Word]) -> Iterator[tuple[int, int, int, int]]:
    """Where a field's bits are: (word index, shift in the word, width, shift in the value), high bits first."""
    for index, word in enumerate(words):
        low, high = max(field.bit, word.bit), min(field.bit + field.width, word.bit + word.width)
        if low < high:
            yield index, word.bit + word.width - high, high - low, field.bit + field.width - high


def _read_expression(field: Field, words: list[_Word]) -> str:
    parts = []
    for index, shift, width, up in _pieces(field, words):
        text = f"w{index}"
        if shift:
            text = f"{text} >> {shift}"
        if shift + width < words[index].width:
            text = f"({text}) & {(1 << width) - 1:#x}"
        parts.append(f"({text}) << {up}" if up else f"({text})" if " " in text else text)
    joined = " | ".join(parts)
    return f"({joined}) != 0" if field.kind is bool else joined


def _decode_source(fields: tuple[Field, ...], words: list[_Word]) -> list[str]:
    names = [f"w{i}" for i, word in enumerate(words) if not word.code.endswith("x")]
    lines = [
        "def decode(buffer, offset=0):",
        "    try:",
        f"        {', '.join(names)}, = unpack_from(buffer, offset)"
        if names
        else "        unpack_from(buffer, offset)",
        "    except struct_error:",
        "        raise missing(buffer, offset) from None",
    ]
    for field in fields:
        if field.const is not None:
            lines.append(f"    seen = {_read_expression(field, words)}")
            lines.append(f"    if seen != {field.const!r}:")
            lines.append(f"        raise differs({field.name!r}, seen, {field.const!r})")
    lines.append("    self = new(cls)")
    lines.extend(
        f"    self.{field.name} = {_read_expression(field, words)}"
        for field in fields
        if field.name is not None and field.const is None
    )
    return [*lines, "    return self"]


def _encode_source(fields: tuple[Field, ...], words: list[_Word]) -> list[str]:
    lines = ["def encode_into(self, buffer, offset=0):"]
    terms: list[list[str]] = [[] for _ in words]
    for number, field in enumerate(fields):
        if field.name is None and field.const is None:
            continue
        value = f"v{number}"
        lines.append(f"    {value} = {f'self.{field.name}' if field.const is None else repr(field.const)}")
        if field.kind is bytes:
            lines.append(f"    if len({value}) != {field.width // 8}: raise unfit({field.name!r}, {value})")
        elif field.const is None:
            lines.append(f"    if {value} >> {field.width}: raise unfit({field.name!r}, {value})")
        for index, shift, width, up in _pieces(field, words):
            text = f"{value} >> {up}" if up else value
            if up + width < field.width:
                text = f"({text}) & {(1 << width) - 1:#x}"
            terms[index].append(f"({text}) << {shift}" if shift else f"({text})")
    arguments = [" | ".join(terms[i]) or "0" for i, word in enumerate(words) if not word.code.endswith("x")]
    return [*lines, f"    pack_into(buffer, offset{''.join(', ' + a for a in arguments)})"]


def _init_source(template: type, names: tuple[str, ...], fields: dict[str, Field]) -> list[str]:
    def default(name: str) -> Value:
        given = template.__dict__.get(name)
        field = fields[name]
        if isinstance(given, (int, bytes)):
            return field.kind(given)
        return bytes(field.width // 8) if field.kind is bytes else field.kind()

    arguments = ", ".join(f"{name}={default(name)!r}" for name in names)
    lines = [f"def __init__(self, *, {arguments}):" if names else "def __init__(self):"]
    return [*lines, *(f"    self.{name} = {name}" for name in names), "    return"]


def _build(template: type, declaration: Any, fields: tuple[Field, ...], names: tuple[str, ...]) -> type[FixedLayout]:
    words = _words(fields)
    packer = struct.Struct(">" + "".join(word.code for word in words))
    by_name = {field.name: field for field in fields if field.name is not None and field.const is None}
    skipped = {"__dict__", "__weakref__", "__annotations__", "__slots__", *names}
    body: dict[str, Any] = {key: value for key, value in template.__dict__.items() if key not in skipped}
    body.update({field.name: field.const for field in fields if field.name is not None and field.const is not None})
    body.update(
        __slots__=names, SIZE=packer.size, DECLARATION=declaration, FIELDS=names, LAYOUT=fields,
    )  # fmt: skip
    made = cast("type[FixedLayout]", type(template.__name__, (FixedLayout,), body))
    scope: dict[str, Any] = {
        "cls": made, "new": object.__new__, "unpack_from": packer.unpack_from, "pack_into": packer.pack_into,
        "struct_error": struct.error, **_complaints(made),
    }  # fmt: skip
    source = [
        *_init_source(template, names, by_name), *_decode_source(fields, words), *_encode_source(fields, words),
    ]  # fmt: skip
    exec("\n".join(source), scope)
    for method in ("__init__", "encode_into"):
        setattr(made, method, scope[method])
    made.decode = staticmethod(scope["decode"])  # type: ignore[method-assign]
    _REGISTRY.append(made)
    return made


def _complaints(made: type[FixedLayout]) -> dict[str, Callable[..., FormatError]]:
    def missing(buffer: Buffer, offset: int) -> FormatError:
        return FormatError(f"{made.__name__}: {len(buffer) - offset} bytes at offset {offset}, needs {made.SIZE}")

    def differs(name: str | None, seen: Value, const: Value) -> FormatError:
        return FormatError(f"{made.__name__}: {name or 'constant'} is {seen!r}, must be {const!r}")

    def unfit(name: str, value: Value) -> FormatError:
        field = next(field for field in made.LAYOUT if field.name == name)
        return FormatError(f"{made.__name__}: {name}={value!r} does not fit {field.width} bits")

    return {"missing": missing, "differs": differs, "unfit": unfit}
