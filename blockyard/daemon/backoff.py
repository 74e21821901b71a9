"""How long to wait before the next start of something that keeps dying. Sans-IO: time is an argument.

The first death is followed by a start at once; each further death within ``CALM`` seconds of its start doubles the
wait, up to ``LONGEST``.
"""

from __future__ import annotations

FIRST = 0.25  # seconds; guessed: an initiator's own retry takes 2 s or more
# Seconds; guessed. Each wait is an outage of the pool, beside about 1 s that a start takes; longer waits would save
# little CPU, and initiators give up by time (replacement_timeout), not by tries.
LONGEST = 3.0
CALM = 10.0  # seconds of life after which a death counts as the first again; guessed


class Backoff:
    def __init__(self) -> None:
        self._started: float | None = None
        self._deaths = 0

    def started(self, now: float) -> None:
        self._started = now

    def died(self, now: float) -> float:
        """Seconds to wait before the next start."""
        if self._started is not None and now - self._started >= CALM:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        return float(min(LONGEST, FIRST * 2 ** min(self._deaths - 2, 10)))
