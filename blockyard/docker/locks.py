"""One operation at a time for each volume, whatever happens to the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from blockyard.errors import Busy


class VolumeLocks:
    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    @contextmanager
    def held(self, volume: str, seconds: float) -> Iterator[None]:
        """Raises Busy when another operation has it for longer than ``seconds``."""
        with self._guard:
            # Never removed: a lock that somebody may be waiting for must stay the same, and names are few.
            lock = self._locks.setdefault(volume, threading.Lock())
        if not lock.acquire(timeout=seconds):
            raise Busy(f"volume {volume} is still busy with another operation after {seconds:.0f} s: try again")
        try:
            yield
        finally:
            lock.release()
