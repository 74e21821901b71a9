"""blockyard volume: add, ls, resize, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Force, Json, print_json, print_table, say, size_text, time_text
from blockyard.cli.values import GroupArgument, Size, size_of
from blockyard.model import VolumeSpec

app = typer.Typer(no_args_is_help=True, help="Volumes: the logical units (LUNs) of a group.")

Lun = Annotated[int, typer.Argument(metavar="LUN", help="Number of the logical unit.")]


@app.command(epilog="Example: blockyard volume add db --size 4G --name log")
def add(
    group: GroupArgument,
    size: Size,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the volume; vol<LUN> if left out.")] = None,
    json: Json = False,
) -> None:
    """Add a volume to a group. With --name, doing it again changes nothing."""
    with connect() as daemon:
        volume = daemon.add_volume(group, VolumeSpec(size=size_of(size), name=name))
    if json:
        print_json(volume)
        return
    say(f"Volume {volume.name} of {size_text(volume.size)} is LUN {volume.lun} of {group}.")
    say("Logged-in Linux hosts find it by themselves; by hand: iscsiadm -m session --rescan")


@app.command("ls", epilog="Example: blockyard volume ls db")
def list_(group: GroupArgument, json: Json = False) -> None:
    """The volumes of a group."""
    with connect() as daemon:
        volumes = daemon.list_volumes(group)
    if json:
        print_json(volumes)
        return
    print_table(
        ["LUN", "Volume", ">Size", ">Mapped", "~Created", "~UUID"],
        [
            [str(v.lun), v.name, size_text(v.size), size_text(v.mapped), time_text(v.created), str(v.uuid)]
            for v in volumes
        ],
        empty=f"No volumes. Next: blockyard volume add {group} --size 10G",
    )


@app.command(epilog="Example: blockyard volume resize db 0 20G")
def resize(
    group: GroupArgument,
    lun: Lun,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="New size, such as 20G; volumes only grow.")],
    json: Json = False,
) -> None:
    """Grow a volume, also while it is mounted."""
    with connect() as daemon:
        volume = daemon.resize_volume(group, lun, size_of(size))
    if json:
        print_json(volume)
        return
    say(f"LUN {lun} of {group} has {size_text(volume.size)} now.")
    say("Next, on the host: iscsiadm -m session --rescan, then resize2fs or xfs_growfs")


@app.command("rm", epilog="Example: blockyard volume rm db 1")
def remove(group: GroupArgument, lun: Lun, force: Force = False, json: Json = False) -> None:
    """Remove a volume; its LUN number is never used again in this group. Snapshots keep its contents."""
    with connect() as daemon:
        daemon.remove_volume(group, lun, force=force)
    if json:
        print_json({"deleted": lun})
    else:
        say(f"LUN {lun} of {group} is removed.")
