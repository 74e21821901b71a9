"""blockyard docker-plugin: becomes the volume plugin, as ``serve`` becomes the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def docker_plugin(
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the target is, and what volumes are like by default.")
    ] = Path("/etc/blockyard/docker.toml"),
) -> None:
    """Serve Docker's volume plugin protocol on this host, until SIGTERM or Ctrl-C."""
    os.execv(sys.executable, [sys.executable, "-m", "blockyard.docker", str(config)])
