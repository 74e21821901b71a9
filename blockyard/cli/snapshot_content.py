"""blockyard snapshot diff, send, receive, verify: what is in a snapshot, and moving it.

Registered by ``snapshot``. Streams go to standard output and come from standard input; all else that these verbs say
while a stream is on standard output goes to standard error.
"""

from __future__ import annotations

import json as json_text
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, say, size_text
from blockyard.cli.progress import Progress
from blockyard.cli.sending import Passing, expected
from blockyard.cli.values import group_and_snapshot
from blockyard.errors import Internal, Invalid
from blockyard.model import transfers
from blockyard.model.transfers import Diff, DiffRange

_CHUNK = 256 << 10  # bytes read from standard input at a time

Snapshot = Annotated[str, typer.Argument(metavar="GROUP@NAME", help="The snapshot.")]


def diff(
    old: Annotated[str, typer.Argument(metavar="GROUP@OLD", help="The older snapshot.")],
    new: Annotated[str, typer.Argument(metavar="GROUP[@NEW]", help="The newer one; GROUP alone: as it is now.")],
    json: Json = False,
) -> None:
    """The ranges that differ between two snapshots: what changed, and what reads as zeros now.

    With --json one value a line: each range, then the totals.
    """
    group, before = group_and_snapshot(old, None)
    other, after = group_and_snapshot(new, None) if "@" in new else (new, None)
    if group != other:
        raise Invalid(f"{old} and {new} are of two groups; only snapshots of one can be compared")
    totals = None
    with connect() as daemon:
        for line in daemon.diff_snapshots(group, before, after):
            for each in line.ranges or ():
                _print_range(each, json=json)
            totals = line.diff
    if totals is None:
        raise Internal("the comparison ended without totals: the daemon's log has the details")
    if json:
        print(json_text.dumps({"totals": totals.model_dump(mode="json")}))
    else:
        _print_totals(totals)


def _print_range(each: DiffRange, *, json: bool) -> None:
    if json:
        print(each.model_dump_json())
    else:
        print(f"LUN {each.lun}  {each.offset:>16}  {each.length:>12}  {each.kind}")


def _print_totals(totals: Diff) -> None:
    print_table(
        ["LUN", "Volume", ">Size", ">Changed", ">Zero now", ">Ranges"],
        [
            [str(v.lun), v.name, size_text(v.size), size_text(v.changed), size_text(v.zero), str(v.ranges)]
            for v in totals.volumes
        ],
        empty="The group has no volume.",
    )
    for lun in totals.removed:
        say(f"LUN {lun} is not there any more.")


def send(
    snapshot: Snapshot,
    base: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="GROUP@NAME", help="Only what changed since this snapshot, which receivers have."
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Go on where a receiver was cut (`receive --status` tells).")
    ] = None,
) -> None:
    """Write a snapshot as a stream to standard output, for `snapshot receive`. It cannot be deleted meanwhile."""
    group, name = group_and_snapshot(snapshot, None)
    since = None if base is None else _base_of(group, base)
    if sys.stdout.isatty():
        raise Invalid("standard output is a terminal: send the stream into a file or a pipe")
    out = sys.stdout.buffer
    with connect() as daemon, Progress("sent") as progress:
        # What a resumed stream leaves out is not known here; and nobody counts what nobody sees.
        total = expected(daemon, group, name, since) if progress.visible and resume is None else None
        passing = Passing()
        try:
            for chunk in daemon.send_snapshot(group, name, base=since, resume=resume):
                out.write(chunk)
                passing.count(chunk)
                if total is None:
                    progress.count(len(chunk))
                else:
                    progress.show(transfers.Progress(done=min(passing.content, total), total=total))
            out.flush()
        except BrokenPipeError:
            # Else the interpreter would flush at its end, and say the same once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


def _base_of(group: str, text: str) -> str:
    if "@" not in text:
        return text
    other, name = group_and_snapshot(text, None)
    if other != group:
        raise Invalid(f"--from {text}: only a snapshot of group {group} can be the base")
    return name


def receive(
    group: Annotated[str, typer.Argument(metavar="NAME", help="The group: made by a full stream, else continued.")],
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Where a new group goes; default: most room.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Only say how far an unfinished receive is.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Only forget an unfinished receive.")] = False,
    json: Json = False,
) -> None:
    """Read a snapshot's stream from standard input. Nothing of it is visible before all of it is there and verified."""
    if status and abort:
        raise Invalid("--status and --abort exclude each other")
    if status:
        _show_status(group, json=json)
    elif abort:
        _abort(group, json=json)
    else:
        _receive(group, pool, json=json)


def _receive(group: str, pool: str | None, *, json: bool) -> None:
    if sys.stdin.isatty():
        raise Invalid("standard input is a terminal: give the stream from a file or a pipe")
    with connect() as daemon, Progress("received") as progress:
        snapshot = daemon.receive_snapshot(group, _input(progress), pool=pool)
    if json:
        print_json(snapshot)
        return
    say(f"Snapshot {group}@{snapshot.name} is received.")
    say(f"Next: blockyard snapshot verify {group}@{snapshot.name}, or blockyard client allow {group} IQN-OF-THE-HOST")


def _input(progress: Progress) -> Iterator[bytes]:
    while chunk := os.read(sys.stdin.fileno(), _CHUNK):
        yield chunk
        progress.count(len(chunk))


def _show_status(group: str, *, json: bool) -> None:
    with connect() as daemon:
        receive = daemon.show_receive(group)
    if json:
        print_json(receive)
        return
    doing = "is coming in" if receive.active else "was cut"
    say(
        f"{receive.snapshot} for {group} {doing}: {size_text(receive.received)} so far, "
        f"LUN {receive.lun} up to byte {receive.offset}."
    )
    if not receive.active:
        since = f" --from {receive.base}" if receive.base is not None else ""
        say(f"Next, at its source: blockyard snapshot send GROUP@{receive.snapshot}{since} --resume {receive.token}")


def _abort(group: str, *, json: bool) -> None:
    with connect() as daemon:
        daemon.abort_receive(group)
    if json:
        print_json({"forgotten": group})
    else:
        say(f"What was half received for {group} is forgotten.")


def verify(snapshot: Snapshot, json: Json = False) -> None:
    """Read and prove every block of a snapshot, and print the fingerprint of its content.

    It is the same for the same content, in whatever pool and however it is stored.
    """
    group, name = group_and_snapshot(snapshot, None)
    found = None
    with connect() as daemon, Progress("verified") as progress:
        for line in daemon.verify_snapshot(group, name):
            progress.show(line.progress)
            found = line.fingerprint
    if found is None:
        raise Internal("the verification ended without a result: the daemon's log has the details")
    if json:
        print_json(found)
        return
    print_table(
        ["LUN", "Volume", ">Size", ">Mapped", "SHA-256"],
        [[str(v.lun), v.name, size_text(v.size), size_text(v.mapped), v.sha256] for v in found.volumes],
        empty="The snapshot has no volume.",
    )
    say(f"{found.sha256}  {group}@{name}")
