"""Arguments that are more than a word: sizes and ``GROUP@SNAPSHOT``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from blockyard.cli.output import size_text, warn
from blockyard.errors import Invalid
from blockyard.model import names

SIZE_HELP = "Bytes, or a number with K, M, G, T (powers of 1024: 10G is 10 GiB); rounded up to 4096; at most 256 TiB."
Size = Annotated[str, typer.Option("--size", metavar="SIZE", help=SIZE_HELP)]
GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Name of the volume group.")]


def size_of(text: str) -> int:
    """Bytes, rounded up; rounding is said on stderr. Raises Invalid."""
    try:
        asked = names.parse_size(text)
        size = names.volume_size(asked)
    except ValueError as error:
        raise Invalid(f"size: {error}") from None
    if size != asked:
        warn(f"{asked} bytes is no multiple of {names.GRAIN}: rounded up to {size} ({size_text(size)})")
    return size


def group_and_snapshot(first: str, second: str | None) -> tuple[str, str]:
    """From ``GROUP SNAPSHOT`` or ``GROUP@SNAPSHOT``. Raises Invalid."""
    group, at, snapshot = first.partition("@")
    if bool(at) == (second is not None) or not group or (at and not snapshot):
        seen = first if second is None else f"{first} {second}"
        raise Invalid(f"{seen!r} does not name one snapshot: GROUP SNAPSHOT or GROUP@SNAPSHOT is allowed")
    return group, snapshot or str(second)


def rate_of(text: str) -> int:
    """Bytes a second of ``200M`` or ``200M/s``. Raises Invalid."""
    try:
        rate = names.parse_size(text.removesuffix("/s"))
    except ValueError as error:
        raise Invalid(f"rate: {error}") from None
    if rate < names.GRAIN:
        raise Invalid(f"rate: {rate} bytes a second; allowed are {names.GRAIN} and more")
    return rate


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """From ``KEY=VALUE``. Raises Invalid."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Invalid(f"{text!r} is no label: KEY=VALUE is allowed")
        found[key] = value
    return found
