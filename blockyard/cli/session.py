"""blockyard session: ls."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, size_text, time_text

app = typer.Typer(no_args_is_help=True, help="Sessions: who is logged in.")


@app.command("ls", epilog="Example: blockyard session ls db")
def list_(
    group: Annotated[str | None, typer.Argument(metavar="GROUP", help="Only this group's.")] = None,
    json: Json = False,
) -> None:
    """The open sessions."""
    with connect() as daemon:
        sessions = daemon.list_sessions(group)
    if json:
        print_json(sessions)
        return
    print_table(
        ["Group", "Initiator", "From", "~Since", "~Authentication", "~Digests", ">Commands", ">Read", ">Written"],
        [
            [
                s.group,
                s.initiator,
                s.address,
                time_text(s.connected),
                s.auth,
                s.digests,
                str(s.commands),
                size_text(s.read_bytes),
                size_text(s.write_bytes),
            ]
            for s in sessions
        ],
        empty="No open sessions.",
    )
