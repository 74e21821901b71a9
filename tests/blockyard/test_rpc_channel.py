"""The channel between daemon and worker: calls, big messages, sockets, and the other side's death."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from blockyard.errors import Internal, NotFound, Unavailable
from blockyard.model import Created, Swept, Value
from blockyard.rpc import channel as channel_module
from blockyard.rpc.calls import (
    CALLS,
    Adopt,
    Call,
    CreateGroup,
    GroupRemoved,
    ListSessions,
    Notice,
    Opened,
    Sessions,
    ShowGroup,
    ShowPool,
    SweepPool,
)
from blockyard.rpc.channel import Channel, socket_pair
from tests.blockyard.support import run


class Side:
    """One end that records what it hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[Notice] = []
        self.sockets: list[socket.socket] = []
        self.heard_one = asyncio.Event()
        self.gone = asyncio.Event()
        self.block = asyncio.Event()
        self.channel = Channel(sock, asyncio.get_running_loop(), self)

    async def serve(self, call: Call[Any]) -> Value:
        if isinstance(call, SweepPool):
            return Swept(freed=4096)
        if isinstance(call, ShowGroup):
            raise NotFound(f"no group is named {call.group}")
        if isinstance(call, ListSessions):
            await self.block.wait()
            return Sessions(sessions=())
        raise RuntimeError("a defect")

    def notice(self, notice: Notice, sockets: Sequence[socket.socket]) -> None:
        self.heard.append(notice)
        self.sockets += sockets
        self.heard_one.set()

    def closed(self) -> None:
        self.gone.set()


def sides() -> tuple[Side, Side]:
    ours, theirs = socket_pair()
    return Side(ours), Side(theirs)


def close(*ends: Side) -> None:
    for end in ends:
        end.channel.close()
        for sock in end.sockets:
            sock.close()


def adopt() -> Adopt:
    return Adopt(iqn="iqn.2026-01.io.blockyard:x", received=bytes(range(256)), replied=48)


def test_a_call_is_answered_with_its_reply_type() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        assert await daemon.channel.call(SweepPool()) == Swept(freed=4096)
        close(daemon, worker)

    run(scenario())


def test_a_refusal_comes_back_as_the_error_that_was_raised() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        with pytest.raises(NotFound, match="no group is named db"):
            await daemon.channel.call(ShowGroup(group="db"))
        close(daemon, worker)

    run(scenario())


def test_a_defect_in_a_handler_comes_back_as_internal_and_the_channel_lives() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        with pytest.raises(Internal, match="RuntimeError"):
            await daemon.channel.call(ShowPool())
        assert await daemon.channel.call(SweepPool()) == Swept(freed=4096)
        close(daemon, worker)

    run(scenario())


def test_every_call_names_the_type_of_its_reply() -> None:
    assert CreateGroup.reply_type() is Created
    assert all(issubclass(call.reply_type(), Value) for call in CALLS.values())


def test_messages_larger_than_many_packets_arrive_whole() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        name = "x" * (3 << 20)
        worker.channel.notify(GroupRemoved(name=name))
        worker.channel.notify(Opened(uuid=uuid4(), groups=()))
        while len(daemon.heard) < 2:
            daemon.heard_one.clear()
            await daemon.heard_one.wait()
        first, second = daemon.heard
        assert first == GroupRemoved(name=name)
        assert isinstance(second, Opened)
        close(daemon, worker)

    run(scenario())


def test_a_socket_is_handed_over_and_the_senders_copy_is_closed() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        initiator, accepted = socket.socketpair()
        assert daemon.channel.notify(adopt(), [accepted])
        assert accepted.fileno() == -1
        await worker.heard_one.wait()
        assert worker.heard == [adopt()]
        worker.sockets[0].sendall(b"hello")
        assert initiator.recv(5) == b"hello"
        assert not os.get_inheritable(worker.sockets[0].fileno())
        close(daemon, worker)
        initiator.close()

    run(scenario())


def test_a_socket_that_a_dead_worker_never_took_is_closed_for_its_initiator() -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        daemon = Side(ours)
        initiator, accepted = socket.socketpair()
        daemon.channel.notify(adopt(), [accepted])
        theirs.close()  # killed before it read
        await daemon.gone.wait()
        assert initiator.recv(1) == b""
        initiator.close()

    run(scenario())


def test_a_socket_for_a_closed_channel_is_closed() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        daemon.channel.close()
        initiator, accepted = socket.socketpair()
        assert not daemon.channel.notify(adopt(), [accepted])
        assert initiator.recv(1) == b""
        initiator.close()
        close(worker)

    run(scenario())


def test_a_worker_that_reads_nothing_gets_a_bounded_queue_and_its_sockets_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "MAX_QUEUED", 2)

    async def scenario() -> None:
        ours, theirs = socket_pair()
        daemon = Side(ours)
        while daemon.channel.notify(GroupRemoved(name="x" * (1 << 20))):
            pass
        initiator, accepted = socket.socketpair()
        assert not daemon.channel.notify(adopt(), [accepted])
        assert initiator.recv(1) == b""
        initiator.close()
        daemon.channel.close()
        theirs.close()

    run(scenario())


def test_callers_that_wait_get_unavailable_when_the_other_side_dies() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        waiting = asyncio.create_task(daemon.channel.call(ListSessions()))
        await asyncio.sleep(0)
        worker.channel.close()
        with pytest.raises(Unavailable, match="ended during ListSessions"):
            await waiting
        await daemon.gone.wait()
        close(daemon, worker)

    run(scenario())


def test_a_silent_worker_is_unavailable_after_the_callers_patience() -> None:
    async def scenario() -> None:
        daemon, worker = sides()
        with pytest.raises(Unavailable, match="did not answer ListSessions"):
            await daemon.channel.call(ListSessions(), seconds=0.001)
        worker.block.set()
        await worker.channel.drain()
        assert await daemon.channel.call(SweepPool()) == Swept(freed=4096)  # the late answer disturbs nobody
        close(daemon, worker)

    run(scenario())


@pytest.mark.parametrize("packet", [b".", b".nonsense", b".call x y\n{}", b".notice 0 Unknown\n{}", b".call 1 Stop\n["])
def test_garbage_ends_the_channel(packet: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        daemon = Side(ours)
        theirs.send(packet)
        await daemon.gone.wait()
        assert not daemon.channel.open
        theirs.close()

    run(scenario())
