"""How answers look: tables for people, JSON for programs, one line for what went wrong.

On a terminal tables have colours and rules (rich); otherwise they are plain columns that nothing wraps. Numbers of
bytes are shown in powers of 1024 and left exact in JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMN_GAP = 3  # that rich leaves between two columns of a drawn table
STATE_COLOURS = {
    "serving": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "moving": "yellow",
    "fail-stopped": "red",
    "failed": "red",
}

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Even with open sessions, or attached.")]


def print_json(answer: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    print(json.dumps(_plain(answer), indent=2))


def _plain(answer: Any) -> Any:
    if isinstance(answer, BaseModel):
        return answer.model_dump(mode="json")
    return [_plain(each) for each in answer] if isinstance(answer, list | tuple) else answer


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """``columns``: titles; one that begins with ``>`` is aligned to the right, one that begins with ``~`` is left out
    on a terminal that is too narrow for all. ``empty``: what to say without rows."""
    rows = list(rows)
    if not rows:
        say(empty)
    elif sys.stdout.isatty():
        _print_drawn(columns, rows)
    else:
        cells = [[str(cell) for cell in row] for row in rows]
        _print_plain([[_title(column) for column in columns], *cells], [column.startswith(">") for column in columns])


def _title(column: str) -> str:
    return column.lstrip("~>")


def _print_drawn(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    terminal = Console(highlight=False)
    shown = _fitting(columns, rows, terminal.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for at in shown:
        # Only what stands first may be folded: names, which are the longest
        right = columns[at].startswith(">")
        table.add_column(_title(columns[at]), justify="right" if right else "left", overflow="fold", no_wrap=at > 1)
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    terminal.print(table)


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int) -> list[int]:
    """Which columns to show, the rightmost of those that may be left out going first."""
    widths = [max(len(_title(column)), *(len(row[at]) for row in rows)) for at, column in enumerate(columns)]
    shown = list(range(len(columns)))
    for at in reversed(range(len(columns))):
        if sum(widths[each] + COLUMN_GAP for each in shown) - COLUMN_GAP <= width:
            break
        if columns[at].startswith("~"):
            shown.remove(at)
    return shown


def _print_plain(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    """Columns padded with spaces, two between them, none at the end; never wrapped or cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        print("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip())


def print_fields(fields: Sequence[tuple[str, str | Text]]) -> None:
    """Names and values, one pair a line."""
    if not sys.stdout.isatty():
        _print_plain([(name, str(value)) for name, value in fields], [False, False])
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")  # never cut: it is there to be copied
    for name, value in fields:
        grid.add_row(Text(name, style="bold"), value)
    Console(highlight=False).print(grid)


def say(text: str) -> None:
    print(text)


def warn(text: str) -> None:
    print(f"blockyard: {text}", file=sys.stderr)


def state_text(state: str) -> Text:
    return Text(state, style=STATE_COLOURS.get(state, ""))


def size_text(size: int | None) -> str:
    """``10 GiB``, ``1.5 TiB``, ``512 B``; ``-`` for what is not known."""
    if size is None:
        return "-"
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    digits = f"{value:.1f}".removesuffix(".0")
    return f"{digits} {unit}"


def time_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
