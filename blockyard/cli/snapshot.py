"""blockyard snapshot: create, ls, rm; diff, send, receive and verify are in ``snapshot_content``."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli import snapshot_content
from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, say, size_text, time_text
from blockyard.cli.values import GroupArgument, group_and_snapshot

app = typer.Typer(no_args_is_help=True, help="Snapshots: frozen images of a whole group, taken at once.")

Where = Annotated[str, typer.Argument(metavar="GROUP", help="Group, or GROUP@NAME.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the snapshot.")]


@app.command(epilog="Example: blockyard snapshot create db before-upgrade")
def create(group: Where, name: Name = None, json: Json = False) -> None:
    """Freeze all volumes of a group between two writes (crash-consistent)."""
    where, called = group_and_snapshot(group, name)
    with connect() as daemon:
        snapshot = daemon.create_snapshot(where, called)
    if json:
        print_json(snapshot)
        return
    say(f"Snapshot {where}@{called} is taken.")
    say(f"Next: blockyard group clone {where}@{called} NEW, or blockyard group rollback {where} {called}")


@app.command("ls", epilog="Example: blockyard snapshot ls db")
def list_(group: GroupArgument, json: Json = False) -> None:
    """The snapshots of a group, oldest first. Exclusive is what deleting that one would free; '-': not counted yet."""
    with connect() as daemon:
        snapshots = daemon.list_snapshots(group)
    if json:
        print_json(snapshots)
        return
    print_table(
        ["Snapshot", "Created", ">Volumes", ">Size", ">Mapped", ">Exclusive"],
        [
            [
                s.name,
                time_text(s.created),
                str(len(s.volumes)),
                size_text(sum(v.size for v in s.volumes)),
                size_text(s.mapped),
                size_text(s.exclusive),
            ]
            for s in snapshots
        ],
        empty=f"No snapshots. Next: blockyard snapshot create {group} NAME",
    )


@app.command("rm", epilog="Example: blockyard snapshot rm db before-upgrade")
def remove(group: Where, name: Name = None, json: Json = False) -> None:
    """Delete a snapshot; the group and clones of it keep their contents."""
    where, called = group_and_snapshot(group, name)
    with connect() as daemon:
        daemon.delete_snapshot(where, called)
    if json:
        print_json({"deleted": f"{where}@{called}"})
    else:
        say(f"Snapshot {where}@{called} is deleted.")


app.command(epilog="Example: blockyard snapshot diff db@monday db@tuesday --json")(snapshot_content.diff)
app.command(epilog="Example: blockyard snapshot send db@tuesday --from db@monday > tuesday.zst")(snapshot_content.send)
app.command(epilog="Example: blockyard snapshot receive db-copy < tuesday.zst")(snapshot_content.receive)
app.command(epilog="Example: blockyard snapshot verify db@tuesday")(snapshot_content.verify)
