"""blockyard attachment: create, ls, take-over, release."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, say, time_text
from blockyard.cli.values import GroupArgument
from blockyard.model.attachments import Attached, Attachment, AttachMode, AttachRequest

app = typer.Typer(
    no_args_is_help=True,
    help="Attachments: which host has a group. While a group is attached, only its hosts can log in.",
)

Host = Annotated[
    str, typer.Option("--host", metavar="IQN", help="The host's name, from its /etc/iscsi/initiatorname.iscsi.")
]
Mode = Annotated[
    AttachMode,
    typer.Option(
        help="single-writer: this host alone. multi-writer: hosts that keep their writes apart themselves (a cluster "
        "file system). read-only-many: any number of hosts, none can write."
    ),
]


@app.command(epilog="Example: blockyard attachment create db --host iqn.2004-10.com.ubuntu:01:abc")
def create(group: GroupArgument, host: Host, mode: Mode = AttachMode.SINGLE_WRITER, json: Json = False) -> None:
    """Give a group to a host. Refused while another host has it; for the same host it changes nothing and shows the
    same secret again."""
    with connect() as daemon:
        attached = daemon.attach(group, host, AttachRequest(mode=mode))
    _print_attached(attached, json)


@app.command("take-over", epilog="Example: blockyard attachment take-over db --host iqn.2004-10.com.ubuntu:01:def")
def take_over(group: GroupArgument, host: Host, mode: Mode = AttachMode.SINGLE_WRITER, json: Json = False) -> None:
    """Give a group to a host at once, whoever has it, alive or not. When this returns nothing that the others still
    send is written, and they cannot log in any more."""
    with connect() as daemon:
        attached = daemon.attach(group, host, AttachRequest(mode=mode, take_over=True))
    _print_attached(attached, json)


@app.command("ls", epilog="Example: blockyard attachment ls db")
def list_(
    group: Annotated[str | None, typer.Argument(metavar="GROUP", help="Only this group's.")] = None,
    host: Annotated[str | None, typer.Option("--host", metavar="IQN", help="Only this host's.")] = None,
    json: Json = False,
) -> None:
    """Which host has which group, and whether it is alive."""
    with connect() as daemon:
        attachments = daemon.attachments(group, host)
    if json:
        print_json(attachments)
        return
    print_table(
        ["Group", "Host", "Mode", ">Generation", ">Sessions", "Alive", "~Seen", "~Since"],
        [
            [
                each.group,
                each.host,
                each.mode,
                str(each.generation),
                str(each.sessions),
                "yes" if each.alive else "no",
                "-" if each.seen is None else time_text(each.seen),
                time_text(each.created),
            ]
            for each in attachments
        ],
        empty="No attachments.",
    )


@app.command(epilog="Example: blockyard attachment release db --host iqn.2004-10.com.ubuntu:01:abc")
def release(group: GroupArgument, host: Host, json: Json = False) -> None:
    """Take a group from a host: its sessions end, and nothing that it still sends is written."""
    with connect() as daemon:
        daemon.release(group, host)
    if json:
        print_json({"released": group, "host": host})
    else:
        say(f"Group {group} is not attached to {host} (any more).")


def _print_attached(attached: Attached, json: bool) -> None:
    if json:
        print_json(attached)
        return
    attachment = attached.attachment
    say(f"Group {attachment.group} is attached to {attachment.host}: {attachment.mode}, "
        f"generation {attachment.generation}.")  # fmt: skip
    say(f"CHAP user {attached.chap.user}, secret {attached.chap.secret}")
    say("Next, on the host:")
    for line in _login_lines(attachment, attached.chap.secret):
        say(f"  {line}")


def _login_lines(attachment: Attachment, secret: str) -> list[str]:
    node = f"iscsiadm -m node -T {attachment.target} -p {next(iter(attachment.portals), 'HOST:PORT')}"
    settings = (("authmethod", "CHAP"), ("username", attachment.chap_user), ("password", secret))
    return [
        f"{node} -o new",
        *(f"{node} -o update -n node.session.auth.{name} -v {shlex.quote(value)}" for name, value in settings),
        f"{node} --login",
    ]
