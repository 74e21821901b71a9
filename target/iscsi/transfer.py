"""Data-Out of one write: immediate, unsolicited and solicited data joined in one buffer (RFC 7143 4.2.5, 11.7, 11.8).

Not the queueing of R2Ts on the wire (``connection``) and not the budget (``budget``). Data arrives strictly in order
in each sequence (DataPDUInOrder and DataSequenceInOrder are Yes), so a sequence is a start, an end and a DataSN.
Invariant: bytes are accepted only where exactly one open sequence expects them next, whatever the header says.
"""

from __future__ import annotations

from enum import Enum

from pdus.codec import Buffer
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.data import DataOut
from target.iscsi.conditions import CHECK_CONDITION, INCORRECT_AMOUNT_OF_DATA, UNEXPECTED_UNSOLICITED_DATA


class Sequence:
    """One Data-Out sequence: the unsolicited one, or the answer to one R2T. Offsets are bytes of the task's data."""

    __slots__ = ("data_sn", "end", "offset", "solicited")

    def __init__(self, offset: int, end: int, solicited: bool) -> None:
        self.offset = offset
        self.end = end
        self.data_sn = 0
        self.solicited = solicited


class Verdict(Enum):
    """What to do with a Data-Out."""

    TAKE = "take"
    DISCARD = "discard"
    REJECT = "reject"  # it names a transfer tag that we did not give


class Transfer:
    """The Data-Out of one task.

    ``wanted`` is what the device server asked for, capped by the expected length; -1 until it asked. ``failure`` is the
    status and sense data that the task will end with; from then on data is discarded and only the
    sequences' ends are awaited (RFC 7143 11.17.1: the response waits for the final bit of each).
    """

    __slots__ = (
        "_next_r2t",
        "buffer",
        "failure",
        "r2t_sn",
        "reserved",
        "sequences",
        "unsolicited",
        "view",
        "waiting",
        "wanted",
    )

    def __init__(self, size: int, immediate: Buffer) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.view[: len(immediate)] = immediate
        self.wanted = -1
        self.failure: tuple[int, bytes] | None = None
        self.r2t_sn = 0
        self.reserved = 0  # bytes of the budget's two accounts that this transfer holds
        self.unsolicited = 0
        self.waiting = False  # for the budget
        self.sequences: dict[int, Sequence] = {}
        self._next_r2t = len(immediate)

    def expect_unsolicited(self, end: int) -> None:
        """Unsolicited Data-Out will follow the immediate data, up to ``end`` bytes of the task's data."""
        self.sequences[RESERVED_TAG] = Sequence(self._next_r2t, end, False)

    def want(self, wanted: int) -> None:
        """Ask for the first ``wanted`` bytes."""
        self.wanted = wanted
        if wanted > len(self.buffer):
            # Whole, not only what is known to have arrived: a segment may be on its way into the old buffer.
            larger = bytearray(wanted)
            larger[: len(self.buffer)] = self.buffer
            self.buffer = larger
            self.view = memoryview(larger)

    @property
    def complete(self) -> bool:
        """Whether everything wanted is here and no sequence is open."""
        return not self.sequences and 0 <= self.wanted <= self._next_r2t and self.failure is None

    def data(self) -> memoryview:
        return self.view[: self.wanted]

    def next_r2t(self, tag: int, max_burst: int, max_outstanding: int) -> Sequence | None:
        """Open the next solicited sequence under ``tag``, or None if none may be opened now."""
        if self.wanted <= self._next_r2t or self.failure is not None:
            return None
        # What arrives unsolicited is only known when that sequence has ended, and an R2T must not ask for it again
        if RESERVED_TAG in self.sequences or len(self.sequences) >= max_outstanding:
            return None
        start = self._next_r2t
        sequence = Sequence(start, min(start + max_burst, self.wanted), True)
        self._next_r2t = sequence.end
        self.sequences[tag] = sequence
        self.r2t_sn += 1
        return sequence

    def check(self, pdu: DataOut) -> Verdict:
        """Whether the data of ``pdu`` is what is expected next."""
        sequence = self.sequences.get(pdu.target_transfer_tag)
        if sequence is None:
            if pdu.target_transfer_tag != RESERVED_TAG:
                return Verdict.REJECT
            self.fail(UNEXPECTED_UNSOLICITED_DATA)
            return Verdict.DISCARD
        if self.failure is not None:
            return Verdict.DISCARD
        if self.expects(pdu):
            return Verdict.TAKE
        self.fail(INCORRECT_AMOUNT_OF_DATA)
        return Verdict.DISCARD

    def expects(self, pdu: DataOut) -> bool:
        """Whether an open sequence expects exactly this Data-Out next."""
        sequence = self.sequences.get(pdu.target_transfer_tag)
        if sequence is None or self.failure is not None:
            return False
        end = pdu.buffer_offset + pdu.data_segment_length
        if pdu.data_sn != sequence.data_sn or pdu.buffer_offset != sequence.offset or end > sequence.end:
            return False
        # An R2T asks for exactly so much; F comes with its last byte and not before (RFC 7143 11.7.1)
        return not sequence.solicited or pdu.final == (end == sequence.end)

    def landed(self, pdu: DataOut) -> None:
        """The data of ``pdu``, which ``check`` took, is in the buffer."""
        sequence = self.sequences.get(pdu.target_transfer_tag)
        if sequence is not None:
            sequence.offset += pdu.data_segment_length
            sequence.data_sn += 1

    def end_sequence(self, tag: int) -> None:
        """The final bit of the sequence ``tag`` was seen."""
        sequence = self.sequences.pop(tag, None)
        if sequence is not None and not sequence.solicited:
            self._next_r2t = sequence.offset

    def fail(self, sense: bytes, status: int = CHECK_CONDITION) -> None:
        """The task will end with ``status``; the first failure counts."""
        if self.failure is None:
            self.failure = status, sense

    @property
    def failed(self) -> bool:
        """Whether the task can be answered with its failure now."""
        return self.failure is not None and not self.sequences
