"""The out-queue of one connection: PDUs in, buffers for one gathered send out.

Small data is copied behind its header into one contiguous buffer, large data is queued as it is (measured: best of
both, see docs). Invariant: ``size`` is the number of bytes queued and not yet sent; a queued buffer is never changed.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from pdus.codec import Buffer, FixedLayout
from pdus.iscsi.bhs import BHS_SIZE
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import PAD

COPY_LIMIT = 16 << 10
"""Bytes of data up to which a copy costs less than one more buffer in the send."""
MAX_BUFFERS = 512
"""Buffers in one send; the kernel takes 1024 (UIO_MAXIOV)."""

_EMPTY_HEADER = bytes(BHS_SIZE)


class Output:
    """Bytes on their way out."""

    __slots__ = ("_queue", "data_digest", "header_digest", "size", "tail")

    def __init__(self) -> None:
        self._queue: deque[Buffer] = deque()
        self.tail = bytearray()
        self.size = 0
        self.header_digest = False
        self.data_digest = False

    def put(self, pdu: FixedLayout, data: Buffer = b"") -> None:
        """Queue one PDU whose header says len(data). Data above COPY_LIMIT must not change until it is sent."""
        tail = self.tail
        start = len(tail)
        tail += _EMPTY_HEADER
        pdu.encode_into(tail, start)
        if self.header_digest:
            tail += digest(memoryview(tail)[start:])
        length = len(data)
        if length > COPY_LIMIT:
            self.size += len(tail) - start + length
            self._queue.append(tail)
            self._queue.append(data)
            tail = self.tail = bytearray()
            start = 0
        elif length:
            tail += data
        if length:
            pad = PAD[length & 3]
            tail += pad
            if self.data_digest:
                tail += digest(data, pad)
        self.size += len(tail) - start

    def buffers(self) -> list[Buffer]:
        """What is queued, for one send; at most MAX_BUFFERS of it."""
        queue = self._queue
        if self.tail:
            queue.append(self.tail)
            self.tail = bytearray()
        return list(queue) if len(queue) <= MAX_BUFFERS else list(islice(queue, MAX_BUFFERS))

    def sent(self, count: int) -> None:
        """``count`` bytes of what ``buffers`` gave have left."""
        self.size -= count
        queue = self._queue
        while count:
            first = queue[0]
            if count < len(first):
                queue[0] = memoryview(first)[count:]
                return
            count -= len(first)
            queue.popleft()
