"""Full feature phase besides data: numbering, NOP, task management, logout, text, Reject, async messages, time."""

from __future__ import annotations

from typing import Any

import pytest

from pdus.codec import FixedLayout
from pdus.iscsi.async_message import AsyncEvent, AsyncMessage
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.login import LoginRequest
from pdus.iscsi.logout import LogoutRequest, LogoutStatus
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.reject import Reject, RejectReason
from pdus.iscsi.snack import SnackRequest
from pdus.iscsi.task_management import FunctionResponse, TaskManagementRequest
from pdus.iscsi.text import TextRequest, encode_pairs, parse_pairs
from target.iscsi.events import LogoutRequested, SendTargets, TaskManagement
from target.iscsi.session import Task, decode_lun, encode_lun
from target.iscsi.settings import Settings
from tests.target.iscsi.support import DISCOVERY, READ, WRITE, Initiator


def logged_in(*pairs: tuple[str, str], **kwargs: Any) -> Initiator:
    initiator = Initiator(**kwargs)
    initiator.log_in(*pairs)
    return initiator


def expect_reject(initiator: Initiator, reason: RejectReason, header: bytes | None = None) -> Reject:
    pdu, data = initiator.answer()
    assert isinstance(pdu, Reject)
    assert pdu.reason == reason
    assert header is None or data == header
    return pdu


# --- CmdSN ---


def test_numbers_wrap_around() -> None:
    initiator = logged_in(cmd_sn=0xFFFFFFF0, stat_sn=0xFFFFFFF0)
    for _ in range(40):
        initiator.respond(initiator.task(READ, 0))
    pdus = [pdu for pdu, _ in initiator.answers]
    assert [pdu.stat_sn for pdu in pdus] == [(0xFFFFFFF1 + n) & 0xFFFFFFFF for n in range(40)]
    assert [pdu.exp_cmd_sn for pdu in pdus] == [(0xFFFFFFF1 + n) & 0xFFFFFFFF for n in range(40)]
    assert all((pdu.max_cmd_sn - pdu.exp_cmd_sn) & 0xFFFFFFFF == 255 for pdu in pdus)


@pytest.mark.parametrize("offset", [-1, -1000, 256, 100_000, 1 << 31])
def test_a_command_outside_the_window_is_ignored_without_an_answer(offset: int) -> None:
    initiator = logged_in(cmd_sn=0xFFFFFFF0)
    initiator.command(WRITE, 512, bytes(512), cmd_sn=(0xFFFFFFF0 + offset) & 0xFFFFFFFF)
    assert initiator.quiet()
    initiator.task(READ, 0)


def test_commands_are_delivered_in_cmd_sn_order() -> None:
    initiator = logged_in(cmd_sn=0xFFFFFFFF)
    for cmd_sn in (1, 0):
        initiator.command(READ, 0, cmd_sn=cmd_sn)
        assert initiator.quiet()
    initiator.command(READ, 0, cmd_sn=0)
    assert initiator.quiet(), "a number that is held is a duplicate"
    initiator.command(READ, 0, cmd_sn=0xFFFFFFFF)
    assert [initiator.event().cmd_sn for _ in range(3)] == [0xFFFFFFFF, 0, 1]


def test_an_immediate_command_takes_no_number_and_waits_for_none() -> None:
    initiator = logged_in()
    initiator.command(READ, 0, cmd_sn=2)
    task = initiator.task(READ, 0, immediate=True)
    initiator.respond(task)
    assert initiator.answer()[0].exp_cmd_sn == 1


def test_the_window_closes_with_tasks_in_progress_and_opens_again() -> None:
    initiator = logged_in(settings=Settings(command_window=4))
    tasks = [initiator.task(READ, 0) for _ in range(4)]
    initiator.command(READ, 0)
    assert initiator.quiet()
    initiator.respond(tasks[0])
    response, _ = initiator.answer()
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (5, 5)
    initiator.cmd_sn = 5
    initiator.task(READ, 0)


def test_immediate_commands_are_bounded() -> None:
    initiator = logged_in(settings=Settings(command_window=4, max_immediate_commands=2))
    for _ in range(6):
        initiator.task(READ, 0, immediate=True)
    initiator.command(READ, 0, immediate=True)
    expect_reject(initiator, RejectReason.IMMEDIATE_COMMAND_REJECT)


def test_a_task_tag_in_use_is_rejected() -> None:
    initiator = logged_in()
    task = initiator.task(READ, 0)
    initiator.command(READ, 0, initiator_task_tag=task.itt)
    assert expect_reject(initiator, RejectReason.TASK_IN_PROGRESS).exp_cmd_sn == 2


def test_the_reserved_task_tag_names_no_task() -> None:
    initiator = logged_in()
    initiator.command(READ, 0, initiator_task_tag=RESERVED_TAG)
    expect_reject(initiator, RejectReason.INVALID_PDU_FIELD)


@pytest.mark.parametrize(
    ("wire", "lun"),
    [(0, 0), (5 << 48, 5), (255 << 48, 255), (0x4100 << 48, 256), (0x0101 << 48, -1), (0xC100 << 48, -1), (1, -1)],
)
def test_lun_addressing(wire: int, lun: int) -> None:
    assert decode_lun(wire) == lun
    if lun >= 0:
        assert encode_lun(lun) == wire


# --- NOP ---


def test_a_ping_is_echoed() -> None:
    initiator = logged_in()
    initiator.send(NopOut(immediate=True, initiator_task_tag=9, cmd_sn=1), b"hello")
    pdu, data = initiator.answer()
    assert isinstance(pdu, NopIn)
    assert (pdu.initiator_task_tag, pdu.target_transfer_tag, pdu.stat_sn, data) == (9, RESERVED_TAG, 2, b"hello")


def test_an_echo_is_cut_to_what_the_initiator_can_receive() -> None:
    initiator = logged_in(("MaxRecvDataSegmentLength", "512"))
    initiator.send(NopOut(immediate=True, initiator_task_tag=9), bytes(1000))
    assert len(initiator.answer()[1]) == 512


def test_a_nop_without_task_tag_is_not_answered_and_takes_no_number() -> None:
    initiator = logged_in()
    initiator.send(NopOut(immediate=True, cmd_sn=1))
    assert initiator.quiet()
    initiator.task(READ, 0)


def test_a_silent_initiator_is_pinged_and_dropped_when_it_stays_silent() -> None:
    initiator = logged_in()
    connection = initiator.connection
    connection.tick(initiator.now + 9)
    assert initiator.collect() == b""
    connection.tick(initiator.now + 10)
    initiator.collect()
    ping, data = initiator.answer()
    assert (ping.initiator_task_tag, ping.stat_sn, data) == (RESERVED_TAG, 2, b"")
    assert ping.target_transfer_tag != RESERVED_TAG
    initiator.now += 15
    initiator.send(NopOut(immediate=True, target_transfer_tag=ping.target_transfer_tag, cmd_sn=1))
    connection.tick(initiator.now + 9)
    assert initiator.quiet()
    connection.tick(initiator.now + 10)
    connection.tick(initiator.now + 20)
    assert connection.failed == "no answer to a ping for 10 s"


def test_a_ping_consumes_no_stat_sn() -> None:
    initiator = logged_in()
    initiator.connection.tick(initiator.now + 10)
    initiator.respond(initiator.task(READ, 0))
    assert [pdu.stat_sn for pdu, _ in initiator.answers] == [2, 2]


# --- task management ---


def manage(initiator: Initiator, **fields: Any) -> Any:
    request = TaskManagementRequest(immediate=True, initiator_task_tag=99, cmd_sn=initiator.cmd_sn, **fields)
    initiator.send(request)
    return initiator.event()


def test_immediate_task_management_that_waits_is_bounded() -> None:
    initiator = logged_in(settings=Settings(max_immediate_commands=2))
    for _ in range(3):
        initiator.send(TaskManagementRequest(immediate=True, function=2, cmd_sn=1))
    expect_reject(initiator, RejectReason.IMMEDIATE_COMMAND_REJECT)
    for event in tuple(initiator.connection.events):
        assert isinstance(event, TaskManagement)
        initiator.connection.respond_task_management(event, FunctionResponse.COMPLETE)
    initiator.send(TaskManagementRequest(immediate=True, function=2, cmd_sn=1))
    assert len(initiator.connection.events) == 3


def test_task_management_is_an_event_and_its_answer_has_no_data() -> None:
    initiator = logged_in()
    event = manage(initiator, function=5, lun=3 << 48)
    assert event == TaskManagement(99, 5, 3, RESERVED_TAG, 0, 1, True)
    initiator.connection.respond_task_management(event, FunctionResponse.COMPLETE)
    initiator.collect()
    pdu, data = initiator.answer()
    assert (pdu.response, pdu.initiator_task_tag, data) == (0, 99, b"")


def test_aborting_a_command_that_is_still_to_come_makes_it_received() -> None:
    initiator = logged_in()
    initiator.cmd_sn = 3
    event = manage(initiator, function=1, referenced_task_tag=50, ref_cmd_sn=1)
    session = initiator.connection.session
    assert session is not None
    assert session.abort_missing(event) == FunctionResponse.COMPLETE
    initiator.command(READ, 0, cmd_sn=1, initiator_task_tag=50)
    assert initiator.quiet()
    initiator.command(READ, 0, cmd_sn=2)
    assert isinstance(initiator.event(), Task)


@pytest.mark.parametrize("ref_cmd_sn", [0, 3, 300])
def test_aborting_a_task_that_never_was(ref_cmd_sn: int) -> None:
    initiator = logged_in()
    initiator.cmd_sn = 3
    event = manage(initiator, function=1, referenced_task_tag=50, ref_cmd_sn=ref_cmd_sn)
    session = initiator.connection.session
    assert session is not None
    assert session.abort_missing(event) == FunctionResponse.TASK_DOES_NOT_EXIST


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (8, FunctionResponse.REASSIGNMENT_NOT_SUPPORTED),
        (0, FunctionResponse.NOT_SUPPORTED),
        (9, FunctionResponse.NOT_SUPPORTED),
        (127, FunctionResponse.NOT_SUPPORTED),
    ],
)
def test_functions_that_we_never_do_are_answered_at_once(function: int, response: int) -> None:
    initiator = logged_in()
    initiator.send(TaskManagementRequest(immediate=True, function=function, cmd_sn=1))
    assert initiator.answer()[0].response == response


# --- logout ---


def test_logout_is_answered_and_the_connection_closes() -> None:
    initiator = logged_in()
    initiator.send(LogoutRequest(initiator_task_tag=4, cmd_sn=1))
    event = initiator.event()
    assert event == LogoutRequested(4, 0, 0)
    initiator.connection.answer_logout(event)
    assert initiator.connection.closing
    initiator.collect()
    pdu, data = initiator.answer()
    assert (pdu.response, pdu.stat_sn, pdu.initiator_task_tag, data) == (0, 2, 4, b"")


@pytest.mark.parametrize(
    ("reason", "cid", "status"),
    [
        (1, 5, LogoutStatus.CID_NOT_FOUND),
        (2, 0, LogoutStatus.RECOVERY_NOT_SUPPORTED),
        (77, 0, LogoutStatus.CLEANUP_FAILED),
    ],
)
def test_a_logout_that_cannot_be_done(reason: int, cid: int, status: int) -> None:
    initiator = logged_in()
    initiator.send(LogoutRequest(immediate=True, reason=reason, cid=cid))
    assert initiator.answer()[0].response == status
    assert not initiator.connection.closing


# --- text ---


def test_send_targets_comes_in_parts_that_the_initiator_can_receive() -> None:
    initiator = Initiator()
    initiator.log_in(("MaxRecvDataSegmentLength", "512"), names=DISCOVERY)
    initiator.send(TextRequest(initiator_task_tag=5, cmd_sn=1), encode_pairs([("SendTargets", "All")]))
    event = initiator.event()
    assert event == SendTargets("All", 5)
    records = [(f"iqn.2026-01.org.example:{n:03}", ["127.0.0.1:3260", "[::1]:3260"]) for n in range(30)]
    initiator.connection.answer_send_targets(event, records)
    initiator.collect()
    text = b""
    for cmd_sn in range(2, 20):
        pdu, data = initiator.answer()
        text += data
        assert len(data) <= 512
        if pdu.final:
            break
        assert pdu.continue_
        request = TextRequest(initiator_task_tag=5, target_transfer_tag=pdu.target_transfer_tag, cmd_sn=cmd_sn)
        initiator.send(request)
    assert pdu.target_transfer_tag == RESERVED_TAG
    expected = []
    for name, addresses in records:
        expected += [("TargetName", name), *(("TargetAddress", f"{address},1") for address in addresses)]
    assert parse_pairs(text) == expected


def test_a_question_may_come_in_parts() -> None:
    initiator = logged_in()
    text = encode_pairs([("SendTargets", "")])
    initiator.send(TextRequest(initiator_task_tag=5, final=False, continue_=True, cmd_sn=1), text[:5])
    pdu, data = initiator.answer()
    assert (pdu.final, pdu.continue_, data) == (False, False, b"")
    initiator.send(TextRequest(initiator_task_tag=5, target_transfer_tag=pdu.target_transfer_tag, cmd_sn=2), text[5:])
    assert initiator.event() == SendTargets("", 5)


def test_the_segment_length_may_be_declared_anew() -> None:
    initiator = logged_in()
    pairs = [("MaxRecvDataSegmentLength", "512"), ("HeaderDigest", "CRC32C"), ("X-what", "1")]
    initiator.send(TextRequest(initiator_task_tag=5, cmd_sn=1), encode_pairs(pairs))
    assert parse_pairs(initiator.answer()[1]) == [("HeaderDigest", "Reject"), ("X-what", "NotUnderstood")]
    initiator.cmd_sn = 2
    initiator.respond(initiator.task(READ, 1024), data=bytes(1024))
    assert [pdu.data_segment_length for pdu, _ in initiator.answers] == [512, 512]


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"continue_": True}, b"", RejectReason.PROTOCOL_ERROR),
        ({"target_transfer_tag": 5}, b"", RejectReason.INVALID_PDU_FIELD),
        ({}, b"no pair\0", RejectReason.PROTOCOL_ERROR),
        ({}, b"A=unterminated", RejectReason.PROTOCOL_ERROR),
    ],
)
def test_malformed_text_is_rejected(fields: dict[str, Any], text: bytes, reason: RejectReason) -> None:
    initiator = logged_in()
    initiator.send(TextRequest(cmd_sn=1, **fields), text)
    expect_reject(initiator, reason)


def test_a_second_question_while_the_first_is_pending_is_rejected() -> None:
    initiator = logged_in()
    for cmd_sn in (1, 2):
        initiator.send(TextRequest(initiator_task_tag=cmd_sn, cmd_sn=cmd_sn), encode_pairs([("SendTargets", "")]))
    expect_reject(initiator, RejectReason.TASK_IN_PROGRESS)


# --- Reject and async ---


def test_an_unknown_opcode_is_rejected_with_its_header() -> None:
    initiator = logged_in()
    header = bytes([0x1C]) + bytes(47)
    initiator.send_raw(header)
    expect_reject(initiator, RejectReason.COMMAND_NOT_SUPPORTED, header)


@pytest.mark.parametrize(
    ("pdu", "reason"),
    [
        (SnackRequest(), RejectReason.SNACK_REJECT),
        (LoginRequest(cmd_sn=1), RejectReason.PROTOCOL_ERROR),
    ],
)
def test_requests_that_have_no_place_are_rejected(pdu: FixedLayout, reason: RejectReason) -> None:
    initiator = logged_in()
    initiator.send(pdu)
    expect_reject(initiator, reason, pdu.encode())


def test_a_header_that_breaks_its_form_is_rejected() -> None:
    initiator = logged_in()
    header = bytearray(NopOut(initiator_task_tag=1).encode())
    header[1] = 0
    initiator.send_raw(bytes(header))
    expect_reject(initiator, RejectReason.PROTOCOL_ERROR)


def test_a_discovery_session_carries_no_commands() -> None:
    initiator = Initiator()
    initiator.log_in(names=DISCOVERY)
    initiator.command(READ, 0)
    expect_reject(initiator, RejectReason.COMMAND_NOT_SUPPORTED)
    initiator.send(TaskManagementRequest(immediate=True, function=1))
    expect_reject(initiator, RejectReason.COMMAND_NOT_SUPPORTED)


def test_an_async_message_carries_its_sense_and_parameters() -> None:
    initiator = logged_in()
    initiator.connection.send_async(AsyncEvent.SCSI, lun=2, sense=b"\x70\x00\x06")
    initiator.connection.send_async(AsyncEvent.REQUEST_LOGOUT, parameter3=3)
    initiator.collect()
    (scsi, data), (logout, none) = initiator.answers
    assert isinstance(scsi, AsyncMessage)
    assert (scsi.event, scsi.lun, data) == (0, 2 << 48, b"\x00\x03\x70\x00\x06")
    assert (logout.event, logout.parameter3, logout.stat_sn, none) == (1, 3, 3, b"")
