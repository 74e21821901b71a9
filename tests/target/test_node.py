"""Target nodes: how tasks and sessions end, what is answered when, what sessions are told. A whole target, no disk."""

from __future__ import annotations

import asyncio
import logging

import pytest

from blockstore.api import CachePolicy, ClientRecord, NewVolume, Undecided
from pdus.iscsi.async_message import AsyncEvent, AsyncMessage
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.command import ScsiCommand, TaskAttribute
from pdus.iscsi.data import DataOut
from pdus.iscsi.login import LoginResponse, LoginStatus
from pdus.iscsi.logout import LogoutRequest, LogoutResponse
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.task_management import Function, FunctionResponse, TaskManagementRequest, TaskManagementResponse
from target.targets import DRAIN_SECONDS
from tests.initiator import Command, Initiator, LoginRefused, read10, write10
from tests.target.support import HOST, IQN, MIB, Host, Yard, serving

OTHER = "iqn.2026-01.example:other"
BLOCK = 4096
ABORTING = [
    Function.ABORT_TASK,
    Function.ABORT_TASK_SET,
    Function.CLEAR_TASK_SET,
    Function.LOGICAL_UNIT_RESET,
    Function.TARGET_WARM_RESET,
]
UNIT_ATTENTION = 6


def send_management(host: Host, function: Function, task: Command | None = None) -> None:
    host.send(
        TaskManagementRequest(
            immediate=True,
            function=function,
            initiator_task_tag=0x900,
            referenced_task_tag=task.tag if task else RESERVED_TAG,
            cmd_sn=host.cmd_sn,
        )
    )


def take_completion(host: Host) -> None:
    response, _ = host.receive()
    assert isinstance(response, TaskManagementResponse)
    assert response.response == FunctionResponse.COMPLETE


def send_write(host: Host, tag: int, lba: int, *, attribute: TaskAttribute = TaskAttribute.SIMPLE) -> None:
    """A write of one block without any data: the target asks for it by R2T."""
    host.send(
        ScsiCommand(
            write=True,
            attribute=attribute,
            initiator_task_tag=tag,
            expected_data_transfer_length=BLOCK,
            cmd_sn=host._next_cmd_sn(),
            cdb=write10(lba, 8).ljust(16, b"\0"),
        )
    )


def take_r2t(host: Host) -> ReadyToTransfer:
    r2t, _ = host.receive()
    assert isinstance(r2t, ReadyToTransfer)
    return r2t


def send_data(host: Host, r2t: ReadyToTransfer) -> None:
    host.send(
        DataOut(final=True, initiator_task_tag=r2t.initiator_task_tag, target_transfer_tag=r2t.target_transfer_tag),
        b"x" * BLOCK,
    )


def additional_sense(command: Command) -> tuple[int, int, int]:
    assert command.status == 2
    return command.sense[2] & 0xF, command.sense[12], command.sense[13]


def content(yard: Yard) -> bytes:
    """The first block, as another session sees it."""
    other = yard.host(name=OTHER, isid=b"\x80\0\0\0\0\x42").log_in()
    return bytes(other.good(read10(0, 8), data_in=BLOCK).data_in)


def start_login(host: Host) -> None:
    """Send the login's one request; the target has no answer yet."""
    with pytest.raises(AssertionError, match="no answer"):
        host.login()


def login_status(host: Host) -> int:
    response, _ = host.receive()
    assert isinstance(response, LoginResponse)
    return response.status


# --- permits and barrier -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ABORTING, ids=lambda function: function.name)
def test_aborted_write_is_dropped_and_the_answer_waits_for_the_store(yard: Yard, function: Function) -> None:
    host = yard.host().log_in()
    barriers, joined = yard.hold_barriers(), yard.watch_writes()
    # Both arrive at once, so the write is in the batch of the tick in which the function comes
    write = host.start(write10(0, 8), data_out=b"x" * BLOCK)
    send_management(host, function, write)
    assert host.silent
    assert len(joined) == len(barriers) == 1
    barriers[0](None)
    take_completion(host)
    assert host.silent
    yard.barriers = None
    assert content(yard) == bytes(BLOCK)


@pytest.mark.parametrize("function", ABORTING, ids=lambda function: function.name)
def test_write_whose_data_comes_after_its_abort_is_never_executed(yard: Yard, function: Function) -> None:
    host = yard.host().log_in()
    send_write(host, 0x77, 0)
    r2t = take_r2t(host)
    joined = yard.watch_writes()
    send_management(host, function, Command(0x77, b"", b"", bytearray()))
    send_data(host, r2t)
    take_completion(host)
    assert host.silent
    assert not joined


def test_function_is_not_answered_when_the_store_cannot_tell(yard: Yard) -> None:
    host = yard.host().log_in()
    barriers = yard.hold_barriers()
    send_management(host, Function.LOGICAL_UNIT_RESET)
    assert host.silent
    barriers[0](Undecided("the append failed"))
    assert host.dropped


def test_function_answered_too_late_for_its_connection_harms_nobody(yard: Yard) -> None:
    host = yard.host().log_in()
    barriers = yard.hold_barriers()
    send_management(host, Function.LOGICAL_UNIT_RESET)
    assert host.silent
    yard.streams[0].close("cut")
    barriers[0](None)
    assert host.dropped


def test_cold_reset_is_answered_before_every_connection_is_dropped(yard: Yard) -> None:
    host, other = yard.host().log_in(), yard.host(name=OTHER).log_in()
    send_management(host, Function.TARGET_COLD_RESET)
    take_completion(host)
    assert host.dropped
    assert other.dropped


def test_tasks_of_a_lost_connection_write_nothing(yard: Yard) -> None:
    host = yard.host().log_in()
    joined = yard.watch_writes()
    with yard.batch_held():
        host.start(write10(0, 8), data_out=b"x" * BLOCK)
        yard.loop.settle()
        assert len(joined) == 1
        yard.streams[0].close("cut")
    assert content(yard) == bytes(BLOCK)


def test_ending_a_session_starts_none_of_its_dormant_tasks(yard: Yard) -> None:
    host = yard.host().log_in()
    joined = yard.watch_writes()
    send_write(host, 0x77, 0, attribute=TaskAttribute.ORDERED)
    take_r2t(host)
    host.start(write10(8, 8), data_out=b"x" * BLOCK)
    assert host.silent
    yard.streams[0].close("cut")
    yard.loop.settle()
    assert not joined


def test_undecided_write_is_not_answered(yard: Yard) -> None:
    host = yard.host().log_in()
    joined = yard.watch_writes()
    with yard.batch_held():
        host.start(write10(0, 8), data_out=b"x" * BLOCK)
        yard.loop.settle()
        joined[0].done(Undecided("the append failed"))
        assert host.dropped


def test_logout_aborts_and_waits_for_the_store(yard: Yard) -> None:
    host = yard.host().log_in()
    barriers = yard.hold_barriers()
    host.start(write10(0, 8), data_out=b"x" * BLOCK)
    host.send(LogoutRequest(initiator_task_tag=0x900, cmd_sn=host._next_cmd_sn()))
    assert host.silent
    barriers[0](None)
    assert isinstance(host.receive()[0], LogoutResponse)
    assert host.dropped
    yard.barriers = None
    assert content(yard) == bytes(BLOCK)


# --- login -------------------------------------------------------------------------------------------------------


def test_reinstating_login_waits_for_the_store(yard: Yard) -> None:
    old = yard.host().log_in()
    barriers, joined = yard.hold_barriers(), yard.watch_writes()
    with yard.batch_held():
        old.start(write10(0, 8), data_out=b"x" * BLOCK)
        new = yard.host()
        start_login(new)
        assert len(joined) == 1
        assert old.dropped
    barriers[0](None)
    assert login_status(new) == 0
    yard.barriers = None
    assert content(yard) == bytes(BLOCK)


def test_login_waits_for_the_store_after_its_old_session_was_lost(yard: Yard) -> None:
    yard.host().log_in()
    yard.streams[0].close("cut")
    barriers = yard.hold_barriers()
    new = yard.host()
    start_login(new)
    barriers[0](None)
    assert login_status(new) == 0


def test_of_two_logins_that_wait_for_the_same_nexus_the_later_stays(yard: Yard) -> None:
    yard.host().log_in()
    barriers = yard.hold_barriers()
    first, second = yard.host(), yard.host()
    start_login(first)
    start_login(second)
    assert len(barriers) == 2
    barriers[0](None)
    assert login_status(first) == 0
    # The first is in: the second reinstates it, and waits for its tasks too
    barriers[1](None)
    assert second.silent
    assert first.dropped
    barriers[2](None)
    assert login_status(second) == 0
    assert len(yard.targets.sessions()) == 1


def test_login_is_not_answered_when_the_store_cannot_tell(yard: Yard) -> None:
    barriers = yard.hold_barriers()
    host = yard.host()
    start_login(host)
    barriers[0](Undecided("the append failed"))
    assert host.dropped
    assert not yard.targets.sessions()


def test_client_denied_while_its_login_waits_is_refused(yard: Yard) -> None:
    barriers = yard.hold_barriers()
    host = yard.host()
    start_login(host)
    group = yard.pool.groups["disk"]
    group.update(clients=[ClientRecord(OTHER)])
    yard.loop.settle()
    yard.targets.put(group)
    barriers[0](None)
    assert login_status(host) == LoginStatus.AUTHORIZATION_FAILURE
    assert host.dropped


def test_login_that_waits_while_its_group_is_removed_begins_no_session(yard: Yard) -> None:
    barriers = yard.hold_barriers()
    host = yard.host()
    start_login(host)
    removal = yard.loop.create_task(yard.targets.remove(IQN))
    yard.loop.settle()
    assert removal.done()
    barriers[0](None)
    # Retried: a group that is only rolled back is soon there again, else the next attempt is told
    assert login_status(host) == LoginStatus.SERVICE_UNAVAILABLE
    assert host.dropped


def test_name_in_another_case_is_the_same_initiator_and_the_same_target(yard: Yard) -> None:
    old = yard.host().log_in()
    new = yard.host(IQN.upper(), name=HOST.upper()).log_in()
    assert old.dropped
    assert new.ping() == b"ping"
    assert ("TargetName", IQN) in new.send_targets(IQN.upper())


def test_sessions_have_different_tsihs(yard: Yard) -> None:
    hosts = [yard.host(isid=bytes([0x80, 0, 0, 0, 0, number])).log_in() for number in range(3)]
    assert len({host.tsih for host in hosts} - {0}) == 3


# --- what sessions are told --------------------------------------------------------------------------------------


def test_denied_client_loses_its_session_and_its_writes(yard: Yard) -> None:
    host = yard.host().log_in()
    group, joined = yard.pool.groups["disk"], yard.watch_writes()
    with yard.batch_held():
        host.start(write10(0, 8), data_out=b"x" * BLOCK)
        yard.loop.settle()
        assert len(joined) == 1
        group.update(clients=[ClientRecord(OTHER)])
        yard.targets.put(group)
    assert host.dropped
    assert content(yard) == bytes(BLOCK)


def test_change_of_cache_policy_raises_a_unit_attention(yard: Yard) -> None:
    host = yard.host().log_in()
    group = yard.pool.groups["disk"]
    group.update(cache=CachePolicy.WRITETHROUGH)
    yard.loop.settle()
    yard.targets.put(group)
    assert additional_sense(host.run(bytes(6))) == (UNIT_ATTENTION, 0x2A, 0x01)
    yard.targets.put(group)
    host.good(bytes(6))


def test_growth_raises_a_unit_attention_once(yard: Yard) -> None:
    host = yard.host().log_in()
    group = yard.pool.groups["disk"]
    group.resize(0, 2 * MIB)
    yard.loop.settle()
    yard.targets.put(group)
    assert additional_sense(host.run(bytes(6))) == (UNIT_ATTENTION, 0x2A, 0x09)
    yard.targets.put(group)
    host.good(bytes(6))


def test_removed_lun_ends_the_write_that_waits_for_its_data(yard: Yard) -> None:
    group = yard.pool.groups["disk"]
    group.add_volume(NewVolume(MIB))
    yard.loop.settle()
    yard.targets.put(group)
    host = yard.host().log_in()
    while host.run(bytes(6), lun=1).status:
        pass
    host.send(
        ScsiCommand(
            write=True,
            lun=1 << 48,
            initiator_task_tag=0x77,
            expected_data_transfer_length=BLOCK,
            cmd_sn=host._next_cmd_sn(),
            cdb=write10(0, 8).ljust(16, b"\0"),
        )
    )
    r2t = take_r2t(host)
    group.remove_volume(1)
    yard.loop.settle()
    yard.targets.put(group)
    event, _ = host.receive()
    assert isinstance(event, AsyncMessage)
    write = host.commands[0x77] = Command(0x77, b"", b"", bytearray())
    send_data(host, r2t)
    assert additional_sense(host.wait(write)) == (5, 0x25, 0x00)
    assert additional_sense(host.run(bytes(6))) == (UNIT_ATTENTION, 0x3F, 0x0E)


def test_removed_target_asks_its_sessions_to_log_out_and_then_drops_them(yard: Yard) -> None:
    host = yard.host().log_in()
    removal = yard.loop.create_task(yard.targets.remove(IQN))
    event, _ = host.receive()
    assert isinstance(event, AsyncMessage)
    assert event.event == AsyncEvent.REQUEST_LOGOUT
    assert not removal.done()
    yard.loop.advance(DRAIN_SECONDS)
    assert removal.done()
    assert host.dropped
    with pytest.raises(LoginRefused) as refusal:
        yard.host().login()
    assert refusal.value.status == LoginStatus.NOT_FOUND


def test_target_that_stands_down_sends_its_sessions_away_at_once_and_tells_others_to_try_again(yard: Yard) -> None:
    group = yard.pool.groups["disk"]
    host, late = yard.host().log_in(), yard.host(name=OTHER)
    with yard.batch_held():
        write = host.start(write10(0, 8), data_out=b"x" * BLOCK)
        yard.loop.settle()
        yard.targets.stand_down(IQN)
    event, _ = host.receive()
    assert isinstance(event, AsyncMessage)
    assert (event.event, event.parameter2) == (AsyncEvent.DROP_SESSION, 0)
    assert host.dropped
    assert write.status is None
    with pytest.raises(LoginRefused) as refusal:
        late.login()
    assert refusal.value.status == LoginStatus.SERVICE_UNAVAILABLE
    yard.targets.put(group)
    again = yard.host().log_in()
    assert bytes(again.good(read10(0, 8), data_in=BLOCK).data_in) == bytes(BLOCK)  # its permit was revoked


def test_nothing_is_sent_behind_the_answer_to_a_logout(yard: Yard) -> None:
    host = yard.host().log_in()
    barriers = yard.hold_barriers()
    host.send(LogoutRequest(initiator_task_tag=0x900, cmd_sn=host._next_cmd_sn()))
    assert host.silent
    barriers[0](None)
    removal = yard.loop.create_task(yard.targets.remove(IQN))
    assert isinstance(host.receive()[0], LogoutResponse)
    assert host.dropped
    assert removal.done()


# --- our own mistakes --------------------------------------------------------------------------------------------


def test_defect_behind_one_command_costs_that_connection_only(
    yard: Yard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = yard.host().log_in(), yard.host(name=OTHER).log_in()
    server = next(iter(yard.targets._nodes.values())).device_server

    def broken(task: object) -> int:
        raise KeyError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(server, "admit", broken)
        host.start(bytes(6))
        assert host.dropped
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == [f"connection from {peer(host)}: internal error"]
    other.good(bytes(6))
    assert len(yard.targets.sessions()) == 1


def peer(host: Initiator) -> str:
    address, port = host.sock.getsockname()
    return f"{address}:{port}"


def test_removal_can_be_awaited_on_any_loop() -> None:
    """``remove`` has no loop of its own."""
    with serving() as yard:
        asyncio.run(yard.targets.remove("iqn.2026-01.example:nobody"))
