"""Counters of a pool: plain integers that the hot path adds to, read by ``statistics()``."""

from __future__ import annotations


class Counters:
    """Rise from open. Those that have an owner elsewhere (writer, rounds, checkpointer) are counted there."""

    __slots__ = (
        "read_bytes",
        "reads",
        "received_bytes",
        "scrub_errors",
        "scrubbed_bytes",
        "sent_bytes",
        "sweeps",
        "swept_bytes",
    )

    def __init__(self) -> None:
        self.reads = 0
        self.read_bytes = 0
        self.sweeps = 0
        self.swept_bytes = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.scrubbed_bytes = 0
        self.scrub_errors = 0
