"""How answers look: tables for people, JSON for programs, one line for what went wrong.

On a terminal tables have colours and rules; otherwise plain columns that nothing wraps. Numbers of bytes are shown in
powers of 1024 and left exact in JSON.
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

PLAIN_WIDTH = 400  # columns where no terminal sets a limit, so that nothing is cut or wrapped
STATE_COLOURS = {
    "serving": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "fail-stopped": "red",
    "failed": "red",
}

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Even with open sessions.")]


def console() -> Console:
    """Made for each answer, because standard output may have been replaced since."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=PLAIN_WIDTH, color_system=None)


def print_json(answer: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    print(json.dumps(_plain(answer), indent=2))


def _plain(answer: Any) -> Any:
    if isinstance(answer, BaseModel):
        return answer.model_dump(mode="json")
    return [_plain(each) for each in answer] if isinstance(answer, list | tuple) else answer


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """``columns``: titles; one that begins with ``>`` is aligned to the right. ``empty``: what to say without rows."""
    rows = list(rows)
    if not rows:
        say(empty)
        return
    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(fields: Iterable[tuple[str, str | Text]]) -> None:
    """Names and values, one pair a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in fields:
        grid.add_row(Text(name, style="bold"), value)
    console().print(grid)


def say(text: str) -> None:
    """Plain text: names in it are never taken for markup."""
    console().print(Text(text), soft_wrap=True)


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
