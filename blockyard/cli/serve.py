"""blockyard serve: becomes the daemon.

The process is replaced by ``python -m blockyard.daemon``: the command line knows REST only, and the daemon starts
without what the command line has loaded. The process id stays, as service managers expect.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from blockyard.cli import serve_file
from blockyard.errors import Invalid
from blockyard.model import names
from blockyard.model.names import DEFAULT_API


def serve(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the pools are. Must be there, unless --create.")
    ] = None,
    portal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where initiators connect; may be repeated; [::1]:3260 for IPv6. Sockets that a service manager hands "
            "over are portals, too.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with these options' names as keys; options go before it.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="What discovery names instead of the address that was reached."),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="How many pools there shall be at least, a process each.")
    ] = 1,
    ping_interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Of silence, after which a session is pinged; 1 to 300.")
    ] = 3.0,
    ping_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Without an answer, after which the session is dropped; 1 to 300."),
    ] = 3.0,
    api: Annotated[
        str | None,
        typer.Option(metavar="unix:PATH", help=f"The API's socket. [default: BLOCKYARD_API or {DEFAULT_API}]"),
    ] = None,
    create: Annotated[
        bool,
        typer.Option(
            "--create/--no-create",
            help="Begin a new store, and pools, where there are none. Not for every start: a store that is not mounted "
            "would begin anew.",
        ),
    ] = False,
    api_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve the API over TLS here, too, to whoever has a token."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate for --api-listen, with its chain (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    pool_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What each pool may grow to, such as 500G; at least 1M. [default: the file system]"
        ),
    ] = None,
    map_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How much of its maps each pool keeps in memory (3 GiB hold 1 TiB of data); the rest is read when it "
            "is needed. At least 16M. [default: 1G]",
        ),
    ] = None,
    private_frees: Annotated[
        bool,
        typer.Option(
            "--private-frees/--no-private-frees",
            help="Free overwritten blocks that nothing else shares at once; without, sweeps find all that is free.",
        ),
    ] = True,
) -> None:
    """Serve a store in the foreground, until SIGTERM or Ctrl-C."""
    address = os.environ.get("BLOCKYARD_API") or DEFAULT_API
    settings = {
        "store": None if store is None else str(store.absolute()),
        "portals": portal or [],
        "advertise": advertise,
        "workers": workers,
        "create": create,
        "pool_size": None if pool_size is None else _bytes("--pool-size", pool_size),
        "map_memory": None if map_memory is None else _bytes("--map-memory", map_memory),
        "private_frees": private_frees,
        # An https address in the environment says where this user's verbs go, not where to serve.
        "api": api or (DEFAULT_API if address.startswith("https:") else address),
        "api_listen": api_listen,
        "tls_cert": None if tls_cert is None else str(tls_cert.absolute()),
        "tls_key": None if tls_key is None else str(tls_key.absolute()),
        "ping_interval": ping_interval,
        "ping_timeout": ping_timeout,
    }
    if config is not None:
        settings |= serve_file.read(config, lambda name: _said(context, name), _bytes)
    if settings["store"] is None:
        raise Invalid('where the store is was not said: --store DIR, or a line store = "DIR" in the file of --config')
    os.execv(sys.executable, [sys.executable, "-m", "blockyard.daemon", json.dumps(settings)])


def _said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _bytes(option: str, text: str) -> int:
    try:
        return names.parse_size(text)
    except ValueError as error:
        raise Invalid(f"{option}: {error}") from None
