"""blockyard group move: a group to another pool, while its hosts stay logged in. Registered by ``group``."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, say, size_text, warn
from blockyard.cli.progress import Progress
from blockyard.cli.values import GroupArgument, rate_of
from blockyard.errors import Internal, Invalid
from blockyard.model import Move, MovePhase, MoveRequest
from blockyard.model.moves import MoveReport

INTERRUPTED = 130  # what shells say of a command that Ctrl-C ended

_PHASES = {
    MovePhase.BEGINNING: "beginning",
    MovePhase.COPYING: "copying, served as ever",
    MovePhase.LEAVING: "changing over",
    MovePhase.LEFT: "changing over",
    MovePhase.ARRIVED: "changing over",
    MovePhase.COMMITTED: "served there, being deleted here",
    MovePhase.DONE: "done",
    MovePhase.UNFINISHED: "interrupted: move it again to go on, or forget it with --abort",
}


def move(
    group: GroupArgument,
    to: Annotated[str | None, typer.Option("--to", metavar="POOL", help="Where it goes.")] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Bytes a second to copy at most while it is served, such as 100M."),
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Only give up a move, and forget what it copied.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Serve the copy in POOL that has left it: only when the pool where it went is lost for good, "
            "and with it what was written there.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Move a group with all its snapshots to another pool. Its hosts stay logged in; their I/O waits about a second.

    It is copied while it is served; then its sessions end, the rest is copied, and the hosts reconnect to the same
    target with the same volumes, LUNs, secrets and identities. Ctrl-C before that gives the move up and frees what was
    copied; what was interrupted otherwise goes on when it is said again. Clones of its snapshots stay where they are
    and keep working: from then on they share no space with it.
    """
    if abort:
        if to is not None or rate is not None or force:
            raise Invalid("--abort stands alone: it gives up whatever move of the group there is")
        _abort(group, json=json)
        return
    if to is None:
        raise Invalid("--to POOL is missing: `blockyard pool ls` shows the pools")
    asked = MoveRequest(to=to, rate=None if rate is None else rate_of(rate), force=force)
    _report(_move(group, asked), json=json)


def _move(group: str, asked: MoveRequest) -> MoveReport:
    report, phase = None, MovePhase.BEGINNING
    try:
        with connect() as daemon, Progress("copied") as progress:
            for line in daemon.move_group(group, asked):
                if line.move is not None:
                    phase = line.move.phase
                    progress.tell(move_text(line.move))
                report = line.moved
    except KeyboardInterrupt:
        given_up = phase in (MovePhase.BEGINNING, MovePhase.COPYING)
        warn("the move is given up: nothing has changed" if given_up else "too late: the move comes to its end")
        raise typer.Exit(INTERRUPTED) from None
    if report is None:
        raise Internal("the move ended without a report: the daemon's log has the details")
    return report


def _report(report: MoveReport, *, json: bool) -> None:
    if json:
        print_json(report)
    elif report.moved:
        say(
            f"Group {report.group} is in {report.to} now (generation {report.generation}): "
            f"{report.snapshots} snapshots, {size_text(report.copied)} copied in {report.seconds:.1f} s, "
            f"its I/O waited {report.stalled:.2f} s."
        )
        say(f"The space in {report.source} comes back by itself; at once with: blockyard pool sweep {report.source}")
    else:
        say(f"Group {report.group} is in {report.to} already.")


def _abort(group: str, *, json: bool) -> None:
    with connect() as daemon:
        daemon.abort_move(group)
    if json:
        print_json({"aborted": group})
    else:
        say(f"The move of group {group} is given up, and what it copied is forgotten.")


def move_text(move: Move) -> str:
    """One line."""
    if move.phase is MovePhase.UNFINISHED:
        return f"to {move.to}, {_PHASES[move.phase]}"
    rate = size_text(int(move.copied / max(move.seconds, 0.001)))
    left = f", {move.snapshots_left + 1} snapshots left" if move.phase is MovePhase.COPYING and move.snapshot else ""
    return f"to {move.to}, {_PHASES[move.phase]}: {size_text(move.copied)} copied, {rate}/s{left}"
