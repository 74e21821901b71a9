"""The file of ``serve --config``: TOML whose keys are the names of serve's options, without the dashes before them.

What is said on the command line goes before what the file says.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockyard.errors import Invalid

_PATHS = ("store", "tls-cert", "tls-key")
_SIZES = ("pool-size", "map-memory")
_KEYS = (
    *_PATHS, *_SIZES, "portal", "advertise", "create", "workers", "private-frees", "api", "api-listen",
    "ping-interval", "ping-timeout",
)  # fmt: skip


def read(path: Path, said: Callable[[str], bool], size: Callable[[str, str], int]) -> dict[str, Any]:
    """What the file adds to the daemon's configuration. ``said``: whether the command line has that option; ``size``
    reads the size of a key. Raises Invalid."""
    found = {}
    for key, value in _table(path).items():
        if key not in _KEYS:
            raise Invalid(f"configuration {path}: unknown key {key}; allowed are {', '.join(_KEYS)}")
        if said(key.replace("-", "_")):
            continue
        if key in _PATHS:
            value = os.path.abspath(str(value))
        elif key in _SIZES and isinstance(value, str):
            value = size(key, value)
        elif key == "portal":
            value = [value] if isinstance(value, str) else value
        found["portals" if key == "portal" else key.replace("-", "_")] = value
    return found


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise Invalid(f"configuration {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"configuration {path} is no TOML: {error}") from error
