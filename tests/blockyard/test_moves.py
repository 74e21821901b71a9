"""Copies of a group in two pools: which one is served, and what becomes of what an interrupted move left."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from blockstore import api
from blockstore.catalog import GroupEntry
from blockstore.group import Plan, chain_digest
from blockstore.memory import MemoryPool
from blockstore.records import CreateMap, Edit
from blockyard.cli import group_move
from blockyard.daemon.directory import YardDirectory
from blockyard.errors import InUse, Invalid, NotFound, Unavailable
from blockyard.group_move import GroupMove
from blockyard.model import ClientSpec, Group, Move, MovePhase, MoveRequest, NewGroup, PoolState, VolumeSpec
from blockyard.model.moves import owner
from blockyard.rpc import calls
from pdus.iscsi.login import LoginStatus
from target.front_door import Route
from tests.blockyard.support import HOST_A, MemoryYard, run
from tests.blockyard.test_pool_worker import until

MIB = 1 << 20
ADDRESS = "192.0.2.7"


def group(generation: int, leaving: UUID | None = None) -> Group:
    return Group(
        name="db",
        uuid=UUID(int=1),
        iqn="iqn.2026-01.test:db",
        pool="",
        generation=generation,
        leaving=leaving,
        state=PoolState.SERVING,
        created=0,
        cache="writeback",  # type: ignore[arg-type]
        volumes=(),
        snapshots=(),
        snapshot_count=0,
        clients=(),
        sessions=0,
    )


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        ([], None),
        ([group(1)], 0),
        ([group(1, UUID(int=9))], None),
        ([group(1, UUID(int=9)), group(2)], 1),
        ([group(3), group(2)], 0),
        ([group(2), group(2)], None),
        ([group(1), group(2, UUID(int=9))], None),
        ([group(2, UUID(int=9)), group(2)], None),
    ],
)
def test_at_most_one_copy_is_the_group_and_never_one_that_left(copies: list[Group], expected: int | None) -> None:
    found = owner(list(enumerate(copies)))
    assert (None if found is None else found[0]) == expected


async def yard_with_group(yard: MemoryYard) -> str:
    """Group ``db`` in pool-0; its IQN."""
    asked = NewGroup(name="db", volumes=(VolumeSpec(size=MIB),), clients=(ClientSpec(initiator=HOST_A),))
    return (await yard.operations.create_group(asked)).group.iqn


def stored(yard: MemoryYard, pool: str) -> api.GroupRecord | None:
    there = yard.workers[pool].pool.groups.get("db")
    return None if there is None else there.record


async def depart(yard: MemoryYard, to: UUID) -> None:
    """``db`` leaves pool-0, and its worker dies before it can say so."""
    await asyncio.wrap_future(yard.worker.pool.groups["db"].leave(to, "last", chain_digest(())))
    await restart(yard, "pool-0")


async def restart(yard: MemoryYard, pool: str) -> None:
    yard.workers[pool].die()
    await until(yard.pools[pool], PoolState.RESTARTING)
    await yard.pools[pool].wait_settled(5)


async def put_copy(yard: MemoryYard, pool: str, **changes: object) -> None:
    """Another copy of ``db``, as pool-0 has it but for ``changes``."""
    there: MemoryPool = yard.workers[pool].pool
    record = stored(yard, "pool-0")
    assert record is not None
    copy = replace(record, leaving=None, **changes)  # type: ignore[arg-type]

    def plan() -> Plan[None]:
        maps = {volume.lun: there.next_map + at for at, volume in enumerate(copy.volumes)}
        edits: list[Edit] = [CreateMap(maps[volume.lun], volume.size) for volume in copy.volumes]
        return Plan((*edits, GroupEntry(copy, maps).put()), lambda: None)

    await asyncio.wrap_future(there.control(plan))
    await restart(yard, pool)


def test_a_group_that_left_and_has_not_arrived_stays_two_generations_on() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            directory = YardDirectory(yard.pools)
            assert directory.route(iqn, HOST_A, ADDRESS) is LoginStatus.SERVICE_UNAVAILABLE
            assert (await yard.operations.show_group("db")).state is PoolState.MOVING
            assert await yard.operations.moves.settle()
            shown = await yard.operations.show_group("db")
            assert (shown.pool, shown.generation, shown.state) == ("pool-0", 3, PoolState.SERVING)
            assert isinstance(directory.route(iqn, HOST_A, ADDRESS), Route)

    run(scenario())


def test_a_group_that_left_and_has_arrived_is_deleted_where_it_was() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            await put_copy(yard, "pool-1", generation=2)
            route = YardDirectory(yard.pools).route(iqn, HOST_A, ADDRESS)
            assert isinstance(route, Route)
            assert route.key == (yard.pools["pool-1"], iqn)
            assert YardDirectory(yard.pools).visible(HOST_A, ADDRESS) == [iqn]
            assert [(each.pool, each.generation) for each in (await yard.operations.list_groups()).groups] == [
                ("pool-1", 2)
            ]
            assert await yard.operations.moves.settle()
            assert stored(yard, "pool-0") is None
            assert stored(yard, "pool-1") is not None
            assert "db" not in yard.pool.groups

    run(scenario())


def test_a_copy_that_left_is_kept_unless_the_other_pool_has_a_newer_one() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard_with_group(yard)
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            await put_copy(yard, "pool-1")
            assert await yard.operations.moves.settle()
            kept = stored(yard, "pool-0")
            assert kept is not None
            assert (kept.generation, kept.leaving) == (3, None)
            assert (await yard.operations.show_group("db")).pool == "pool-0"

    run(scenario())


def test_nothing_is_decided_before_the_other_pool_has_reported_again() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            other = yard.workers["pool-1"]
            other.silent = True
            other.die()
            await until(yard.pools["pool-1"], PoolState.RESTARTING)
            await depart(yard, other.pool.uuid)
            await yard.operations.moves.settle()
            left = stored(yard, "pool-0")
            assert left is not None
            assert left.leaving == other.pool.uuid
            assert YardDirectory(yard.pools).route(iqn, HOST_A, ADDRESS) is LoginStatus.SERVICE_UNAVAILABLE
            other.open()
            await yard.pools["pool-1"].wait_settled(5)
            await yard.operations.moves.settle()
            assert stored(yard, "pool-0") == replace(left, leaving=None, generation=3)

    run(scenario())


def test_nothing_is_decided_while_the_other_pool_is_fail_stopped() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard_with_group(yard)
            other = yard.workers["pool-1"].pool
            await depart(yard, other.uuid)
            statistics = other.statistics
            other.statistics = lambda: replace(statistics(), state="fail-stopped")  # type: ignore[method-assign]
            assert not await yard.operations.moves.settle()  # to be tried again
            left = stored(yard, "pool-0")
            assert left is not None
            assert left.leaving is not None

    run(scenario())


def test_a_pool_that_is_lost_for_good_can_be_given_up_by_force() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard_with_group(yard)
            await depart(yard, uuid4())
            assert await yard.operations.moves.settle()
            (sentence,) = (await yard.operations.list_groups()).unavailable
            assert "it is served when the pool that it left for has reported" in sentence
            with pytest.raises(Unavailable, match="is moving from pool pool-0"):
                await yard.operations.delete_group("db", force=True)
            lines = await yard.operations.move_group("db", MoveRequest(to="pool-0", force=True))
            (line,) = [json.loads(line) async for line in lines]
            assert (line["moved"]["to"], line["moved"]["generation"], line["moved"]["moved"]) == ("pool-0", 3, False)
            assert (await yard.operations.show_group("db")).state is PoolState.SERVING

    run(scenario())


def test_an_older_copy_is_not_served_not_deleted_and_named() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            await put_copy(yard, "pool-1", generation=2)
            assert await yard.operations.moves.settle()
            assert yard.worker.targets.stood_down == [iqn]
            assert stored(yard, "pool-0") is not None
            assert (await yard.operations.show_group("db")).pool == "pool-1"
            assert (await yard.operations.list_groups()).unavailable == (
                "pool pool-0 has an older copy of group db, which is served by pool-1",
            )
            await yard.operations.delete_group("db", force=False)
            assert (await yard.operations.show_group("db")).pool == "pool-0"
            assert await yard.operations.moves.settle()
            assert yard.worker.targets.stood_down == []

    run(scenario())


def test_of_two_copies_of_one_generation_neither_is_served() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            await put_copy(yard, "pool-1")
            await yard.operations.moves.settle()
            assert YardDirectory(yard.pools).route(iqn, HOST_A, ADDRESS) is LoginStatus.SERVICE_UNAVAILABLE
            assert [worker.targets.stood_down for worker in yard.workers.values()] == [[iqn], [iqn]]
            (sentence,) = (await yard.operations.list_groups()).unavailable
            assert sentence == "group db is in pools pool-0 and pool-1 with the same generation: none of them serves it"

    run(scenario())


def test_a_group_that_left_is_stood_down_when_its_worker_starts() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            iqn = await yard_with_group(yard)
            await depart(yard, yard.workers["pool-1"].pool.uuid)
            assert yard.worker.targets.stood_down == [iqn]
            with pytest.raises(Unavailable, match="moving to another pool"):
                await yard.pool.call(calls.CreateSnapshot(group="db", name="x"))

    run(scenario())


def test_a_move_is_refused_where_it_cannot_be() -> None:
    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard_with_group(yard)
            verbs = yard.operations
            with pytest.raises(NotFound, match="no pool is named pool-9; there are: pool-0, pool-1"):
                await verbs.move_group("db", MoveRequest(to="pool-9"))
            with pytest.raises(NotFound, match="no group is named nope"):
                await verbs.move_group("nope", MoveRequest(to="pool-1"))
            with pytest.raises(NotFound, match="is not being moved"):
                await verbs.abort_move("db")
            with pytest.raises(NotFound, match="none of that name is being moved"):
                await verbs.abort_move("nope")
            with pytest.raises(Invalid, match="kept for those that a move takes"):
                await verbs.create_snapshot("db", "moving-1")
            yard.workers["pool-1"].silent = True
            yard.workers["pool-1"].die()
            await until(yard.pools["pool-1"], PoolState.RESTARTING)
            pool = yard.pools["pool-1"]
            with pytest.raises(Unavailable, match="pool pool-1 is restarting: a move needs both pools"):
                await verbs.moves.begin(yard.pool.groups["db"], yard.pool, pool, None)

    run(scenario())


def test_one_move_a_group_at_a_time_and_it_is_shown_and_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(move: GroupMove) -> None:
        await asyncio.Event().wait()

    given_up: list[str] = []

    async def forget(move: GroupMove) -> None:
        given_up.append(move.group.name)

    monkeypatch.setattr(GroupMove, "run", stuck)
    monkeypatch.setattr(GroupMove, "give_up", forget)

    async def scenario() -> None:
        async with MemoryYard("pool-0", "pool-1") as yard:
            await yard_with_group(yard)
            verbs = yard.operations
            lines = await verbs.move_group("db", MoveRequest(to="pool-1"))
            first = json.loads(await anext(lines))
            assert first["move"]["phase"] == "beginning"
            with pytest.raises(InUse, match="is being moved to pool-1"):
                await verbs.move_group("db", MoveRequest(to="pool-1"))
            with pytest.raises(InUse, match="is being moved to pool-1"):
                await verbs.delete_group("db", force=True)
            shown = (await verbs.show_group("db")).move
            assert shown is not None
            assert (shown.to, shown.phase) == ("pool-1", MovePhase.BEGINNING)
            await verbs.abort_move("db")
            assert json.loads([line async for line in lines][-1])["failure"]["code"] == "in_use"
            assert given_up == ["db"]
            assert (await verbs.show_group("db")).move is None

    run(scenario())


def test_an_unfinished_move_is_shown_in_one_line() -> None:
    text = group_move.move_text(Move(to="pool-1", phase=MovePhase.UNFINISHED))
    assert text == "to pool-1, interrupted: move it again to go on, or forget it with --abort"
    text = group_move.move_text(
        Move(to="pool-1", phase=MovePhase.COPYING, snapshot="a", snapshots_left=2, copied=3 << 20, seconds=2)
    )
    assert text == "to pool-1, copying, served as ever: 3 MiB copied, 1.5 MiB/s, 3 snapshots left"


def test_the_command_line_refuses_what_makes_no_sense() -> None:
    with pytest.raises(Invalid, match="--to POOL is missing"):
        group_move.move("db")
    with pytest.raises(Invalid, match="--abort stands alone"):
        group_move.move("db", to="pool-1", abort=True)
