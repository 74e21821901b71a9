"""Streams as a whole: any cut gives the same answers, garbage gives answers or an end, partial sends lose nothing."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.command import ScsiCommand
from pdus.iscsi.data import DataOut
from pdus.iscsi.login import LoginRequest
from pdus.iscsi.logout import LogoutRequest
from pdus.iscsi.nop import NopOut
from pdus.iscsi.snack import SnackRequest
from pdus.iscsi.task_management import TaskManagementRequest
from pdus.iscsi.text import TextRequest
from target.iscsi.events import (
    DataArrived,
    LoginStarted,
    LogoutRequested,
    SendTargets,
    SessionRequested,
    TaskManagement,
)
from target.iscsi.login import LoginPolicy
from target.iscsi.session import Task
from target.iscsi.settings import Settings
from tests.target.iscsi.support import READ, WRITE, Initiator

DATA = bytes(i * 11 & 0xFF for i in range(60_000))


def own(initiator: Initiator) -> None:
    """Play a simple owner: answer every event; a write's answer carries its data as sense, to be looked at."""
    connection = initiator.connection
    while connection.events:
        event = connection.events.popleft()
        if isinstance(event, LoginStarted):
            connection.accept_login(LoginPolicy())
        elif isinstance(event, SessionRequested):
            connection.establish(1)
        elif isinstance(event, Task):
            _start(initiator, event)
        elif isinstance(event, DataArrived):
            _finish_write(initiator, event.task)
        elif isinstance(event, TaskManagement):
            connection.respond_task_management(event, 0)
        elif isinstance(event, SendTargets):
            connection.answer_send_targets(event, [("iqn.2026-01.org.example:disk", ["127.0.0.1:3260"])])
        elif isinstance(event, LogoutRequested):
            connection.answer_logout(event)


def _finish_write(initiator: Initiator, task: Task) -> None:
    assert task.data_out is not None
    initiator.connection.respond(task, 0, hashlib.sha256(task.data_out).digest())


def _start(initiator: Initiator, task: Task) -> None:
    connection = initiator.connection
    if task.revoked:
        return
    if not task.write:
        connection.respond(task, 0, b"", bytes(min(task.expected_length, 4096)))
    elif connection.want_data(task, task.expected_length):
        _finish_write(initiator, task)


def conversation(digests: bool) -> tuple[Initiator, bytes]:
    """A logged-in initiator and a stream that needs no answers read: commands with unsolicited data, pings."""
    initiator = Initiator()
    digest = "CRC32C" if digests else "None"
    initiator.log_in(
        ("HeaderDigest", digest), ("DataDigest", digest), ("InitialR2T", "No"), ("FirstBurstLength", "65536")
    )
    stream = b""
    for number in range(1, 4):
        stream += initiator.encode(ScsiCommand(read=True, initiator_task_tag=number, cmd_sn=3 * number - 2, cdb=READ))
        stream += initiator.encode(NopOut(initiator_task_tag=100 + number, cmd_sn=3 * number - 1), b"ping" * number)
        length = 20_003 * number % 60_000
        command = ScsiCommand(
            write=True,
            final=False,
            initiator_task_tag=50 + number,
            cmd_sn=3 * number,
            cdb=WRITE,
            expected_data_transfer_length=length,
        )
        stream += initiator.encode(command, DATA[:1001])
        data_out = DataOut(
            initiator_task_tag=50 + number, target_transfer_tag=RESERVED_TAG, buffer_offset=1001, final=True
        )
        stream += initiator.encode(data_out, DATA[1001:length])
    return initiator, stream


def feed(initiator: Initiator, stream: bytes, cuts: list[int], *, late: bool) -> bytes:
    """Receive the stream in parts; ``late``: the owner looks only when all of it is there. Returns the output."""
    output, start = b"", 0
    for end in [*cuts, len(stream)]:
        initiator.connection.receive(stream[start:end], initiator.now)
        if not late or end == len(stream):
            own(initiator)
        output += initiator.collect()
        start = end
    assert initiator.connection.failed is None
    return output


def outcomes(initiator: Initiator) -> list[tuple[str, int, int, bytes]]:
    """What each request came to, whatever the order of the answers."""
    return sorted(
        (type(pdu).__name__, pdu.initiator_task_tag, getattr(pdu, "status", 0), data) for pdu, data in initiator.answers
    )


def check_cuts(digests: bool, cuts: list[int]) -> None:
    whole, stream = conversation(digests)
    expected = feed(whole, stream, [], late=True)
    assert len(whole.answers) == 9
    late, _ = conversation(digests)
    assert feed(late, stream, cuts, late=True) == expected
    prompt, _ = conversation(digests)
    feed(prompt, stream, cuts, late=False)
    assert outcomes(prompt) == outcomes(whole)


@pytest.mark.parametrize("digests", [False, True])
def test_byte_by_byte_gives_the_same_answers_as_all_at_once(digests: bool) -> None:
    check_cuts(digests, list(range(1, len(conversation(digests)[1]))))


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.lists(st.integers(1, 90_000), max_size=12))
def test_any_cut_gives_the_same_answers(digests: bool, cuts: list[int]) -> None:
    length = len(conversation(digests)[1])
    check_cuts(digests, sorted({n for n in cuts if n < length}))


def test_partial_sends_lose_nothing() -> None:
    initiator = Initiator()
    initiator.log_in(("MaxRecvDataSegmentLength", "262144"))
    large, small = initiator.task(READ, 50_000), initiator.task(READ, 512)
    initiator.connection.respond(large, 0, b"", DATA[:50_000])
    initiator.connection.respond(small, 0, b"", DATA[:512])
    sent = b""
    while initiator.connection.out_bytes:
        chunk = b"".join(initiator.connection.outgoing())[:777]
        initiator.connection.sent(len(chunk))
        sent += chunk
    assert len(sent) == 48 + 50_000 + 48 + 512
    assert sent[48:50_048] == DATA[:50_000]
    assert initiator.connection.outgoing() == []


REQUESTS: tuple[type[Any], ...] = (
    ScsiCommand,
    ScsiCommand,
    DataOut,
    DataOut,
    NopOut,
    TextRequest,
    TaskManagementRequest,
    LoginRequest,
    LogoutRequest,
    SnackRequest,
)
_KINDS = (0.02, 0.05, 0.15)  # cumulated shares of: random bytes, a cut PDU, flipped bits; the rest is well framed


def _near(random_: random.Random, width: int, center: int) -> int:
    """A number that is often plausible, sometimes extreme."""
    choices = [0, 1, center, center, center + 1, random_.randrange(8), random_.randrange(1 << width), (1 << width) - 1]
    return random_.choice(choices) & ((1 << width) - 1)


def _garbage(random_: random.Random, initiator: Initiator) -> bytes:
    """One PDU that breaks some rule or other; the stream's framing mostly survives it."""
    kind = random_.random()
    if kind < _KINDS[0]:
        return random_.randbytes(random_.randrange(1, 100))
    request = random_.choice(REQUESTS)
    session = initiator.connection.session
    values: dict[str, Any] = {}
    for field in request.LAYOUT:
        if field.name in request.FIELDS and random_.random() < 0.8:
            center = session.numbering.exp_cmd_sn if session is not None and field.name == "cmd_sn" else 512
            size = field.width // 8
            values[field.name] = random_.randbytes(size) if field.kind is bytes else _near(random_, field.width, center)
    data = random_.choice([b"", b"", bytes(512), random_.randbytes(random_.randrange(3000)), b"SendTargets=All\0"])
    pdu = bytearray(initiator.encode(request(**values), data, random_.choice([b"", b"", b"", random_.randbytes(8)])))
    if kind < _KINDS[1]:
        return bytes(pdu[: random_.randrange(len(pdu))])
    if kind < _KINDS[2]:
        pdu[random_.randrange(len(pdu))] ^= 1 << random_.randrange(8)
    return bytes(pdu)


@pytest.mark.parametrize("logged_in", [True, False])
def test_garbage_is_answered_or_ends_the_connection_and_memory_stays_bounded(logged_in: bool) -> None:
    random_ = random.Random(20260101)
    initiator, alive = Initiator(), False
    dropped = answered = 0
    limits = Settings()
    for _ in range(5000):
        if not alive:
            initiator = Initiator()
            if logged_in:
                initiator.log_in(("InitialR2T", "No"))
            alive = True
        initiator.connection.receive(_garbage(random_, initiator), initiator.now)
        own(initiator)
        connection = initiator.connection
        initiator.collect()
        answered += len(initiator.answers)
        initiator.answers.clear()
        session = connection.session
        if session is not None:
            assert session.budget.solicited <= limits.session_buffers
            assert session.budget.unsolicited <= limits.session_buffers
            assert len(session.tasks) <= limits.command_window + limits.max_immediate_commands
        if connection.failed is not None or connection.closing:
            dropped += 1
            alive = False
    assert dropped > 100
    assert answered > 300
