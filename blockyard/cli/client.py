"""blockyard client: allow, ls, deny."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.next_step import after_group
from blockyard.cli.output import Json, print_json, print_table, say
from blockyard.cli.secrets import ChapSecretFile, ChapUser, GenerateChap, MutualSecretFile, MutualUser, read_chap
from blockyard.cli.values import GroupArgument

app = typer.Typer(no_args_is_help=True, help="Clients: the initiators that may log in to a group.")

Initiator = Annotated[
    str, typer.Argument(metavar="IQN|any", help="The host's name, from its /etc/iscsi/initiatorname.iscsi.")
]


@app.command(epilog="Example: blockyard client allow db iqn.2004-10.com.ubuntu:01:abc --chap-user web1 --generate-chap")
def allow(
    group: GroupArgument,
    initiator: Initiator,
    address: Annotated[
        str | None, typer.Option(metavar="CIDR", help="Only from this range, such as 192.0.2.0/24.")
    ] = None,
    chap_user: ChapUser = None,
    chap_secret_file: ChapSecretFile = None,
    generate_chap: GenerateChap = False,
    mutual_user: MutualUser = None,
    mutual_secret_file: MutualSecretFile = None,
    json: Json = False,
) -> None:
    """Let an initiator log in to a group. What was said of the same initiator before is replaced."""
    chap = read_chap(chap_user, chap_secret_file, generate_chap, mutual_user, mutual_secret_file)
    with connect() as daemon:
        client = daemon.allow_client(group, chap.client(initiator, address))
        shown = daemon.show_group(group)
    secret = chap.chap.secret if chap.chap and chap.generated else None
    if json:
        print_json(client.model_dump(mode="json") | ({"chap_secret": secret} if secret else {}))
        return
    say(f"{initiator} may log in to {group} from {client.address or 'anywhere'}; authentication: {client.auth}.")
    if secret:
        say(f"CHAP secret of {chap_user}, shown this once: {secret}")
    say(after_group(shown, chap))


@app.command("ls", epilog="Example: blockyard client ls db")
def list_(group: GroupArgument, json: Json = False) -> None:
    """Who may log in to a group."""
    with connect() as daemon:
        clients = daemon.list_clients(group)
    if json:
        print_json(clients)
        return
    print_table(
        ["Client", "From", "Authentication", "~User", "~Target's user"],
        [[c.initiator, c.address or "anywhere", c.auth, c.chap_user or "", c.mutual_user or ""] for c in clients],
        empty=f"Nobody may log in. Next: blockyard client allow {group} IQN-OF-THE-HOST",
    )


@app.command(epilog="Example: blockyard client deny db iqn.2004-10.com.ubuntu:01:abc")
def deny(group: GroupArgument, initiator: Initiator, json: Json = False) -> None:
    """Take the right to log in away; its open sessions are ended."""
    with connect() as daemon:
        daemon.deny_client(group, initiator)
    if json:
        print_json({"denied": initiator})
    else:
        say(f"{initiator} may no longer log in to {group}.")
