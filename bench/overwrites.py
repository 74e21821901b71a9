"""An endless load in process: random 4 KiB overwrites of one volume, a fixed number in flight.

It runs on whatever loop the pool runs on; nobody has to turn it. Invariant: the answer to a write begins the next one,
a tick later, as an initiator's next command comes a tick later too; until an error or ``stop``.
"""

from __future__ import annotations

import os
import random
import time

from blockstore.api import Runner, StandingPermit, StoreError, Volume

GRAIN = 4096


class Overwrites:
    def __init__(self, volume: Volume, runner: Runner, depth: int) -> None:
        """Begins in the next tick. ``runner``: the pool's."""
        self.writes = 0
        self.worst = 0.0  # seconds that the slowest write took; whoever reads it may set it back
        self.errors: list[StoreError] = []
        self.stopped = False
        self._volume = volume
        self._runner = runner
        self._places = volume.size // GRAIN
        self.data = os.urandom(GRAIN)
        self.permit = StandingPermit()
        self._random = random.Random(1).random
        self._idle = [_Writer(self) for _ in range(depth)]
        runner.call_soon(self._begin_idle)

    def stop(self) -> None:
        """No write is begun any more."""
        self.stopped = True

    def raise_error(self) -> None:
        """The first one, if there was one."""
        if self.errors:
            raise self.errors[0]

    def rest(self, writer: _Writer) -> None:
        """Its write is answered."""
        if not self._idle and not self.stopped:
            self._runner.call_soon(self._begin_idle)
        self._idle.append(writer)

    def _begin_idle(self) -> None:
        idle, self._idle = self._idle, []
        for writer in idle:
            writer.begin(self._volume, int(self._random() * self._places) * GRAIN)


class _Writer:
    """At most one write in flight."""

    def __init__(self, load: Overwrites) -> None:
        self._load = load
        self._began = 0.0

    def begin(self, volume: Volume, offset: int) -> None:
        self._began = time.perf_counter()
        volume.write(offset, self._load.data, self._load.permit, self._done)

    def _done(self, error: StoreError | None) -> None:
        load = self._load
        if error is not None:
            load.errors.append(error)
            return
        load.writes += 1
        load.worst = max(load.worst, time.perf_counter() - self._began)
        load.rest(self)
