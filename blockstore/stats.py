"""Counters of a pool: plain integers that the hot path adds to, read by ``statistics()``; and the log of damage."""

from __future__ import annotations

import logging

from blockstore.api import LOGICAL_BLOCK, MediumError

_MOST_LINES = 10  # a second: a bad disk under load must not fill the log's

_log = logging.getLogger(__name__)


class Counters:
    """Rise from open. Those that have an owner elsewhere (writer, rounds, checkpointer) are counted there."""

    __slots__ = (
        "_lines",
        "_second",
        "medium_errors",
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
        self.medium_errors = 0
        self.sweeps = 0
        self.swept_bytes = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.scrubbed_bytes = 0
        self.scrub_errors = 0
        self._second = 0
        self._lines = 0

    def damaged(self, error: MediumError, now: float) -> MediumError:
        """Count ``error`` and log it, with the LBA; the error again, to be raised or answered. ``now``: seconds."""
        self.medium_errors += 1
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        if self._lines <= _MOST_LINES:
            _log.error("medium error at LBA %d: %s", error.offset // LOGICAL_BLOCK, error)
        return error
