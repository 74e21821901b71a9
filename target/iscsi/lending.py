"""Buffers lent for Data-In: fresh memory costs more page faults than the data itself costs copying, so it is reused.

One lender per connection, so that bytes left over from one initiator never reach another. Invariant: a buffer is lent
again only when nothing refers to it any more, neither the borrower nor the out-queue; that is read from its reference
count, since every memoryview of it counts.
"""

from __future__ import annotations

from collections import deque
from sys import getrefcount

MAX_KEPT = 4 << 20
"""Bytes kept for another time; what the portal lets queue up for one peer, so that more is rarely lent at once."""
_UNUSED = 2  # references to a buffer nobody uses: the queue that keeps it, and getrefcount's argument


class Lender:
    """Writable buffers of any length, kept by length in the order in which they were lent."""

    __slots__ = ("_kept", "_size")

    def __init__(self) -> None:
        self._kept: dict[int, deque[bytearray]] = {}
        self._size = 0

    def lend(self, length: int) -> memoryview:
        """A buffer of ``length`` bytes with undefined contents."""
        same = self._kept.get(length)
        # Sent in the order lent: if the oldest is still in use, so are the others
        if same and getrefcount(same[0]) == _UNUSED:
            same.rotate(-1)
            return memoryview(same[-1])
        buffer = bytearray(length)
        if self._size + length > MAX_KEPT:
            self.clear()
        if length <= MAX_KEPT:
            self._kept.setdefault(length, deque()).append(buffer)
            self._size += length
        return memoryview(buffer)

    def clear(self) -> None:
        """Keep nothing: the connection is idle, or the lengths have changed."""
        self._kept.clear()
        self._size = 0
