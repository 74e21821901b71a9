"""Where the daemon is, as every verb but ``serve`` and ``check`` asks it; and how its address is given."""

from __future__ import annotations

import os

from blockyard.client import BlockyardClient


def connect() -> BlockyardClient:
    """The daemon at BLOCKYARD_API."""
    return BlockyardClient.from_environment(os.environ)
