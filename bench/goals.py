"""What a bench was asked to reach and what it measured: one table at its end, one exit code."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 132


@dataclass(frozen=True, slots=True)
class Goal:
    what: str
    goal: str
    measured: str
    reached: bool


def print_table(table: Table) -> None:
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


def judge(title: str, goals: list[Goal]) -> int:
    """Print the table; the exit code: 0 if every goal was reached, else 1."""
    table = Table(title=title)
    for column in ("what", "goal", "measured", ""):
        table.add_column(column)
    for each in goals:
        table.add_row(each.what, each.goal, each.measured, "ok" if each.reached else "MISSED")
    print_table(table)
    return 0 if all(each.reached for each in goals) else 1
