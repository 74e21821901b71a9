"""Attachments of a group of which two pools have a copy: whose count, and who is told what while it moves."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest

from blockstore import api
from blockstore.group import chain_digest
from blockyard.daemon.directory import YardDirectory
from blockyard.errors import InUse, Unavailable
from blockyard.model import NewGroup, VolumeSpec
from blockyard.model.attachments import Attachment, AttachRequest
from blockyard.rpc import calls
from blockyard.worker.attachments import FIRST_LOGIN_SECONDS
from tests.blockyard.support import HOST_A, HOST_B, FakeSession, MemoryYard, run
from tests.blockyard.test_moves import depart, put_copy

MIB = 1 << 20
ASK = AttachRequest()


async def attached_group(yard: MemoryYard) -> Attachment:
    """Group ``db`` in pool-0, which host A has."""
    asked = NewGroup(name="db", volumes=(VolumeSpec(size=MIB),), labels={"blockyard.project": "shop"})
    await yard.operations.create_group(asked)
    return (await yard.operations.attach("db", HOST_A, ASK)).attachment


def test_an_attachment_its_secret_and_the_labels_move_with_the_group() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            before = await attached_group(yard)
            secret = (await yard.operations.attach("db", HOST_A, ASK)).chap
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            await put_copy(yard, "pool-1", generation=2)
            assert await yard.operations.moves.settle()
            again = await yard.operations.attach("db", HOST_A, ASK)
            assert (again.chap, again.attachment.generation) == (secret, before.generation)
            assert await yard.operations.labels_of("db") == {"blockyard.project": "shop"}
            with pytest.raises(InUse, match=HOST_A) as refused:
                await yard.operations.attach("db", HOST_B, ASK)
            assert refused.value.details["alive"] is True
            taken = await yard.operations.attach("db", HOST_B, AttachRequest(take_over=True))
            assert taken.attachment.generation == before.generation + 1

    run(scenario())


def test_an_attachment_is_listed_once_wherever_its_group_is_and_between_two_pools() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await attached_group(yard)
            listed = yard.operations.list_attachments
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            assert [(each.group, each.host) for each in await listed(host=HOST_A)] == [("db", HOST_A)]
            with pytest.raises(Unavailable, match="is moving"):
                await yard.operations.attach("db", HOST_A, ASK)
            await put_copy(yard, "pool-1", generation=2)
            assert [(each.group, each.host) for each in await listed()] == [("db", HOST_A)]
            directory = YardDirectory(yard.pools)
            assert directory.visible(HOST_A, "192.0.2.7") == [yard.pool.groups["db"].iqn]
            await yard.operations.attach("db", HOST_B, AttachRequest(take_over=True))
            assert [(each.group, each.host) for each in await listed()] == [("db", HOST_B)]
            assert directory.visible(HOST_A, "192.0.2.7") == []

    run(scenario())


def test_a_group_that_moves_while_attachments_are_listed_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await attached_group(yard)
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            source, to = yard.pools["pool-0"], yard.pools["pool-1"]
            leave, arrive = source.call, to.call
            early = asyncio.Event()
            answers: list[calls.Attachments] = []

            async def answer_before_it_comes(call: Any, *, seconds: float | None = 60) -> Any:
                answers.append(await arrive(call, seconds=seconds))
                early.set()
                return answers[-1]

            async def answer_after_it_has_gone(call: Any, *, seconds: float | None = 60) -> Any:
                await early.wait()
                if "db" in source.groups:
                    await put_copy(yard, "pool-1", generation=2)
                    await leave(calls.ForgetGroup(group=source.groups["db"].uuid))
                answers.append(await leave(call, seconds=seconds))
                return answers[-1]

            monkeypatch.setattr(source, "call", answer_after_it_has_gone)
            monkeypatch.setattr(to, "call", answer_before_it_comes)
            assert [each.host for each in await yard.operations.list_attachments()] == [HOST_A]
            assert [len(answer.attachments) for answer in answers[:2]] == [0, 0]

    run(scenario())


@pytest.mark.parametrize("first", ["leave", "attach"])
def test_a_group_that_leaves_while_it_is_attached_is_not_served(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            before = await attached_group(yard)
            group = yard.worker.pool.groups["db"]
            update = group.update

            def racing(**changes: Any) -> Future[api.GroupRecord]:
                future = update(**changes) if first == "attach" else None
                group.leave(uuid4(), "last", chain_digest(()))
                return future or update(**changes)

            monkeypatch.setattr(group, "update", racing)
            taking = yard.operations.attach("db", HOST_B, AttachRequest(take_over=True))
            if first == "leave":
                with pytest.raises(Unavailable, match="moving to another pool"):
                    await taking
                assert [each.host for each in group.record.attachments] == [HOST_A]
            else:
                assert (await taking).attachment.generation == before.generation + 1
                assert yard.worker.targets.stood_down == [before.target]

    run(scenario())


def test_hosts_whose_sessions_a_move_ended_have_a_minute_to_log_in_again() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            before = await attached_group(yard)
            yard.worker.targets.open.append(FakeSession(before.target, initiator=HOST_A))
            yard.worker.targets.heard[HOST_A] = time.time()
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            verbs = yard.worker._verbs
            assert verbs is not None
            late = 1000.0
            verbs._attachments._now = lambda: time.time() + late
            [shown] = await yard.operations.list_attachments()
            assert (shown.alive, shown.sessions) == (False, 0)
            assert await yard.operations.moves.settle()  # it stays
            [shown] = await yard.operations.list_attachments()
            assert shown.alive
            late += FIRST_LOGIN_SECONDS
            [shown] = await yard.operations.list_attachments()
            assert not shown.alive

    run(scenario())
