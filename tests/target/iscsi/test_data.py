"""Data-Out and Data-In: every way to move the bytes of a command, and every way to get it wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pdus.iscsi.command import ScsiCommand, ScsiResponse
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import Reject, RejectReason
from target.iscsi.budget import WorkerBudget
from target.iscsi.conditions import (
    INCORRECT_AMOUNT_OF_DATA,
    PROTOCOL_SERVICE_CRC_ERROR,
    TASK_SET_FULL,
    UNEXPECTED_UNSOLICITED_DATA,
)
from target.iscsi.events import DataArrived, TransferFailed
from target.iscsi.receive import IDLE_SIZE
from target.iscsi.session import Task
from target.iscsi.settings import Settings
from tests.target.iscsi.support import READ, WRITE, Initiator, Pairs

DATA = bytes(i * 7 & 0xFF for i in range(100_000))
UNSOLICITED = (("InitialR2T", "No"), ("ImmediateData", "Yes"), ("FirstBurstLength", "4096"), ("MaxBurstLength", "8192"))


def logged_in(*pairs: tuple[str, str], settings: Settings | None = None) -> Initiator:
    initiator = Initiator(settings)
    initiator.log_in(*pairs)
    return initiator


def expect_check_condition(initiator: Initiator, sense: bytes) -> ScsiResponse:
    pdu, data = initiator.answer()
    assert isinstance(pdu, ScsiResponse)
    assert pdu.status == 2
    assert data == len(sense).to_bytes(2, "big") + sense
    return pdu


def serve_r2ts(initiator: Initiator, data: bytes, segment: int = 1024) -> int:
    """Answer R2Ts until the data is there; returns how many there were."""
    count = 0
    while initiator.answers:
        r2t, _ = initiator.answer()
        assert isinstance(r2t, ReadyToTransfer)
        assert r2t.r2t_sn == count
        initiator.solicited(data, r2t, segment)
        count += 1
    return count


@pytest.mark.parametrize("initial_r2t", ["Yes", "No"])
@pytest.mark.parametrize("immediate", ["Yes", "No"])
@pytest.mark.parametrize("length", [512, 4096, 5000, 20_001])
def test_a_write_arrives_whole_in_all_four_modes(initial_r2t: str, immediate: str, length: int) -> None:
    initiator = logged_in(
        ("InitialR2T", initial_r2t),
        ("ImmediateData", immediate),
        ("FirstBurstLength", "4096"),
        ("MaxBurstLength", "8192"),
        ("MaxOutstandingR2T", "2"),
    )
    data = DATA[:length]
    first = data[:1024] if immediate == "Yes" else b""
    burst = min(length, 4096) if initial_r2t == "No" else len(first)
    task = initiator.task(WRITE, length, first, final=burst == len(first))
    arrived = initiator.want(task, length)
    for number, offset in enumerate(range(len(first), burst, 1000)):
        end = min(offset + 1000, burst)
        assert not initiator.answers, "no R2T before the unsolicited data has ended"
        initiator.data_out(task.itt, offset, data[offset:end], data_sn=number, final=end == burst)
    r2ts = serve_r2ts(initiator, data)
    assert r2ts == -(-(length - burst) // 8192)
    if not arrived:
        assert initiator.event() == DataArrived(task)
    assert task.data_out is not None
    assert bytes(task.data_out) == data
    initiator.respond(task)
    response, _ = initiator.answer()
    assert (response.status, response.residual_count, response.exp_data_sn) == (0, 0, r2ts)
    assert initiator.quiet()


def test_large_data_out_is_received_in_place_in_any_portions() -> None:
    for portion in (1, 7, 4096, 70_000):
        initiator = logged_in(("MaxBurstLength", "1048576"), ("DataDigest", "CRC32C"))
        length = 3000 if portion == 1 else len(DATA) - 1
        task = initiator.task(WRITE, length)
        assert not initiator.want(task, length)
        r2t, _ = initiator.answer()
        initiator.connection.get_buffer()
        pdu = DataOut(initiator_task_tag=task.itt, target_transfer_tag=r2t.target_transfer_tag, final=True)
        stream = initiator.encode(pdu, DATA[:length])
        while stream:
            space = initiator.connection.get_buffer()
            part = min(len(space), portion, len(stream))
            space[:part] = stream[:part]
            initiator.connection.buffer_updated(part, initiator.now)
            stream = stream[part:]
        assert initiator.event() == DataArrived(task)
        assert bytes(task.data_out or b"") == DATA[:length]


def test_idle_connection_gives_its_buffers_back_and_takes_long_pdus_afterwards() -> None:
    initiator = logged_in(("InitialR2T", "No"), ("FirstBurstLength", "65536"))
    connection = initiator.connection
    for second in range(12):
        connection.tick(initiator.now + second)
    initiator.collect()
    assert len(connection.get_buffer()) == IDLE_SIZE
    # Byte by byte and in one piece: whatever the small buffer holds when the long PDU begins
    for cut in (1, 47, 48, 60, IDLE_SIZE, 5000):
        task = send_in_two(initiator, cut)
        assert initiator.want(task, 8192)
        assert bytes(task.data_out or b"") == DATA[:8192]
        initiator.respond(task)
        connection._receive.shrink()


def send_in_two(initiator: Initiator, cut: int) -> Task:
    command = ScsiCommand(
        write=True,
        initiator_task_tag=initiator.next_itt(),
        cmd_sn=initiator.cmd_sn,
        expected_data_transfer_length=8192,
        cdb=WRITE,
    )
    initiator.cmd_sn += 1
    stream = initiator.encode(command, DATA[:8192])
    for part in (stream[:cut], stream[cut:]):
        initiator.send_raw(part)
    event = initiator.event()
    assert isinstance(event, Task)
    return event


def test_immediate_data_survives_the_reuse_of_the_receive_buffer() -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 4096, DATA[:4096])
    initiator.command(WRITE, 4096, DATA[4096:8192])
    assert initiator.want(task, 4096)
    assert task.data_out == DATA[:4096]


def test_command_that_ends_early_is_answered_after_its_unsolicited_data() -> None:
    """RFC 7143 11.4.2; the residual says that nothing was wanted."""
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 8192, b"x" * 4096, final=False)
    initiator.respond(task, 2, b"sense")
    assert initiator.quiet()
    initiator.data_out(task.itt, 4096, b"y" * 2048, final=False)
    assert initiator.quiet()
    initiator.data_out(task.itt, 6144, b"y" * 2048, data_sn=1)
    response, data = initiator.answer()
    assert (response.status, data[2:]) == (2, b"sense")
    assert response.underflow
    assert response.residual_count == 8192
    assert not initiator.answers


def test_wanted_may_be_less_than_what_arrived() -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 4096, DATA[:4096])
    assert initiator.want(task, 512)
    assert bytes(task.data_out or b"") == DATA[:512]
    initiator.respond(task)
    response, _ = initiator.answer()
    assert (response.underflow, response.overflow, response.residual_count) == (True, False, 3584)


def test_wanted_beyond_the_expected_length_is_an_overflow() -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 512, DATA[:512])
    assert initiator.want(task, 4096)
    assert bytes(task.data_out or b"") == DATA[:512]
    initiator.respond(task)
    response, _ = initiator.answer()
    assert (response.underflow, response.overflow, response.residual_count) == (False, True, 3584)


def test_unsolicited_data_that_came_before_the_task_was_admitted_is_kept() -> None:
    initiator = logged_in(*UNSOLICITED)
    itt = initiator.command(WRITE, 2000, DATA[:500], final=False)
    initiator.data_out(itt, 500, DATA[500:2000])
    task = initiator.event()
    assert initiator.want(task, 2000)
    assert bytes(task.data_out) == DATA[:2000]


def test_at_most_the_agreed_number_of_r2ts_is_open() -> None:
    initiator = logged_in(("MaxBurstLength", "512"), ("MaxOutstandingR2T", "3"))
    task = initiator.task(WRITE, 5120)
    initiator.want(task, 5120)
    assert len(initiator.answers) == 3
    tags = {pdu.target_transfer_tag for pdu, _ in initiator.answers}
    assert len(tags) == 3
    first, _ = initiator.answer()
    initiator.solicited(DATA, first)
    assert len(initiator.answers) == 3


# --- wrong data ---


@pytest.mark.parametrize(
    "fields",
    [{"data_sn": 1}, {"offset": 1025}, {"length": 5000}, {"offset": 0}],
    ids=["DataSN", "gap", "beyond the first burst", "again"],
)
def test_unsolicited_data_out_of_place_fails_the_task(fields: dict[str, int]) -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 8192, DATA[:1024], final=False)
    assert not initiator.want(task, 8192)
    offset, length = fields.get("offset", 1024), fields.get("length", 1000)
    initiator.data_out(task.itt, offset, DATA[:length], data_sn=fields.get("data_sn", 0), final=False)
    assert not initiator.answers, "the response waits for the final bit"
    initiator.data_out(task.itt, 0, b"x", data_sn=9, final=True)
    expect_check_condition(initiator, INCORRECT_AMOUNT_OF_DATA)
    assert initiator.event() == TransferFailed(task)
    assert task.revoked
    initiator.respond(task)
    assert initiator.quiet()


@pytest.mark.parametrize(("length", "final"), [(8191, True), (8193, True)], ids=["too short", "too long"])
def test_an_r2t_must_be_answered_exactly(length: int, final: bool) -> None:
    initiator = logged_in(("MaxBurstLength", "8192"))
    task = initiator.task(WRITE, 20_000)
    initiator.want(task, 20_000)
    r2t, _ = initiator.answer()
    initiator.data_out(task.itt, 0, DATA[:length], target_transfer_tag=r2t.target_transfer_tag, final=final)
    expect_check_condition(initiator, INCORRECT_AMOUNT_OF_DATA)


def test_a_transfer_tag_that_we_did_not_give_is_rejected() -> None:
    initiator = logged_in()
    task = initiator.task(WRITE, 4096)
    initiator.want(task, 4096)
    r2t, _ = initiator.answer()
    initiator.data_out(task.itt, 0, DATA[:4096], target_transfer_tag=r2t.target_transfer_tag + 1)
    reject, header = initiator.answer()
    assert (type(reject), reject.reason) == (Reject, RejectReason.INVALID_PDU_FIELD)
    assert len(header) == 48
    initiator.solicited(DATA, r2t)
    assert initiator.event() == DataArrived(task)


def test_data_for_a_task_that_is_over_is_discarded() -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 4096, final=False)
    session = initiator.connection.session
    assert session is not None
    session.abort(task)
    initiator.data_out(task.itt, 0, DATA[:4096])
    assert initiator.quiet()


@pytest.mark.parametrize(
    ("keys", "length", "data", "final", "sense"),
    [
        ((("ImmediateData", "No"),), 4096, DATA[:512], True, UNEXPECTED_UNSOLICITED_DATA),
        ((("InitialR2T", "Yes"),), 4096, b"", False, UNEXPECTED_UNSOLICITED_DATA),
        (UNSOLICITED, 8192, DATA[:4097], True, INCORRECT_AMOUNT_OF_DATA),
        (UNSOLICITED, 512, DATA[:513], True, INCORRECT_AMOUNT_OF_DATA),
    ],
    ids=["immediate", "unsolicited", "beyond the first burst", "beyond the expected length"],
)
def test_data_with_the_command_that_was_not_agreed(
    keys: Pairs, length: int, data: bytes, final: bool, sense: bytes
) -> None:
    initiator = logged_in(*keys)
    itt = initiator.command(WRITE, length, data, final=final)
    if not final:
        assert not initiator.answers
        initiator.data_out(itt, 0, DATA[:512], final=True)
    response = expect_check_condition(initiator, sense)
    assert (response.underflow, response.residual_count) == (True, length)
    assert initiator.quiet()


def test_data_out_that_was_not_announced_fails_a_task_that_waits() -> None:
    initiator = logged_in(*UNSOLICITED)
    task = initiator.task(WRITE, 4096)
    initiator.data_out(task.itt, 0, DATA[:512])
    expect_check_condition(initiator, UNEXPECTED_UNSOLICITED_DATA)
    assert initiator.event() == TransferFailed(task)


def test_data_for_a_write_that_is_being_executed_is_rejected() -> None:
    initiator = logged_in(("MaxBurstLength", "8192"))
    task = initiator.task(WRITE, 4096)
    initiator.want(task, 4096)
    r2t, _ = initiator.answer()
    initiator.solicited(DATA, r2t)
    initiator.event()
    initiator.data_out(task.itt, 0, DATA[:512])
    assert initiator.answer()[0].reason == RejectReason.PROTOCOL_ERROR
    initiator.respond(task)
    assert initiator.answer()[0].status == 0


def test_data_with_a_read_is_unexpected() -> None:
    initiator = logged_in()
    initiator.command(READ, 512, DATA[:512])
    expect_check_condition(initiator, UNEXPECTED_UNSOLICITED_DATA)


def test_final_and_write_both_zero_is_rejected_and_not_received() -> None:
    initiator = logged_in()
    initiator.command(READ, 512, final=False, cmd_sn=1)
    reject, _ = initiator.answer()
    assert (reject.reason, reject.exp_cmd_sn) == (RejectReason.PROTOCOL_ERROR, 1)


def test_a_segment_longer_than_declared_drops_the_connection() -> None:
    initiator = logged_in(settings=Settings(max_recv_data_segment_length=4096))
    initiator.command(WRITE, 4097, DATA[:4097])
    assert initiator.connection.failed == "data segment of 4097 bytes exceeds 4096"


# --- Data-In and residuals ---


def test_data_in_is_cut_to_segment_and_burst_with_status_on_the_last() -> None:
    initiator = logged_in(("MaxRecvDataSegmentLength", "3000"), ("MaxBurstLength", "8192"))
    task = initiator.task(READ, 20_001)
    initiator.respond(task, data=DATA[:20_001])
    pdus = [pdu for pdu, _ in initiator.answers]
    data, last = initiator.data_in()
    assert data == DATA[:20_001]
    assert [pdu.data_sn for pdu in pdus] == list(range(len(pdus)))
    assert [pdu.buffer_offset for pdu in pdus if pdu.final] == [6000, 14192, 19384]
    assert [pdu.has_status for pdu in pdus] == [False] * (len(pdus) - 1) + [True]
    assert isinstance(last, DataIn)
    assert (last.status, last.residual_count) == (0, 0)


@pytest.mark.parametrize(
    ("expected", "length", "overflow", "underflow"),
    [
        (4096, 4096, 0, 0),
        (4096, 96, 0, 4000),
        (96, 4096, 4000, 0),
        (4096, 0, 0, 4096),
        (0, 4096, 4096, 0),
        (0, 0, 0, 0),
    ],
)
def test_residuals_of_a_read(expected: int, length: int, overflow: int, underflow: int) -> None:
    initiator = logged_in()
    initiator.respond(initiator.task(READ, expected), data=DATA[:length])
    data, last = initiator.data_in()
    assert data == DATA[: min(expected, length)]
    assert last.residual_count == overflow + underflow
    assert (last.overflow, last.underflow) == (overflow > 0, underflow > 0)


def test_status_other_than_good_follows_the_data_with_its_sense() -> None:
    initiator = logged_in()
    initiator.respond(initiator.task(READ, 4096), 2, b"\x70\x00\x03", DATA[:512])
    part, data = initiator.answer()
    assert (part.has_status, part.final, data) == (False, True, DATA[:512])
    response, sense = initiator.answer()
    assert (response.status, response.exp_data_sn, response.residual_count) == (2, 1, 3584)
    assert sense == b"\x00\x03\x70\x00\x03"


def test_a_bidirectional_command_has_both_residuals() -> None:
    initiator = logged_in()
    ahs = bytes([0, 5, 2, 0]) + (1000).to_bytes(4, "big")
    task = initiator.task(WRITE, 512, DATA[:512], ahs=ahs, read=True)
    assert task.expected_read_length == 1000
    initiator.want(task, 512)
    initiator.respond(task, data=DATA[:600])
    assert initiator.answer()[1] == DATA[:600]
    response, _ = initiator.answer()
    assert (response.underflow, response.overflow, response.residual_count) == (False, False, 0)
    assert (response.bidirectional_underflow, response.bidirectional_read_residual_count) == (True, 400)


def test_an_extended_cdb_is_joined() -> None:
    initiator = logged_in()
    task = initiator.task(READ, 0, ahs=bytes([0, 17, 1, 0]) + bytes(range(16)))
    assert task.cdb == READ + bytes(range(16))


@pytest.mark.parametrize("ahs", [bytes([0, 99, 1, 0]), bytes([0, 0, 1, 0]), bytes([0, 3, 2, 0, 1, 1, 0, 0])])
def test_a_malformed_additional_header_is_rejected(ahs: bytes) -> None:
    initiator = logged_in()
    initiator.command(READ, 0, ahs=ahs)
    assert initiator.answer()[0].reason == RejectReason.INVALID_PDU_FIELD


def test_the_short_way_to_answer_makes_the_same_bytes_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for plain in (False, True):
        initiator = logged_in(*UNSOLICITED)
        if plain:
            monkeypatch.setattr(initiator.connection, "_hot_limit", -1)
        raw = []
        for cdb, length, data in [(READ, 4096, DATA[:4096]), (READ, 512, DATA[:512]), (WRITE, 512, None)]:
            task = initiator.task(cdb, length, DATA[:length] if cdb == WRITE else b"")
            if cdb == WRITE:
                initiator.connection.want_data(task, length)
            initiator.connection.respond(task, 0, b"", data)
            raw.append(initiator.collect())
        outputs.append(raw)
    assert outputs[0] == outputs[1]


# --- digests ---


def test_digests_both_ways() -> None:
    initiator = logged_in(("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), *UNSOLICITED)
    assert initiator.connection.digests == "header, data"
    task = initiator.task(WRITE, 3001, DATA[:3001])
    assert initiator.want(task, 3001)
    initiator.respond(task)
    assert initiator.answer()[0].status == 0
    initiator.respond(initiator.task(READ, 50_001), data=DATA[:50_001])
    assert initiator.data_in()[0] == DATA[:50_001]


def test_a_header_digest_error_drops_the_connection() -> None:
    initiator = logged_in(("HeaderDigest", "CRC32C"))
    initiator.send_raw(bytes(52))
    assert initiator.connection.failed == "header digest error"


@pytest.mark.parametrize("length", [1000, 50_000])
def test_a_data_digest_error_in_data_out_fails_the_task(length: int) -> None:
    initiator = logged_in(("DataDigest", "CRC32C"))
    task = initiator.task(WRITE, length)
    initiator.want(task, length)
    r2t, _ = initiator.answer()
    pdu = DataOut(initiator_task_tag=task.itt, target_transfer_tag=r2t.target_transfer_tag, final=True)
    stream = bytearray(initiator.encode(pdu, DATA[:length]))
    stream[60] ^= 1
    for start in range(0, len(stream), 5000):
        initiator.send_raw(bytes(stream[start : start + 5000]))
    assert initiator.answer()[0].reason == RejectReason.DATA_DIGEST_ERROR
    expect_check_condition(initiator, PROTOCOL_SERVICE_CRC_ERROR)


def test_a_data_digest_error_in_a_command_is_rejected_and_never_executed() -> None:
    initiator = logged_in(("DataDigest", "CRC32C"))
    stream = bytearray(initiator.encode(ScsiCommand(write=True, cmd_sn=1, initiator_task_tag=1), b"data"))
    stream[49] ^= 1
    initiator.send_raw(bytes(stream))
    assert initiator.answer()[0].reason == RejectReason.DATA_DIGEST_ERROR
    assert initiator.connection.failed is not None
    assert not initiator.connection.events


# --- budgets ---


def test_writes_wait_for_a_buffer_and_go_on_when_one_is_free() -> None:
    initiator = logged_in(settings=Settings(session_buffers=10_000))
    first, second = initiator.task(WRITE, 8000), initiator.task(WRITE, 8000)
    initiator.want(first, 8000)
    initiator.want(second, 8000)
    r2t, _ = initiator.answer()
    assert not initiator.answers
    initiator.solicited(DATA, r2t)
    assert initiator.event() == DataArrived(first)
    initiator.respond(first)
    waiting = [pdu for pdu, _ in initiator.answers if isinstance(pdu, ReadyToTransfer)]
    assert [pdu.initiator_task_tag for pdu in waiting] == [second.itt]


def test_a_write_larger_than_the_budget_is_refused() -> None:
    initiator = logged_in(settings=Settings(session_buffers=1000))
    task = initiator.task(WRITE, 8000)
    assert not initiator.want(task, 8000)
    assert initiator.answer()[0].status == TASK_SET_FULL
    assert initiator.event() == TransferFailed(task)


def test_unsolicited_data_beyond_the_budget_ends_with_task_set_full() -> None:
    initiator = logged_in(*UNSOLICITED, settings=Settings(session_buffers=5000))
    initiator.task(WRITE, 4096, final=False)
    itt = initiator.command(WRITE, 4096, final=False)
    initiator.data_out(itt, 0, DATA[:4096])
    assert initiator.answer()[0].status == TASK_SET_FULL


def test_sessions_share_the_workers_budget() -> None:
    budget = WorkerBudget(10_000)
    initiators = []
    for _ in range(2):
        initiator = Initiator()
        initiator.connection._budget = budget
        initiator.log_in()
        initiators.append(initiator)
    one, other = initiators
    woken: list[Any] = []
    other.connection.wake = lambda: woken.append(other)
    task, later = one.task(WRITE, 8000), other.task(WRITE, 8000)
    one.want(task, 8000)
    other.want(later, 8000)
    assert not other.answers
    session = one.connection.session
    assert session is not None
    session.abort(task)
    assert woken == [other]
    other.collect()
    assert isinstance(other.answer()[0], ReadyToTransfer)
    one.connection.close()
    other.connection.close()
    assert budget.solicited == budget.unsolicited == 0


def test_an_aborted_task_is_not_answered() -> None:
    initiator = logged_in()
    task = initiator.task(READ, 512)
    session = initiator.connection.session
    assert session is not None
    session.abort(task)
    initiator.respond(task, data=DATA[:512])
    assert task.revoked
    assert initiator.quiet()


def test_data_in_small_is_lent_and_large_is_the_callers() -> None:
    initiator = logged_in()
    task: Task = initiator.task(READ, 512)
    assert task.data_in(512).obj is task.data_in(512).obj
    first = task.data_in(20_000)
    assert task.data_in(20_000).obj is not first.obj


def test_a_large_buffer_is_lent_again_only_when_it_is_sent() -> None:
    initiator = logged_in(("MaxRecvDataSegmentLength", "262144"))
    one, other = initiator.task(READ, 20_000), initiator.task(READ, 20_000)
    connection = initiator.connection
    view = one.data_in(20_000)
    view[:] = DATA[:20_000]
    borrowed = id(view.obj)
    connection.respond(one, 0, b"", view)
    del view
    assert id(other.data_in(20_000).obj) != borrowed
    buffers = connection.outgoing()
    connection.sent(sum(map(len, buffers)))
    del buffers
    assert id(other.data_in(20_000).obj) == borrowed
