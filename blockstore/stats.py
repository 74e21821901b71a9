"""Counters of a pool: plain integers that the hot path adds to, read by ``statistics()``."""

from __future__ import annotations


class Counters:
    """Rise from open. Those that have an owner elsewhere (writer, rounds, checkpointer) are counted there."""

    __slots__ = ("read_bytes", "reads", "sweeps", "swept_bytes")

    def __init__(self) -> None:
        self.reads = 0
        self.read_bytes = 0
        self.sweeps = 0
        self.swept_bytes = 0
