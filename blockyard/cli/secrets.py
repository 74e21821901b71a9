"""CHAP secrets from files, from standard input, or made here. Never from the command line itself, where every user of
the machine could read them in the list of processes; never printed, except once when made here."""

from __future__ import annotations

import secrets
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from blockyard.errors import Invalid
from blockyard.model import ChapCredentials, ClientSpec

GENERATED_LENGTH = 16  # characters; RFC 7143 9.2.1 wants 96 bits, Windows takes at most 16
_ALPHABET = string.ascii_letters + string.digits  # 5.95 bits each: 95 bits, and no shell or form mangles them
_SECRET_HELP = "File with the CHAP secret (12 bytes or more; Windows: at most 16); - reads standard input."

ChapUser = Annotated[
    str | None, typer.Option("--chap-user", metavar="USER", help="User name that the initiator must prove (CHAP).")
]
ChapSecretFile = Annotated[str | None, typer.Option("--chap-secret-file", metavar="FILE", help=_SECRET_HELP)]
GenerateChap = Annotated[bool, typer.Option("--generate-chap", help="Make a CHAP secret and show it once.")]
MutualUser = Annotated[
    str | None, typer.Option("--mutual-user", metavar="USER", help="User name by which the target proves itself.")
]
MutualSecretFile = Annotated[
    str | None, typer.Option("--mutual-secret-file", metavar="FILE", help="File with the target's own secret.")
]


@dataclass(frozen=True, slots=True)
class Chap:
    """What the options say about authentication."""

    chap: ChapCredentials | None = None
    mutual: ChapCredentials | None = None
    generated: bool = False

    def client(self, initiator: str, address: str | None = None) -> ClientSpec:
        return ClientSpec(initiator=initiator, address=address, chap=self.chap, mutual=self.mutual)


def read_chap(
    user: str | None,
    secret_file: str | None,
    generate: bool,
    mutual_user: str | None = None,
    mutual_secret_file: str | None = None,
) -> Chap:
    """Raises Invalid when options that belong together are not together."""
    if user is None and (secret_file or generate):
        raise Invalid("--chap-secret-file and --generate-chap need --chap-user NAME")
    if user is not None and (secret_file is None) == (not generate):
        raise Invalid("--chap-user needs one of --chap-secret-file FILE (- for standard input) and --generate-chap")
    if (mutual_user is None) != (mutual_secret_file is None):
        raise Invalid("--mutual-user and --mutual-secret-file need each other")
    if secret_file == mutual_secret_file == "-":
        raise Invalid("standard input holds one secret: give the other one as a file")
    secret = _generate() if generate else _read(secret_file) if secret_file else None
    chap = ChapCredentials(user=user, secret=secret) if user and secret is not None else None
    mutual = None
    if mutual_user is not None and mutual_secret_file is not None:
        mutual = ChapCredentials(user=mutual_user, secret=_read(mutual_secret_file))
    return Chap(chap, mutual, generate)


def _generate() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(GENERATED_LENGTH))


def _read(file: str) -> str:
    """The first line's end is the editor's, not the secret's."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"secret file {file} cannot be read: {error}") from None
    return text.removesuffix("\n").removesuffix("\r")
