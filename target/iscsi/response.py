"""The answer to a SCSI command: Data-In cut to the negotiated lengths, status, residuals, sense (RFC 7143 11.4, 11.7).

The plain and complete way; ``connection.respond`` has a shorter one for its commonest cases, and a test proves that
both make the same bytes. Invariant: status leaves exactly once, on the last Data-In if it is GOOD.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdus.codec import Buffer
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.command import ScsiResponse
from pdus.iscsi.data import DataIn
from target.iscsi.output import Output

GOOD = 0
MAX_RESIDUAL = 0xFFFFFFFF
_SENSE_LENGTH_SIZE = 2  # bytes: the length that precedes sense data (RFC 7143 11.4.7.2)


@dataclass(frozen=True, slots=True)
class Residual:
    """How far the bytes moved are from the bytes expected; at most one is non-zero (RFC 7143 11.4.5)."""

    overflow: int = 0
    underflow: int = 0

    @classmethod
    def of(cls, expected: int, wanted: int) -> Residual:
        """``wanted`` is what the command would have moved, were ``expected`` no limit."""
        if wanted > expected:
            return cls(overflow=min(wanted - expected, MAX_RESIDUAL))
        return cls(underflow=expected - wanted)

    @property
    def count(self) -> int:
        return self.overflow or self.underflow


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is to say about one task; lengths in bytes. ``read_expected`` and ``write_expected`` are 0 in a
    direction that the command does not have."""

    itt: int
    status: int
    sense: bytes
    data: Buffer
    read: bool
    write: bool
    read_expected: int
    write_expected: int
    write_wanted: int
    r2ts: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """StatSN of the answer's status, and the window."""

    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


def put_response(output: Output, answer: Answer, numbers: Numbers, max_send: int, max_burst: int) -> None:
    """Queue all PDUs of the answer. ``max_send`` is the initiator's MaxRecvDataSegmentLength."""
    bidirectional = answer.read and answer.write
    read = Residual.of(answer.read_expected, len(answer.data)) if answer.read else Residual()
    write = Residual.of(answer.write_expected, answer.write_wanted) if answer.write else Residual()
    if not answer.read and not answer.write:
        # A command that says it moves nothing, but would: what it was not allowed to move is overflow
        read = Residual.of(0, max(len(answer.data), answer.write_wanted))
    data = memoryview(answer.data)[: answer.read_expected]
    # Data-In has one residual field and no place for sense: status rides on it only in the simple case
    combined = answer.status == GOOD and not answer.sense and not bidirectional and len(data) > 0
    count = _put_data_in(output, answer, numbers, data, read if combined else None, (max_send, max_burst))
    if combined:
        return
    sense = len(answer.sense).to_bytes(_SENSE_LENGTH_SIZE, "big") + answer.sense if answer.sense else b""
    primary = write if answer.write else read
    response = ScsiResponse(
        status=answer.status,
        overflow=primary.overflow > 0,
        underflow=primary.underflow > 0,
        residual_count=primary.count,
        data_segment_length=len(sense),
        initiator_task_tag=answer.itt,
        stat_sn=numbers.stat_sn,
        exp_cmd_sn=numbers.exp_cmd_sn,
        max_cmd_sn=numbers.max_cmd_sn,
        exp_data_sn=count + answer.r2ts,
    )
    if bidirectional:
        response.bidirectional_overflow = read.overflow > 0
        response.bidirectional_underflow = read.underflow > 0
        response.bidirectional_read_residual_count = read.count
    output.put(response, sense)


def _put_data_in(
    output: Output,
    answer: Answer,
    numbers: Numbers,
    data: memoryview,
    residual: Residual | None,
    limits: tuple[int, int],
) -> int:
    """Queue the Data-In PDUs; with ``residual`` the last carries the status. Returns how many they were."""
    max_send, max_burst = limits
    total, offset, count = len(data), 0, 0
    while offset < total:
        burst_end = min(offset - offset % max_burst + max_burst, total)
        end = min(offset + max_send, burst_end)
        pdu = DataIn(
            final=end == burst_end,
            data_segment_length=end - offset,
            initiator_task_tag=answer.itt,
            target_transfer_tag=RESERVED_TAG,
            exp_cmd_sn=numbers.exp_cmd_sn,
            max_cmd_sn=numbers.max_cmd_sn,
            data_sn=count,
            buffer_offset=offset,
        )
        if residual is not None and end == total:
            pdu.has_status = True
            pdu.stat_sn = numbers.stat_sn
            pdu.overflow = residual.overflow > 0
            pdu.underflow = residual.underflow > 0
            pdu.residual_count = residual.count
        output.put(pdu, data[offset:end])
        offset, count = end, count + 1
    return count
