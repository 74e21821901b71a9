"""The I/O edge: fairness, bounds, deadlines, hand-over; sockets are real, the clock is the test's."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any

import pytest

import target.portal
from blockstore.api import Done
from pdus.iscsi.login import LoginRequest, LoginResponse, LoginStatus, Stage
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.task_management import Function, FunctionResponse, TaskManagementRequest
from pdus.iscsi.text import encode_pairs, parse_pairs
from target import front_door
from target.front_door import DISCOVERY_SECONDS, FrontDoor, Route
from target.iscsi.settings import Settings
from target.portal import LINGER_SECONDS, MAX_UNSENT, Stream
from tests.initiator import Disconnected, LoginRefused, read10, write10
from tests.target.support import HOST, IQN, MIB, Host, Yard, serving

OTHER = "iqn.2026-01.example:other"
SETTINGS = Settings()
SILENCE = int(SETTINGS.ping_interval + SETTINGS.ping_timeout + LINGER_SECONDS) + 3
BLOCKS = MIB // 512


def stream_of(yard: Yard, host: Host) -> Stream:
    port = host.sock.getsockname()[1]
    [stream] = [stream for stream in yard.streams if stream.peer.endswith(f":{port}")]
    return stream


def narrow(yard: Yard, host: Host) -> Stream:
    """Small socket buffers, so that little is under way that we do not see."""
    stream = stream_of(yard, host)
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    host.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    return stream


class SlowReads:
    """Reads of every volume wait until the test ends them."""

    def __init__(self) -> None:
        self.waiting: list[Done] = []
        self.most = 0

    def read(self, offset: int, into: memoryview, done: Done) -> None:
        self.waiting.append(done)
        self.most = max(self.most, len(self.waiting))

    def end_all(self, host: Host) -> None:
        """And those that begin when there is room again."""
        host.drain()
        while self.waiting:
            self.waiting.pop(0)(None)
            host.drain()


@pytest.fixture
def slow(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> SlowReads:
    slow = SlowReads()
    volume = type(yard.pool.groups["disk"].volumes[0])
    monkeypatch.setattr(volume, "read_now", lambda self, offset, into: False)
    monkeypatch.setattr(volume, "read", lambda self, offset, into, done: slow.read(offset, into, done))
    return slow


# --- fairness and bounds -----------------------------------------------------------------------------------------


def test_ping_is_answered_while_another_connection_floods(yard: Yard) -> None:
    flooding, other = yard.host().log_in(), yard.host(name=OTHER).log_in()
    for _ in range(128):
        flooding.start(read10(0, 512), data_in=256 << 10)
    other.send(NopOut(immediate=True, initiator_task_tag=7, cmd_sn=other.cmd_sn), b"ping")
    for _ in range(4):
        yard.loop.step()
    assert other.sock.recv(100)[48:] == b"ping"
    done = yard.targets.sessions()[0].commands
    assert done < 64
    flooding.wait_all()


@pytest.mark.parametrize(
    "flood",
    [NopOut(immediate=True, initiator_task_tag=9), TaskManagementRequest(immediate=True, function=2)],
    ids=["NOP-Out", "ABORT TASK SET"],
)
def test_flood_of_small_requests_is_taken_in_portions(yard: Yard, flood: Any) -> None:
    host = yard.host().log_in()
    stream = stream_of(yard, host)
    flood.cmd_sn = host.cmd_sn
    host.sock.sendall(flood.encode() * 1000)
    taken, before = [], stream.connection.stat_sn
    while yard.loop.step() or sum(taken) < 1000:
        taken.append(stream.connection.stat_sn - before)
        before = stream.connection.stat_sn
    # The first gulp is not known to be a flood; its events are handled 64 a tick all the same
    assert sum(taken) == 1000
    assert sum(count > 128 for count in taken) <= 1


def test_peer_that_does_not_read_is_stalled_without_spinning_and_goes_on_later(yard: Yard) -> None:
    host = yard.host().log_in()
    stream = narrow(yard, host)
    commands = [host.start(read10(0, BLOCKS), data_in=MIB) for _ in range(64)]
    yard.loop.settle()  # ends only if nothing is left to do
    assert MAX_UNSENT < stream.connection.out_bytes <= MAX_UNSENT + 2 * MIB
    host.wait_all()
    assert {command.status for command in commands} == {0}
    assert host.ping() == b"ping"


def test_peer_that_never_reads_again_is_dropped_and_its_buffers_come_back(yard: Yard) -> None:
    host = yard.host().log_in()
    stream = narrow(yard, host)
    host.start(write10(0, 1024), data_out=bytes(512 << 10))
    for _ in range(64):
        host.start(read10(0, BLOCKS), data_in=MIB)
    yard.loop.settle()
    budget = yard.portal._budget
    assert budget.solicited
    yard.loop.advance(SILENCE)
    assert stream.closed
    assert budget.solicited == budget.unsolicited == 0


def test_peer_that_reads_slowly_is_not_dropped(yard: Yard) -> None:
    host = yard.host().log_in()
    stream = narrow(yard, host)
    for _ in range(64):
        host.start(read10(0, BLOCKS), data_in=MIB)
    yard.loop.settle()
    for _ in range(2 * SILENCE):
        for _ in range(8):
            host._buffer += host.sock.recv(32 << 10)
            yard.loop.settle()
        yard.loop.advance(1)
    assert not stream.closed
    host.wait_all()


def test_reads_that_wait_for_the_store_are_bounded_in_bytes(yard: Yard, slow: SlowReads) -> None:
    host = yard.host().log_in()
    commands = [host.start(read10(0, BLOCKS), data_in=MIB) for _ in range(16)]
    yard.loop.settle()
    assert len(slow.waiting) == MAX_UNSENT // MIB + 1
    assert host.ping() == b"ping"
    slow.end_all(host)
    host.wait_all()
    assert slow.most == MAX_UNSENT // MIB + 1
    assert {command.status for command in commands} == {0}
    assert stream_of(yard, host).connection.unsent == 0


def test_aborted_reads_that_wait_for_the_store_do_not_stall_for_ever(yard: Yard, slow: SlowReads) -> None:
    host, other = yard.host().log_in(), yard.host(name=OTHER).log_in()
    for _ in range(8):
        host.start(read10(0, BLOCKS), data_in=MIB)
    yard.loop.settle()
    assert other.manage(Function.LOGICAL_UNIT_RESET) == FunctionResponse.COMPLETE
    slow.end_all(host)
    assert stream_of(yard, host).connection.unsent == 0
    assert host.ping() == b"ping"
    # Five were aborted; of the three that had not begun, one was told of the reset and two were executed
    assert len(host.commands) == 5


def test_several_writes_of_the_largest_length_share_the_budget() -> None:
    with serving() as yard:
        yard.group(32 * MIB)
        host = yard.host().log_in()
        writes = [host.start(write10(0, 8 * BLOCKS), data_out=bytes([n]) * (8 * MIB)) for n in range(5)]
        host.wait_all()
        assert {write.status for write in writes} == {0}


# --- deadlines ---------------------------------------------------------------------------------------------------


def test_connection_that_does_not_log_in_is_dropped(yard: Yard) -> None:
    host = yard.host()
    yard.loop.advance(int(SETTINGS.login_deadline) - 2)
    assert len(yard.streams) == 1
    yard.loop.advance(3)
    assert host.dropped


def test_silent_initiator_is_pinged_and_stays_if_it_answers(yard: Yard) -> None:
    host = yard.host().log_in()
    for _ in range(3):
        yard.loop.advance(int(SETTINGS.ping_interval))
        ping, _ = host.receive()
        assert isinstance(ping, NopIn)
        host.send(NopOut(immediate=True, target_transfer_tag=ping.target_transfer_tag, cmd_sn=host.cmd_sn))
        assert host.silent


def test_initiator_that_answered_while_the_loop_stood_still_stays(yard: Yard) -> None:
    host, silent = yard.host().log_in(), yard.host(name=OTHER).log_in()
    yard.loop.advance(int(SETTINGS.ping_interval))
    ping, _ = host.receive()
    assert isinstance(ping, NopIn)
    host.send(NopOut(immediate=True, target_transfer_tag=ping.target_transfer_tag, cmd_sn=host.cmd_sn))
    yard.loop.stall(2 * SETTINGS.ping_timeout)
    assert not host.dropped
    assert silent.dropped


def test_too_many_that_have_not_logged_in_are_turned_away(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.portal, "MAX_WAITING", 2)
    session = yard.host().log_in()
    waiting = [yard.host(name=OTHER), yard.host(name=OTHER)]
    yard.loop.settle()
    assert yard.host().dropped
    for host in waiting:
        host.log_in()
    assert session.dropped is False


# --- our own mistakes --------------------------------------------------------------------------------------------


def test_defect_in_one_streams_clock_does_not_stop_the_others(
    yard: Yard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = yard.host().log_in(), yard.host(name=OTHER).log_in()

    def fail(now: float) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(stream_of(yard, broken).connection, "tick", fail)
    yard.loop.advance(int(SETTINGS.ping_interval))
    assert broken.dropped
    assert isinstance(other.receive()[0], NopIn)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


def test_defect_while_a_connection_ends_still_closes_its_socket(
    yard: Yard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = yard.host().log_in()
    with monkeypatch.context() as patched:
        patched.setattr(yard.targets, "on_closed", lambda stream: 1 / 0)
        stream_of(yard, host).close("cut")
    assert host.dropped
    assert "internal error" in caplog.text
    yard.targets._nodes.clear()


# --- front door --------------------------------------------------------------------------------------------------


class Doorkeeper:
    """A directory of one pool, and its worker's portal."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.door = FrontDoor(yard.loop, self, self.hand_over)
        self.adopted: list[tuple[bytes, int]] = []

    def route(self, target: str, initiator: str, address: str) -> Route | LoginStatus:
        return Route("pool") if target == IQN else LoginStatus.NOT_FOUND

    def visible(self, initiator: str, address: str) -> list[str]:
        return self.yard.targets.visible(initiator, address)

    def hand_over(self, key: object, sock: socket.socket, received: bytes, replied: int) -> None:
        self.adopted.append((received, replied))
        self.yard.portal.adopt(sock, received, replied)

    def host(self, listener: socket.socket, target: str | None = IQN, **how: Any) -> Host:
        plain, self.yard.address = self.yard.address, listener.getsockname()
        try:
            return self.yard.host(target, **how)
        finally:
            self.yard.address = plain


@pytest.fixture
def keeper(yard: Yard) -> Any:
    keeper = Doorkeeper(yard)
    yield keeper
    closing = yard.loop.create_task(keeper.door.close())
    yard.loop.settle()
    assert closing.done()


def timers(yard: Yard) -> int:
    return sum(not handle.cancelled() for handle in yard.loop._scheduled)  # type: ignore[attr-defined]


def test_login_is_handed_over_with_what_was_said(keeper: Doorkeeper) -> None:
    host = keeper.host(keeper.door.listen("127.0.0.1", 0)).log_in()
    assert host.ping() == b"ping"
    assert not keeper.door._portal.streams
    assert [info.address for info in keeper.yard.targets.sessions()] == [f"127.0.0.1:{host.sock.getsockname()[1]}"]


def send_login_part(host: Host, keys: dict[str, str], *, continues: bool) -> None:
    host.send(
        LoginRequest(
            transit=not continues,
            continue_=continues,
            current_stage=Stage.OPERATIONAL,
            next_stage=0 if continues else Stage.FULL_FEATURE,
            isid=host.isid,
            cmd_sn=1,
        ),
        encode_pairs(keys.items()),
    )


def test_login_in_parts_is_answered_once_across_the_hand_over(keeper: Doorkeeper) -> None:
    host = keeper.host(keeper.door.listen("127.0.0.1", 0))
    send_login_part(host, {"InitiatorName": HOST}, continues=True)
    first, _ = host.receive()
    send_login_part(host, {"TargetName": IQN}, continues=False)
    last, data = host.receive()
    assert (first.stat_sn, last.stat_sn) == (1, 2)
    assert last.transit
    assert ("TargetPortalGroupTag", "1") in parse_pairs(data)
    assert keeper.adopted[0][1] == 48
    assert host.silent


def test_answers_half_sent_before_the_hand_over_are_completed(yard: Yard, keeper: Doorkeeper) -> None:
    host = keeper.host(keeper.door.listen("127.0.0.1", 0))
    yard.loop.settle()
    [stream] = keeper.door._portal.streams
    part = 20

    class Full:
        """The socket took so much of the first answer."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def sendmsg(self, buffers: list[bytes]) -> int:
            if keeper.door._portal.streams and stream.sent:
                raise BlockingIOError
            return self.sock.send(b"".join(buffers)[:part])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    sock = stream.sock
    stream.sock = Full(sock)  # type: ignore[assignment]
    send_login_part(host, {"InitiatorName": HOST}, continues=True)
    yard.loop.step()
    stream.sock = sock
    send_login_part(host, {"TargetName": IQN}, continues=False)
    answers = [host.receive()[0], host.receive()[0]]
    assert [type(answer) for answer in answers] == [LoginResponse, LoginResponse]
    assert [answer.stat_sn for answer in answers] == [1, 2]
    assert host.silent


def test_discovery_sessions_leave_nothing_behind(yard: Yard, keeper: Doorkeeper) -> None:
    listener = keeper.door.listen("127.0.0.1", 0)
    before = timers(yard)
    for _ in range(3):
        host = keeper.host(listener, None)
        assert ("TargetName", IQN) in host.login().send_targets()
        assert host.logout() == 0
        assert host.dropped
    assert timers(yard) == before


def test_discovery_session_is_ended_after_a_minute(yard: Yard, keeper: Doorkeeper) -> None:
    host = keeper.host(keeper.door.listen("127.0.0.1", 0), None)
    host.login()
    for _ in range(int(DISCOVERY_SECONDS) - 1):
        yard.loop.advance(1)
        host.ping()
    yard.loop.advance(1)
    assert host.dropped


def test_discovery_sessions_are_bounded(keeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "MAX_DISCOVERY", 1)
    listener = keeper.door.listen("127.0.0.1", 0)
    first = keeper.host(listener, None)
    first.login()
    with pytest.raises(LoginRefused) as refusal:
        keeper.host(listener, None).login()
    assert refusal.value.status == LoginStatus.OUT_OF_RESOURCES
    assert first.logout() == 0
    keeper.host(listener, None).login()


def test_first_request_without_an_end_is_dropped(keeper: Doorkeeper) -> None:
    host = keeper.host(keeper.door.listen("127.0.0.1", 0))
    with pytest.raises((Disconnected, OSError)):
        send_empty_parts(host)


def send_empty_parts(host: Host) -> None:
    for _ in range(target.portal.MAX_RECORDED // 48 + 1):
        send_login_part(host, {}, continues=True)
        host.receive()


class Exhausted(socket.socket):
    """A listening socket in a process that has no descriptor left for a while."""

    left = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_accepting_goes_on_when_descriptors_are_free_again(yard: Yard, keeper: Doorkeeper) -> None:
    listener = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    keeper.door.serve(listener)
    host = keeper.host(listener)
    yard.loop.settle()
    assert not keeper.door._portal.streams
    yard.loop.advance(1)
    assert host.log_in().ping() == b"ping"
