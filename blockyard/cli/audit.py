"""blockyard audit: ls."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, time_text

app = typer.Typer(no_args_is_help=True, help="The audit log: who asked the daemon for which change.")


@app.command("ls", epilog="Example: blockyard audit ls --limit 20")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the newest entries.")] = 100,
    json: Json = False,
) -> None:
    """The newest changes and refusals, oldest first."""
    with connect() as daemon:
        entries = daemon.list_audit(limit)
    if json:
        print_json(entries)
        return
    print_table(
        ["Time", "Who", "From", ">Status", "Action"],
        [[time_text(each.time), each.who, each.address or "-", str(each.status), each.action] for each in entries],
        empty="Nothing was changed yet.",
    )
