"""How long repeating tests go on, and from which seed: once in ``make test``, many times in ``make soak``."""

from __future__ import annotations

import os

SEED = int(os.environ.get("BLOCKYARD_SEED", "20260101"))


def scaled(count: int) -> int:
    """``count`` repeats, times BLOCKYARD_SCALE."""
    return count * int(os.environ.get("BLOCKYARD_SCALE", "1"))
