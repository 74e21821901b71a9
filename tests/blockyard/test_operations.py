"""The verbs over pools in memory: idempotence, refusals, and which pool takes what."""

from __future__ import annotations

import pytest

from blockstore import api
from blockyard.errors import ANSWERS, AlreadyExists, InUse, Invalid, NotFound, OutOfSpace, Unavailable
from blockyard.model import (
    Auth,
    Cache,
    ChapCredentials,
    ClientSpec,
    CloneRequest,
    GroupChange,
    NewGroup,
    RollbackRequest,
    VolumeSpec,
)
from blockyard.rpc.calls import OpenFailed
from blockyard.worker.records import STORE_ERRORS
from tests.blockyard.support import HOST_A, HOST_B, SECRET, FakeSession, MemoryYard, run

MIB = 1 << 20


def asked(name: str = "db", size: int = MIB, *clients: ClientSpec, **more: object) -> NewGroup:
    return NewGroup.model_validate({"name": name, "volumes": [{"size": size}], "clients": clients, **more})


def with_chap(secret: str = SECRET) -> ClientSpec:
    return ClientSpec(initiator=HOST_A, chap=ChapCredentials(user="alice", secret=secret))


def test_a_new_group_is_a_target_with_one_volume() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            created = await yard.operations.create_group(asked())
            group = created.group
            assert created.created
            assert [(volume.lun, volume.size) for volume in group.volumes] == [(0, MIB)]
            assert group.iqn == f"iqn.2026-01.io.blockyard:{yard.worker.pool.uuid.hex[:8]}:db"
            assert group.portals == ("192.0.2.1:3260",)
            assert list(yard.worker.targets.shown) == [group.iqn]
            assert list(yard.pool.groups) == ["db"]

    run(scenario())


def test_creating_a_group_again_changes_nothing_unless_it_differs() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            first = await verbs.create_group(asked("db", MIB, with_chap()))
            again = await verbs.create_group(asked("db", MIB, with_chap()))
            assert (again.created, again.group.uuid) == (False, first.group.uuid)
            with pytest.raises(AlreadyExists, match="volumes of"):
                await verbs.create_group(asked("db", 2 * MIB, with_chap()))
            with pytest.raises(AlreadyExists, match="clients or secrets"):
                await verbs.create_group(asked("db", MIB, with_chap("another secret 1")))
            with pytest.raises(AlreadyExists, match="cache writeback instead of writethrough"):
                await verbs.create_group(asked("db", MIB, with_chap(), cache="writethrough"))
            with pytest.raises(AlreadyExists, match="IQN"):
                await verbs.create_group(asked("db", MIB, with_chap(), iqn="iqn.2026-01.io.example:other"))

    run(scenario())


def test_an_iqn_of_another_group_is_refused() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard.operations.create_group(asked("a", iqn="iqn.2026-01.io.example:x"))
            with pytest.raises(AlreadyExists, match="belongs to group a"):
                await yard.operations.create_group(asked("b", iqn="iqn.2026-01.io.example:x"))

    run(scenario())


def test_new_groups_go_to_the_pool_that_is_filled_least() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            pools = [(await yard.operations.create_group(asked(name))).group.pool for name in "abcd"]
            assert pools == ["pool-0", "pool-1", "pool-0", "pool-1"]
            assert (await yard.operations.create_group(asked("b"))).group.pool == "pool-1"

    run(scenario())


def test_a_name_is_not_given_away_while_a_pool_may_hold_it() -> None:
    async def scenario() -> None:
        yard = MemoryYard("pool-0", "pool-1")
        yard.workers["pool-1"].failing = OpenFailed(reason="damaged", retry=False)
        async with yard:
            with pytest.raises(Unavailable, match=r"whether db exists is not known: pool pool-1 is failed \(damaged\)"):
                await yard.operations.create_group(asked())

    run(scenario())


def test_what_does_not_exist_is_named() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            await verbs.create_group(asked())
            with pytest.raises(NotFound, match="no group is named nope"):
                await verbs.show_group("nope")
            with pytest.raises(NotFound, match="no snapshot nope"):
                await verbs.delete_snapshot("db", "nope")
            with pytest.raises(NotFound, match="no LUN 7; it has: 0"):
                await verbs.resize_volume("db", 7, MIB)
            with pytest.raises(NotFound, match="no client iqn"):
                await verbs.deny_client("db", HOST_A)
            with pytest.raises(NotFound, match="no pool is named p; there are: pool-0"):
                await verbs.show_pool("p")

    run(scenario())


def test_a_group_with_sessions_is_deleted_only_by_force() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            iqn = (await yard.operations.create_group(asked())).group.iqn
            yard.worker.targets.open.append(FakeSession(iqn))
            with pytest.raises(InUse, match="1 open session"):
                await yard.operations.delete_group("db", force=False)
            assert iqn in yard.worker.targets.shown
            await yard.operations.delete_group("db", force=True)
            assert (yard.worker.targets.removed, yard.pool.groups) == ([iqn], {})

    run(scenario())


def test_rollback_keeps_what_was_there_and_is_refused_under_sessions() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            iqn = (await verbs.create_group(asked())).group.iqn
            await verbs.create_snapshot("db", "good")
            yard.worker.targets.open.append(FakeSession(iqn))
            with pytest.raises(InUse, match="corrupt"):
                await verbs.rollback_group("db", RollbackRequest(snapshot="good"))
            automatic = await verbs.rollback_group("db", RollbackRequest(snapshot="good", force=True))
            assert automatic.name.startswith("before-rollback-")
            assert [snapshot.name for snapshot in await verbs.list_snapshots("db")] == ["good", automatic.name]
            assert yard.worker.targets.open == []
            assert iqn in yard.worker.targets.shown

    run(scenario())


def test_a_clone_has_its_parents_clients_and_cloning_again_changes_nothing() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            await verbs.create_group(asked("db", MIB, with_chap()))
            await verbs.create_snapshot("db", "good")
            request = CloneRequest(snapshot="good", name="copy")
            clone = await verbs.clone_group("db", request)
            assert clone.group.origin == "db@good"
            assert [client.auth for client in clone.group.clients] == [Auth.CHAP]
            assert not (await verbs.clone_group("db", request)).created
            with pytest.raises(AlreadyExists, match="other clients"):
                await verbs.clone_group("db", request.model_copy(update={"clients": (ClientSpec(initiator="any"),)}))
            with pytest.raises(AlreadyExists, match="no clone of db@good"):
                await verbs.clone_group("db", CloneRequest(snapshot="good", name="db"))

    run(scenario())


def test_snapshots_are_moments_so_a_name_is_used_once() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            await verbs.create_group(asked())
            await verbs.create_snapshot("db", "good")
            with pytest.raises(AlreadyExists):
                await verbs.create_snapshot("db", "good")
            with pytest.raises(Invalid, match="before-rollback-"):
                await verbs.create_snapshot("db", "before-rollback-x")
            await verbs.delete_snapshot("db", "good")
            assert await verbs.list_snapshots("db") == ()

    run(scenario())


def test_volumes_are_added_grown_and_removed() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            iqn = (await verbs.create_group(asked())).group.iqn
            log = await verbs.add_volume("db", VolumeSpec(size=MIB, name="log"))
            assert await verbs.add_volume("db", VolumeSpec(size=MIB, name="log")) == log
            with pytest.raises(AlreadyExists, match="log exists"):
                await verbs.add_volume("db", VolumeSpec(size=2 * MIB, name="log"))
            assert (await verbs.resize_volume("db", 1, 2 * MIB)).size == 2 * MIB
            assert (await verbs.resize_volume("db", 1, 2 * MIB)).size == 2 * MIB
            with pytest.raises(Invalid, match="only grow"):
                await verbs.resize_volume("db", 1, MIB)
            yard.worker.targets.open.append(FakeSession(iqn))
            with pytest.raises(InUse, match="removing LUN 1"):
                await verbs.remove_volume("db", 1, force=False)
            await verbs.remove_volume("db", 1, force=True)
            assert (await verbs.add_volume("db", VolumeSpec(size=MIB))).lun == 2  # numbers are never used again

    run(scenario())


def test_clients_are_replaced_by_name_and_secrets_are_not_told() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            await verbs.create_group(asked())
            await verbs.allow_client("db", ClientSpec(initiator=HOST_B))
            await verbs.allow_client("db", with_chap())
            await verbs.allow_client("db", with_chap())
            clients = {client.initiator: client for client in await verbs.list_clients("db")}
            assert (clients[HOST_A].auth, clients[HOST_A].chap_user) == (Auth.CHAP, "alice")
            assert SECRET not in (await verbs.show_group("db")).model_dump_json()
            await verbs.allow_client("db", ClientSpec(initiator=HOST_A))
            assert {client.auth for client in await verbs.list_clients("db")} == {Auth.NONE}
            await verbs.deny_client("db", HOST_A)
            assert [client.initiator for client in await verbs.list_clients("db")] == [HOST_B]
            with pytest.raises(Invalid, match="named twice"):
                await verbs.create_group(asked("x", MIB, with_chap(), with_chap()))

    run(scenario())


def test_cache_policy_changes_in_place() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await yard.operations.create_group(asked())
            assert (
                await yard.operations.set_group("db", GroupChange(cache=Cache.WRITETHROUGH))
            ).cache is Cache.WRITETHROUGH

    run(scenario())


def test_sessions_are_counted_and_listed_by_group() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            verbs = yard.operations
            iqn = (await verbs.create_group(asked("a"))).group.iqn
            await verbs.create_group(asked("b"))
            yard.worker.targets.open.append(FakeSession(iqn))
            assert [session.group for session in await verbs.list_sessions()] == ["a"]
            assert await verbs.list_sessions("b") == ()
            assert [group.sessions for group in (await verbs.list_groups()).groups] == [1, 0]
            assert (await verbs.show_pool("pool-0")).sessions == 1

    run(scenario())


def test_health_is_degraded_when_a_pool_does_not_serve() -> None:
    async def scenario() -> None:
        yard = MemoryYard("pool-0", "pool-1")
        async with yard:
            assert (await yard.operations.health()).status == "ok"
            yard.workers["pool-1"].silent = True
            yard.workers["pool-1"].die()
            while yard.pools["pool-1"].serving:
                await yard.pools["pool-1"].wait_settled(0.001)
            health = await yard.operations.health()
            assert (health.status, [pool.state for pool in health.pools]) == ("degraded", ["serving", "restarting"])

    run(scenario())


def test_a_sweep_tells_what_came_back() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            assert (await yard.operations.sweep_pool("pool-0")).freed == 0

    run(scenario())


def test_the_stores_refusals_arrive_as_the_products() -> None:
    def subclasses(kind: type) -> set[type]:
        return {each for child in kind.__subclasses__() for each in {child} | subclasses(child)}

    assert {kind for kind in subclasses(api.StoreError) if kind.__module__ == "blockstore.api"} <= set(STORE_ERRORS)
    assert set(STORE_ERRORS.values()) <= set(ANSWERS)
    assert STORE_ERRORS[api.OutOfSpace] is OutOfSpace
