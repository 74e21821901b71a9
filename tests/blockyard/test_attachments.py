"""Attachments in the product: who gets a group, who is refused and why, what is kept. Pools in memory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from blockstore import api
from blockyard.daemon.directory import YardDirectory
from blockyard.errors import FailStopped, InUse, Invalid, NotFound, Unavailable, error_from
from blockyard.model import ClientSpec, CloneRequest, GroupChange, NewGroup, RollbackRequest, VolumeSpec
from blockyard.model.attachments import Attached, AttachMode, AttachRequest
from blockyard.worker.attachments import FIRST_LOGIN_SECONDS, SECRET_LENGTH
from pdus.iscsi.login import LoginStatus
from target.front_door import Route
from tests.blockyard.support import HOST_A, HOST_B, FakeSession, MemoryYard, run

MIB = 1 << 20
HOST_C = "iqn.2004-10.com.example:host-c"
ASK = AttachRequest()
TAKE = AttachRequest(take_over=True)
WRITERS = AttachRequest(mode=AttachMode.MULTI_WRITER)
READERS = AttachRequest(mode=AttachMode.READ_ONLY_MANY)


def with_group(test: Callable[[MemoryYard], Awaitable[None]]) -> None:
    async def prepared() -> None:
        async with MemoryYard() as yard:
            await yard.operations.create_group(NewGroup(name="db", volumes=(VolumeSpec(size=MIB),)))
            await test(yard)

    run(prepared())


def iqn_of(yard: MemoryYard) -> str:
    return yard.pool.groups["db"].iqn


def log_in(yard: MemoryYard, host: str) -> None:
    yard.worker.targets.open.append(FakeSession(iqn_of(yard), initiator=host))
    yard.worker.targets.heard[host] = time.time()


async def hosts(yard: MemoryYard) -> list[str]:
    return [each.host for each in await yard.operations.list_attachments("db")]


def test_attaching_tells_all_that_a_login_needs() -> None:
    async def test(yard: MemoryYard) -> None:
        attached = await yard.operations.attach("db", HOST_A, ASK)
        attachment = attached.attachment
        assert (attachment.group, attachment.host, attachment.generation) == ("db", HOST_A, 1)
        assert attachment.mode is AttachMode.SINGLE_WRITER
        assert attachment.target == iqn_of(yard)
        assert attachment.portals == ("192.0.2.1:3260",)
        assert [volume.size for volume in attachment.volumes] == [MIB]
        assert attachment.chap_user == attached.chap.user == HOST_A
        assert len(attached.chap.secret) == SECRET_LENGTH
        assert attached.chap.secret not in repr(attached)

    with_group(test)


def test_the_same_host_gets_the_same_secret_and_nobody_is_fenced() -> None:
    async def test(yard: MemoryYard) -> None:
        first = await yard.operations.attach("db", HOST_A, ASK)
        log_in(yard, HOST_A)
        fences = list(yard.worker.targets.fences)
        for asked in (ASK, TAKE):
            again = await yard.operations.attach("db", HOST_A.upper().replace("IQN", "iqn"), asked)
            assert again.chap == first.chap
            assert again.attachment.generation == first.attachment.generation
        assert yard.worker.targets.fences == fences
        assert len(yard.worker.targets.open) == 1

    with_group(test)


def test_another_host_is_told_who_has_the_group_and_whether_it_is_alive() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        log_in(yard, HOST_A)
        with pytest.raises(InUse, match=f"attached to {HOST_A} .*which is alive") as refused:
            await yard.operations.attach("db", HOST_B, ASK)
        assert refused.value.details["alive"] is True
        assert refused.value.details["holder"] == HOST_A
        yard.worker.targets.open.clear()
        yard.worker.targets.heard[HOST_A] = time.time() - 312
        with pytest.raises(InUse, match=r"not alive: last seen .*, 31[23] s ago") as refused:
            await yard.operations.attach("db", HOST_B, ASK)
        assert refused.value.details["alive"] is False
        assert await hosts(yard) == [HOST_A]

    with_group(test)


def test_a_take_over_makes_a_new_generation_and_fences_everybody_else() -> None:
    async def test(yard: MemoryYard) -> None:
        first = await yard.operations.attach("db", HOST_A, ASK)
        log_in(yard, HOST_A)
        second = await yard.operations.attach("db", HOST_B, TAKE)
        assert second.attachment.generation > first.attachment.generation
        assert second.chap.secret != first.chap.secret
        assert yard.worker.targets.fences[-1] == (iqn_of(yard), ())
        assert yard.worker.targets.open == []
        assert await hosts(yard) == [HOST_B]
        third = await yard.operations.attach("db", HOST_A, TAKE)
        assert third.chap.secret not in (first.chap.secret, second.chap.secret)

    with_group(test)


def test_the_fence_stands_before_the_record_changes_and_until_it_is_durable() -> None:
    """The order that fencing promises: revoke, journal and flush, show, drop, settle, answer."""

    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        group, targets, pool = yard.worker.pool.groups["db"], yard.worker.targets, yard.worker.pool
        seen: list[str] = []

        @contextmanager
        def fenced(iqn: str, keep: object):  # type: ignore[no-untyped-def]
            seen.append(f"fence up, {group.record.attachments[0].host} in the record")
            yield
            seen.append(f"fence down, {group.record.attachments[0].host} in the record")

        barrier = pool.barrier
        targets.fenced = fenced  # type: ignore[method-assign]
        pool.barrier = lambda done: (seen.append("settled"), barrier(done))[1]  # type: ignore[method-assign]
        put = targets.put
        targets.put = lambda shown: (seen.append("shown"), put(shown))[1]  # type: ignore[method-assign]
        await yard.operations.attach("db", HOST_B, TAKE)
        assert seen == [
            f"fence up, {HOST_A} in the record",
            "shown",
            f"fence down, {HOST_B} in the record",
            "settled",
        ]

    with_group(test)


@pytest.mark.parametrize("asked", [WRITERS, READERS], ids=lambda asked: asked.mode.value)
def test_modes_for_many_admit_many_and_fence_nobody(asked: AttachRequest) -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, asked)
        log_in(yard, HOST_A)
        await yard.operations.attach("db", HOST_B, asked)
        assert yard.worker.targets.fences[-1] == (iqn_of(yard), (HOST_A,))
        assert len(yard.worker.targets.open) == 1
        assert await hosts(yard) == [HOST_A, HOST_B]
        generations = [each.generation for each in await yard.operations.list_attachments("db")]
        assert generations == [1, 2]

    with_group(test)


@pytest.mark.parametrize(
    ("first", "second"), [(ASK, WRITERS), (ASK, READERS), (WRITERS, ASK), (READERS, WRITERS), (WRITERS, READERS)]
)
def test_modes_that_exclude_each_other_are_refused_and_taken_over(first: AttachRequest, second: AttachRequest) -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, first)
        with pytest.raises(InUse):
            await yard.operations.attach("db", HOST_B, second)
        await yard.operations.attach("db", HOST_B, second.model_copy(update={"take_over": True}))
        assert await hosts(yard) == [HOST_B]

    with_group(test)


def test_another_mode_for_the_same_host_needs_a_release_first() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        with pytest.raises(InUse, match="release it first"):
            await yard.operations.attach("db", HOST_A, READERS)
        await yard.operations.release("db", HOST_A)
        assert (await yard.operations.attach("db", HOST_A, READERS)).attachment.generation == 2

    with_group(test)


def test_a_release_ends_the_sessions_and_may_be_repeated() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        log_in(yard, HOST_A)
        await yard.operations.release("db", HOST_B)
        assert len(yard.worker.targets.open) == 1
        for _ in range(2):
            await yard.operations.release("db", HOST_A)
        assert yard.worker.targets.open == []
        assert await hosts(yard) == []
        with pytest.raises(NotFound):
            await yard.operations.release("nothing", HOST_A)

    with_group(test)


def test_a_group_that_clients_use_is_not_attached_under_them() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.allow_client("db", ClientSpec(initiator="any"))
        log_in(yard, HOST_C)
        with pytest.raises(InUse, match=f"open session.*{HOST_C}") as refused:
            await yard.operations.attach("db", HOST_A, ASK)
        assert refused.value.details["alive"] is True
        await yard.operations.attach("db", HOST_A, TAKE)
        assert yard.worker.targets.open == []

    with_group(test)


def test_a_host_counts_as_alive_for_a_minute_before_its_first_login(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(yard: MemoryYard) -> None:
        attached = await yard.operations.attach("db", HOST_A, ASK)
        assert attached.attachment.alive
        assert attached.attachment.seen is None
        [verbs] = [yard.worker._verbs]
        assert verbs is not None
        verbs._attachments._now = lambda: time.time() + FIRST_LOGIN_SECONDS
        [shown] = await yard.operations.list_attachments("db")
        assert not shown.alive
        with pytest.raises(InUse, match="has not logged in since"):
            await yard.operations.attach("db", HOST_B, ASK)

    with_group(test)


def test_attachments_survive_the_worker_and_its_restart() -> None:
    async def test(yard: MemoryYard) -> None:
        first = await yard.operations.attach("db", HOST_A, ASK)
        yard.worker.die()
        with pytest.raises(Unavailable):
            await yard.operations.attach("db", HOST_A, ASK)
        await yard.pool.wait_settled(5)
        assert (await yard.operations.attach("db", HOST_A, ASK)).chap == first.chap
        with pytest.raises(InUse):
            await yard.operations.attach("db", HOST_B, ASK)

    with_group(test)


def test_attachments_are_listed_by_group_and_by_host() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.create_group(NewGroup(name="web", volumes=(VolumeSpec(size=MIB),)))
        await yard.operations.attach("db", HOST_A, ASK)
        await yard.operations.attach("web", HOST_B, ASK)
        listed = yard.operations.list_attachments
        assert [(each.group, each.host) for each in await listed()] == [("db", HOST_A), ("web", HOST_B)]
        assert [each.group for each in await listed(host=HOST_B)] == ["web"]
        assert [each.host for each in await listed("db")] == [HOST_A]
        assert await listed("db", HOST_B) == ()

    with_group(test)


def test_the_front_door_lets_only_attached_hosts_in() -> None:
    async def test(yard: MemoryYard) -> None:
        directory = YardDirectory(yard.pools)
        await yard.operations.allow_client("db", ClientSpec(initiator="any"))
        iqn = iqn_of(yard)
        assert isinstance(directory.route(iqn, HOST_B, "192.0.2.7"), Route)
        await yard.operations.attach("db", HOST_A, ASK)
        assert directory.route(iqn, HOST_B, "192.0.2.7") is LoginStatus.AUTHORIZATION_FAILURE
        assert isinstance(directory.route(iqn, HOST_A.upper(), "192.0.2.7"), Route)
        assert directory.visible(HOST_B, "192.0.2.7") == []
        await yard.operations.release("db", HOST_A)
        assert directory.visible(HOST_B, "192.0.2.7") == [iqn]

    with_group(test)


def test_an_attached_group_is_deleted_only_by_force() -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        with pytest.raises(InUse, match=f"attached to {HOST_A}"):
            await yard.operations.delete_group("db", force=False)
        await yard.operations.delete_group("db", force=True)

    with_group(test)


def test_an_attached_group_is_rolled_back_and_loses_volumes_only_by_force() -> None:
    """Its host may be reconnecting, with a file system mounted: no session does not mean that nobody uses it."""

    async def test(yard: MemoryYard) -> None:
        await yard.operations.create_snapshot("db", "s")
        await yard.operations.attach("db", HOST_A, ASK)
        with pytest.raises(InUse, match=f"attached to {HOST_A}: rolling back"):
            await yard.operations.rollback_group("db", RollbackRequest(snapshot="s"))
        with pytest.raises(InUse, match=f"attached to {HOST_A}: removing LUN 0"):
            await yard.operations.remove_volume("db", 0, force=False)
        await yard.operations.rollback_group("db", RollbackRequest(snapshot="s", force=True))
        assert await hosts(yard) == [HOST_A]
        await yard.operations.release("db", HOST_A)
        await yard.operations.remove_volume("db", 0, force=False)

    with_group(test)


@pytest.mark.parametrize("host", ["any", "", "host-a", "iqn.2026-01.example:ä"])
def test_only_one_initiator_by_its_name_can_be_a_host(host: str) -> None:
    async def test(yard: MemoryYard) -> None:
        with pytest.raises(Invalid):
            await yard.operations.attach("db", host, ASK)

    with_group(test)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_shown_changed_and_part_of_what_a_group_is() -> None:
    async def test(yard: MemoryYard) -> None:
        asked = NewGroup(name="web", volumes=(VolumeSpec(size=MIB),), labels={"a": "1"})
        assert (await yard.operations.create_group(asked)).group.labels == {"a": "1"}
        assert not (await yard.operations.create_group(asked)).created
        changed = await yard.operations.set_group("web", GroupChange(labels={"b": "2"}))
        assert changed.labels == {"b": "2"}
        await yard.operations.create_snapshot("web", "s")
        clone = CloneRequest(snapshot="s", name="copy", labels={"c": "3"})
        assert (await yard.operations.clone_group("web", clone)).group.labels == {"c": "3"}

    with_group(test)


@pytest.mark.parametrize(
    "labels",
    [{"k" * 256: "v"}, {"k": "v" * 256}, {"": "v"}, {"k": "a\nb"}, {str(number): "" for number in range(33)}],
)
def test_labels_are_bounded(labels: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        GroupChange(labels=labels)


def test_details_of_an_error_travel_with_it() -> None:
    error = error_from("in_use", "taken", {"alive": False})
    assert isinstance(error, InUse)
    assert error.details == {"alive": False}


def test_what_the_store_cannot_promise_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(yard: MemoryYard) -> None:
        await yard.operations.attach("db", HOST_A, ASK)
        log_in(yard, HOST_A)

        def undecided(*_: object, **__: object) -> Future[object]:
            future: Future[object] = Future()
            future.set_exception(api.Undecided("the append failed"))
            return future

        with monkeypatch.context() as patch:
            patch.setattr(yard.worker.pool.groups["db"], "update", undecided)
            with pytest.raises(FailStopped):
                await yard.operations.attach("db", HOST_B, TAKE)
        assert yard.worker.targets.open == [], "the holder has to log in again, by what recovery finds"
        assert await hosts(yard) == [HOST_A]
        assert (await yard.operations.attach("db", HOST_B, TAKE)).attachment.generation == 2

    with_group(test)


def test_no_listing_holds_a_secret() -> None:
    async def test(yard: MemoryYard) -> None:
        attached: Attached = await yard.operations.attach("db", HOST_A, ASK)
        secret = attached.chap.secret
        group = await yard.operations.show_group("db")
        listed = await yard.operations.list_attachments()
        assert secret not in group.model_dump_json() + "".join(each.model_dump_json() for each in listed)

    with_group(test)
