"""blockyard pool: ls, show, sweep, scrub; create and forget are in ``pool_files``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockyard.cli import pool_files
from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_fields, print_json, print_table, say, size_text, state_text, warn
from blockyard.cli.progress import Progress
from blockyard.cli.values import rate_of
from blockyard.errors import EXIT_FINDINGS, Internal
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
        ["Pool", "State", ">Used", ">Size", ">Used %", ">Groups", ">Sessions", ">Restarts", "~Worker", "~Data"],
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
                _data(pool),
            ]
            for pool in pools
        ],
        empty="No pools.",
    )
    for pool in pools:
        if pool.reason:
            warn(f"{pool.name} is {pool.state}: {pool.reason}")


def _data(pool: Pool) -> str:
    """The path of what holds the blocks."""
    if pool.data is None or pool.path is None:
        return pool.path or "-"
    return str(Path(pool.path) / pool.data)


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
            ("Directory", shown.path or "-"),
            ("Data", _data(shown)),
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


@app.command(epilog="Example: blockyard pool scrub pool-0 --rate 200M")
def scrub(
    pool: PoolArgument,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Bytes a second to read at most, with K, M or G. Default: no limit.")
    ] = None,
    json: Json = False,
) -> None:
    """Read every stored block while the pool serves, and prove it. Exit code: 0 sound, 1 damage found.

    Ends when this command does; what was found is in the log too.
    """
    report = None
    with connect() as daemon, Progress("scrubbed") as progress:
        for line in daemon.scrub_pool(pool, None if rate is None else rate_of(rate)):
            progress.show(line.progress)
            report = line.scrub
    if report is None:
        raise Internal("the scrub ended without a report: the daemon's log has the details")
    if json:
        print_json(report)
    else:
        say(f"{report.blocks} blocks ({size_text(report.blocks * 4096)}) were read in {report.seconds:.1f} s.")
        for error in report.errors:
            where = f"{error.group}@{error.snapshot}" if error.snapshot is not None else error.group
            say(f"  {where}, LUN {error.lun} ({error.volume}), LBA {error.lba}: block {error.block} {error.reason}")
        say(f"{report.error_count} damaged." if report.error_count else f"{pool} is sound.")
    raise typer.Exit(EXIT_FINDINGS if report.error_count else 0)


app.command(epilog="Example: blockyard pool create fast --store /srv/blockyard --device /dev/disk/by-id/nvme-X")(
    pool_files.create
)
app.command(epilog="Example: blockyard pool forget old --store /srv/blockyard")(pool_files.forget)
