"""The command ``blockyard``: the nouns put together, and every refusal as one line on stderr with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from pydantic import ValidationError

from blockyard import __version__
from blockyard.cli import (
    api,
    attachment,
    audit,
    check,
    client,
    docker_plugin,
    group,
    pool,
    serve,
    session,
    snapshot,
    snapshot_content,
    token,
    volume,
)
from blockyard.cli.output import Json, print_json, say, warn
from blockyard.errors import ANSWERS, EXIT_FINDINGS, Invalid, ProductError, explain
from blockyard.model.names import DEFAULT_API

EXIT_CODES = ", ".join(f"{answer.exit_code} {answer.code.replace('_', ' ')}" for answer in ANSWERS.values())
EPILOG = (
    f"Every verb but serve, docker-plugin, check, pool create and pool forget asks the daemon at BLOCKYARD_API "
    f"(default {DEFAULT_API}); at an https:// address "
    "with the token in BLOCKYARD_TOKEN or BLOCKYARD_TOKEN_FILE, trusting the certificates in BLOCKYARD_CA. "
    "Answers go to standard output, refusals to standard error. "
    f"Exit codes: 0 done, {EXIT_FINDINGS} check found damage, {EXIT_CODES}."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and usage errors: no boxes in pipes and logs, and rich is not loaded for them
    help="Blockyard serves volume groups by iSCSI from a copy-on-write store.",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
app.command(epilog="Example: blockyard serve --store /var/lib/blockyard --portal 0.0.0.0:3260")(serve.serve)
app.command("docker-plugin", epilog="Example: blockyard docker-plugin --config /etc/blockyard/docker.toml")(
    docker_plugin.docker_plugin
)
app.command("docker-snapshot", epilog="Example: blockyard docker-snapshot db before-upgrade")(
    docker_plugin.docker_snapshot
)
app.command(epilog="Example: blockyard check --store /var/lib/blockyard --deep")(check.check)
app.command(epilog="Example: blockyard diff db@monday db@tuesday")(snapshot_content.diff)
for noun in (group, volume, snapshot, client, attachment, session, pool, token, audit, api):
    app.add_typer(noun.app, name=noun.__name__.rpartition(".")[2])


@app.command(epilog="Example: blockyard version --json")
def version(json: Json = False) -> None:
    """The version of this command."""
    if json:
        print_json({"version": __version__})
    else:
        say(f"blockyard {__version__}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit code of ``errors.ANSWERS``."""
    try:
        app(arguments)
    except ProductError as error:
        _end(error)
    except ValidationError as error:
        _end(Invalid(explain(error.errors())))


def _end(error: ProductError) -> None:
    warn(str(error))
    sys.exit(ANSWERS[type(error)].exit_code)
