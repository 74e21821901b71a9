"""blockyard token: create, ls, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from blockyard.cli.daemon import connect
from blockyard.cli.output import Json, print_json, print_table, say, time_text
from blockyard.model.tokens import NewToken, Token

app = typer.Typer(no_args_is_help=True, help="Tokens: who may speak to the daemon over the network.")


@app.command(epilog="Example: blockyard token create --host iqn.2004-10.com.ubuntu:01:abc --project shop")
def create(
    host: Annotated[
        str | None, typer.Option("--host", metavar="IQN", help="A host's: it attaches groups as this initiator only.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="The host's: it sees, makes and changes the groups with label blockyard.project=PROJECT."),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An administrator's: it may do everything.")] = False,
    json: Json = False,
) -> None:
    """Make a token and show it, this once."""
    with connect() as daemon:
        created = daemon.create_token(NewToken(admin=admin, host=host, project=project))
    if json:
        print_json(created)
        return
    say(f"Token {created.token.id}, {_what(created.token)}, shown this once:")
    say(created.text)
    say("Next, where it is used: write it to a file that only its user can read, and set BLOCKYARD_TOKEN_FILE to that, "
        "BLOCKYARD_API to https://HOST:PORT, and BLOCKYARD_CA to the certificate to trust")  # fmt: skip


@app.command("ls", epilog="Example: blockyard token ls")
def list_(json: Json = False) -> None:
    """All tokens, without their texts."""
    with connect() as daemon:
        tokens = daemon.list_tokens()
    if json:
        print_json(tokens)
        return
    print_table(
        [">Token", "Host", "Project", "Created", "Revoked"],
        [
            [
                str(token.id),
                token.host or "(admin)",
                token.project or "",
                time_text(token.created),
                "-" if token.revoked is None else time_text(token.revoked),
            ]
            for token in tokens
        ],
        empty="No tokens. Next: blockyard token create --host IQN --project PROJECT",
    )


@app.command(epilog="Example: blockyard token revoke 3")
def revoke(
    number: Annotated[int, typer.Argument(metavar="TOKEN", help="Its number, from blockyard token ls.")],
    json: Json = False,
) -> None:
    """Make a token good for nothing. Hosts that are logged in stay so."""
    with connect() as daemon:
        token = daemon.revoke_token(number)
    if json:
        print_json(token)
    else:
        say(f"Token {number}, {_what(token)}, is revoked.")


def _what(token: Token) -> str:
    return "an administrator's" if token.admin else f"of {token.host} in project {token.project}"
