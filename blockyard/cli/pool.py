"""blockyard pool: ls, show, sweep."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_fields, print_json, print_table, say, size_text, state_text, warn
from blockyard.model import Pool

app = typer.Typer(no_args_is_help=True, help="Pools: where groups live, one worker process each.")

PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool, such as pool-0.")]


@app.command("ls", epilog="Example: blockyard pool ls")
def list_(json: Json = False) -> None:
    """All pools, and how full they are."""
    with connect() as daemon:
        pools = daemon.list_pools()
    if json:
        print_json(pools)
        return
    print_table(
        ["Pool", "State", ">Used", ">Size", ">Used %", ">Groups", ">Sessions", ">Restarts", "~Worker"],
        [
            [
                pool.name,
                state_text(pool.state),
                size_text(pool.used),
                size_text(pool.size),
                _percent(pool),
                str(pool.groups),
                "-" if pool.sessions is None else str(pool.sessions),
                str(pool.restarts),
                str(pool.worker or "-"),
            ]
            for pool in pools
        ],
        empty="No pools.",
    )
    for pool in pools:
        if pool.reason:
            warn(f"{pool.name} is {pool.state}: {pool.reason}")


def _percent(pool: Pool) -> str:
    if pool.used is None or not pool.size:
        return "-"
    return f"{100 * pool.used / pool.size:.1f}"


@app.command(epilog="Example: blockyard pool show pool-0")
def show(pool: PoolArgument, json: Json = False) -> None:
    """One pool with its counters."""
    with connect() as daemon:
        shown = daemon.show_pool(pool)
    if json:
        print_json(shown)
        return
    print_fields(
        [
            ("Pool", shown.name),
            ("UUID", str(shown.uuid or "-")),
            ("State", state_text(shown.state)),
            *([("Reason", shown.reason)] if shown.reason else []),
            ("Used", f"{size_text(shown.used)} of {size_text(shown.size)} ({_percent(shown)} %)"),
            ("Soon free", size_text(shown.pending_free)),
            ("Groups", str(shown.groups)),
            ("Sessions", "-" if shown.sessions is None else str(shown.sessions)),
            ("Worker", f"process {shown.worker or '-'}, {shown.restarts} restart(s)"),
            *((name.replace("_", " ").capitalize(), str(value)) for name, value in shown.counters.items()),
        ]
    )


@app.command(epilog="Example: blockyard pool sweep pool-0")
def sweep(pool: PoolArgument, json: Json = False) -> None:
    """Give back now what nothing refers to any more; it happens by itself too."""
    with connect() as daemon:
        swept = daemon.sweep_pool(pool)
    if json:
        print_json(swept)
    else:
        say(f"{size_text(swept.freed)} came back to {pool}.")
