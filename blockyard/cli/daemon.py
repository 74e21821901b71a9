"""Where the daemon is, as every verb but ``serve`` and ``check`` asks it; and how its address is given."""

from __future__ import annotations

import os

from blockyard.client import BlockyardClient
from blockyard.model.names import DEFAULT_API


def connect() -> BlockyardClient:
    """The daemon at BLOCKYARD_API."""
    return BlockyardClient(os.environ.get("BLOCKYARD_API") or DEFAULT_API)
