"""blockyard api: openapi."""

from __future__ import annotations

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import print_json

app = typer.Typer(no_args_is_help=True, help="The REST API itself.")


@app.callback()
def _noun() -> None:
    """Keeps the verb a verb: typer would make the only command of a noun the noun itself."""


@app.command(epilog="Example: blockyard api openapi > blockyard.json")
def openapi() -> None:
    """The API's description (OpenAPI, JSON), for generators of clients."""
    with connect() as daemon:
        print_json(daemon.openapi())
