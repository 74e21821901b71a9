"""blockyard docker-plugin and docker-snapshot: become what they name, as ``serve`` becomes the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Option(metavar="FILE", help="Where the target is, and what volumes are like by default.")
]
DEFAULT_CONFIG = Path("/etc/blockyard/docker.toml")


def docker_plugin(config: Config = DEFAULT_CONFIG) -> None:
    """Serve Docker's volume plugin protocol on this host, until SIGTERM or Ctrl-C."""
    os.execv(sys.executable, [sys.executable, "-m", "blockyard.docker", str(config)])


def docker_snapshot(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="As Docker calls it; mounted on this host.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Take a snapshot of a volume while its file system stands still, so that nothing is to be repaired in it."""
    os.execv(sys.executable, [sys.executable, "-m", "blockyard.docker.snapshot", str(config), volume, name])
