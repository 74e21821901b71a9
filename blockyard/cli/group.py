"""blockyard group: create, show, ls, set, clone, rollback, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.next_step import after_group
from blockyard.cli.output import (
    Force,
    Json,
    print_fields,
    print_json,
    print_table,
    say,
    size_text,
    state_text,
    time_text,
    warn,
)
from blockyard.cli.secrets import ChapSecretFile, ChapUser, GenerateChap, MutualSecretFile, MutualUser, read_chap
from blockyard.cli.values import GroupArgument, Size, group_and_snapshot, labels_of, size_of
from blockyard.errors import Invalid
from blockyard.model import Cache, CloneRequest, Created, Group, GroupChange, NewGroup, RollbackRequest, VolumeSpec

app = typer.Typer(no_args_is_help=True, help="Volume groups: each is one iSCSI target.")

Clients = Annotated[
    list[str] | None,
    typer.Option("--client", metavar="IQN|any", help="Initiator that may log in; may be repeated."),
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="What to note about the group; may be repeated."),
]
CREATE = "blockyard group create NAME --size 10G --client IQN-OF-THE-HOST"
CACHE_HELP = (
    "writeback: a write is acknowledged when journalled and durable at the next flush or FUA; it survives any death "
    "of the process, not a power cut of this machine. writethrough: a write is acknowledged when it is durable."
)


@app.command(
    epilog="Example: blockyard group create db --size 10G --client iqn.2004-10.com.ubuntu:01:abc",
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 63 of a-z, 0-9, '-' and '.'.")],
    size: Size,
    client: Clients = None,
    cache: Annotated[Cache, typer.Option(help=CACHE_HELP)] = Cache.WRITEBACK,
    iqn: Annotated[
        str | None, typer.Option(metavar="IQN", help="The target's name; made from pool and group if left out.")
    ] = None,
    label: LabelsOption = None,
    chap_user: ChapUser = None,
    chap_secret_file: ChapSecretFile = None,
    generate_chap: GenerateChap = False,
    mutual_user: MutualUser = None,
    mutual_secret_file: MutualSecretFile = None,
    json: Json = False,
) -> None:
    """Make a group with one volume (LUN 0). Doing it again with the same properties changes nothing."""
    chap = read_chap(chap_user, chap_secret_file, generate_chap, mutual_user, mutual_secret_file)
    asked = NewGroup(
        name=name,
        volumes=(VolumeSpec(size=size_of(size)),),
        clients=tuple(chap.client(initiator) for initiator in client or ()),
        cache=cache,
        iqn=iqn,
        labels=labels_of(label or ()),
    )
    with connect() as daemon:
        created = daemon.create_group(asked)
    secret = chap.chap.secret if chap.chap and chap.generated else None
    if json:
        _print_created(created, secret)
        return
    there = "made" if created.created else "was there already, with the same properties"
    say(f"Group {name} {there}: {size_text(asked.volumes[0].size)}, {created.group.iqn}")
    if secret:
        say(f"CHAP secret of {chap_user}, shown this once: {secret}")
    say(after_group(created.group, chap))


def _print_created(created: Created, secret: str | None = None) -> None:
    answer = created.group.model_dump(mode="json") | {"created": created.created}
    print_json(answer | ({"chap_secret": secret} if secret else {}))


@app.command(epilog="Example: blockyard group show db --json")
def show(group: GroupArgument, json: Json = False) -> None:
    """Everything about one group; secrets are never shown."""
    with connect() as daemon:
        shown = daemon.show_group(group, usage=True)
    if json:
        print_json(shown)
        return
    _print_group(shown)


def _print_group(group: Group) -> None:
    print_fields(
        [
            ("Group", group.name),
            ("IQN", group.iqn),
            ("Portals", ", ".join(group.portals)),
            ("State", state_text(group.state)),
            ("Pool", group.pool),
            ("Cache", group.cache),
            ("Created", time_text(group.created)),
            *([("Clone of", group.origin)] if group.origin else []),
            ("Sessions", str(group.sessions)),
            *([("Attached to", ", ".join(group.hosts))] if group.hosts else []),
            *([("Labels", ", ".join(f"{key}={value}" for key, value in group.labels.items()))] if group.labels else []),
            *_usage_fields(group),
        ]
    )
    say("")
    print_table(
        ["LUN", "Volume", ">Size", ">Mapped", ">Exclusive", ">Reclaimable", "~UUID"],
        [
            [
                str(v.lun),
                v.name,
                size_text(v.size),
                size_text(v.mapped),
                size_text(v.exclusive),
                size_text(v.reclaimable),
                str(v.uuid),
            ]
            for v in group.volumes
        ],
        empty="No volumes.",
    )
    say("")
    print_table(
        ["Client", "From", "Authentication"],
        [[c.initiator, c.address or "anywhere", c.auth] for c in group.clients],
        empty=f"No clients: nobody may log in. Next: blockyard client allow {group.name} IQN-OF-THE-HOST",
    )
    say("")
    print_table(
        ["Snapshot", "Created"],
        [[s.name, time_text(s.created)] for s in group.snapshots],
        empty="No snapshots.",
    )
    if group.snapshot_count > len(group.snapshots):
        say(f"These are the newest of {group.snapshot_count}: blockyard snapshot ls {group.name} lists all.")


def _usage_fields(group: Group) -> list[tuple[str, str]]:
    if group.usage_taken is None:
        return [("Space", "not counted yet: ask again in a moment")]
    return [
        ("Exclusive", f"{size_text(group.exclusive)}: deleting the group frees it"),
        ("Reclaimable", f"{size_text(group.reclaimable)}: deleting all its snapshots frees it"),
        ("Counted", time_text(group.usage_taken)),
    ]


@app.command("ls", epilog="Example: blockyard group ls")
def list_(json: Json = False) -> None:
    """All groups."""
    with connect() as daemon:
        found = daemon.list_groups()
    for sentence in found.unavailable:
        warn(sentence)
    if json:
        print_json(list(found.groups))
        return
    print_table(
        ["Group", "State", "Pool", ">LUNs", ">Size", ">Mapped", ">Snapshots", ">Sessions", "~IQN"],
        [
            [
                group.name,
                state_text(group.state),
                group.pool,
                str(len(group.volumes)),
                size_text(sum(volume.size for volume in group.volumes)),
                size_text(sum(volume.mapped for volume in group.volumes)),
                str(group.snapshot_count),
                str(group.sessions),
                group.iqn,
            ]
            for group in found.groups
        ],
        empty="No groups are known." if found.unavailable else f"No groups. Next: {CREATE}",
    )


@app.command("set", epilog="Example: blockyard group set db --cache writethrough")
def set_(
    group: GroupArgument,
    cache: Annotated[Cache | None, typer.Option(help=CACHE_HELP)] = None,
    label: LabelsOption = None,
    json: Json = False,
) -> None:
    """Change a group's cache policy or labels, also while it is in use. KEY= takes a label away; labels that are not
    named stay."""
    if cache is None and label is None:
        raise Invalid("nothing to set: give --cache or --label")
    with connect() as daemon:
        labels = None if label is None else _merged(daemon.show_group(group).labels, labels_of(label))
        changed = daemon.set_group(group, GroupChange(cache=cache, labels=labels))
    if json:
        print_json(changed)
        return
    noted = ", ".join(f"{key}={value}" for key, value in changed.labels.items())
    say(f"Group {group} is {changed.cache} now" + (f", labels {noted}." if noted else "."))


def _merged(there: dict[str, str], said: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in (there | said).items() if value}


@app.command(epilog="Example: blockyard group clone db@before-upgrade staging")
def clone(
    source: Annotated[str, typer.Argument(metavar="GROUP@SNAPSHOT", help="What to clone.")],
    name: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new group.")],
    client: Clients = None,
    iqn: Annotated[str | None, typer.Option(metavar="IQN", help="The new target's name.")] = None,
    label: LabelsOption = None,
    json: Json = False,
) -> None:
    """A new, writable group from a snapshot, at once. Without --client it has the clients of the group it came from."""
    group, snapshot = group_and_snapshot(source, None)
    chap = read_chap(None, None, False)
    clients = None if client is None else tuple(chap.client(initiator) for initiator in client)
    asked = CloneRequest(snapshot=snapshot, name=name, clients=clients, iqn=iqn, labels=labels_of(label or ()))
    with connect() as daemon:
        created = daemon.clone_group(group, asked)
    if json:
        _print_created(created)
        return
    there = "made from" if created.created else "was there already, a clone of"
    say(f"Group {name} {there} {source}: {created.group.iqn}")
    say(after_group(created.group, chap))


@app.command(epilog="Example: blockyard group rollback db before-upgrade")
def rollback(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Group, or GROUP@SNAPSHOT.")],
    snapshot: Annotated[str | None, typer.Argument(metavar="SNAPSHOT", help="Which moment to go back to.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Put all volumes of a group back to a snapshot. What is there now is kept as an automatic snapshot first. Refused
    while hosts are logged in, because it would corrupt a mounted file system: unmount and log out."""
    name, moment = group_and_snapshot(group, snapshot)
    with connect() as daemon:
        automatic = daemon.rollback_group(name, RollbackRequest(snapshot=moment, force=force))
    if json:
        print_json(automatic)
        return
    say(f"Group {name} is back at {moment}; what it was before is snapshot {automatic.name}.")
    say(f"To undo: blockyard group rollback {name} {automatic.name}")


@app.command("rm", epilog="Example: blockyard group rm staging")
def remove(group: GroupArgument, force: Force = False, json: Json = False) -> None:
    """Delete a group with all its volumes and snapshots. Clones of it live on."""
    with connect() as daemon:
        daemon.delete_group(group, force=force)
    if json:
        print_json({"deleted": group})
    else:
        say(f"Group {group} is deleted. Its hosts can forget it: iscsiadm -m node -T IQN --op delete")
