"""Where received bytes go: one preallocated buffer per connection, or a task's own buffer for large Data-Out.

Whole PDUs are consumed where they lie; what remains is moved to the front only when the next bytes would not fit.
Invariant: ``start`` <= ``end``; after ``space`` the ``missing`` bytes (at least 1) of the unfinished PDU fit, or the
buffer is ``full``.
"""

from __future__ import annotations

from pdus.iscsi.data import DataOut
from pdus.iscsi.framing import DIGEST_SIZE
from target.iscsi.session import Task
from target.iscsi.transfer import Transfer

OVERHEAD = 48 + 255 * 4 + 2 * DIGEST_SIZE + 3
"""Most bytes of a PDU that are not data: header, longest additional headers, digests, padding."""
WINDOW = 4096
"""Bytes offered for the next header while large Data-Out is on its way: what follows lands in place, not here. And the
portion in which a flood of small PDUs is received."""
IDLE_SIZE = 4096
"""Bytes that an idle connection keeps: enough for pings and task management."""


class ReceiveBuffer:
    """Bytes received and not yet consumed are ``data[start:end]``."""

    __slots__ = ("_size", "crowded", "data", "end", "missing", "start", "view")

    def __init__(self, max_segment: int) -> None:
        self._size = max_segment + OVERHEAD  # len(data), unless the connection was idle
        self.data = bytearray(self._size)
        self.view = memoryview(self.data)
        self.start = 0
        self.end = 0
        self.missing = 1
        self.crowded = False
        """Whether a small portion holds enough to do for one tick."""

    def grow(self, max_segment: int) -> None:
        """Make room for longer PDUs: full feature phase begins."""
        self._size = max(max_segment + OVERHEAD, self.end - self.start)
        self._replace(self._size)

    def shrink(self) -> None:
        """The connection is idle: keep little more than what is unfinished. ``space`` widens it again."""
        if len(self.data) > IDLE_SIZE > self.end - self.start:
            self._replace(IDLE_SIZE)

    def _replace(self, size: int) -> None:
        rest = self.view[self.start : self.end]
        data = bytearray(size)
        data[: len(rest)] = rest
        self.start, self.end = 0, len(rest)
        self.data, self.view = data, memoryview(data)

    @property
    def full(self) -> bool:
        """Whether a peer that has to wait has filled the buffer."""
        return self.end - self.start == self._size

    def clear(self) -> None:
        """Forget everything: nobody will read it."""
        self.start = self.end = 0

    def space(self, narrow: bool) -> memoryview:
        """Where the next bytes go; never empty unless ``full``. ``narrow``: a header's worth, if that is enough."""
        start, end = self.start, self.end
        if start == end:
            self.start = self.end = start = end = 0
        elif start and len(self.data) - end < self.missing:
            self.data[: end - start] = self.data[start:end]
            start, end = 0, end - start
            self.start, self.end = start, end
        room = len(self.data) - end
        if len(self.data) < self._size and (room < self.missing or not room):
            self._replace(self._size)
            end = self.end
        if self.crowded or (narrow and self.missing <= WINDOW):
            return self.view[end : end + WINDOW]
        return self.view[end:]


class Landing:
    """A Data-Out whose data is being received straight into its task's buffer. ``trailer`` is the padding and digest
    that follow it in the receive buffer."""

    __slots__ = ("header", "offset", "pdu", "remaining", "task", "trailer", "transfer")

    def __init__(self, task: Task, transfer: Transfer, pdu: DataOut, header: bytes, trailer: int) -> None:
        self.task = task
        self.transfer = transfer
        self.pdu = pdu
        self.header = header
        self.offset = pdu.buffer_offset
        self.remaining = pdu.data_segment_length
        self.trailer = trailer

    def space(self) -> memoryview:
        return self.transfer.view[self.offset : self.offset + self.remaining]

    def filled(self, count: int) -> None:
        self.offset += count
        self.remaining -= count
