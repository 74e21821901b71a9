"""The life of a worker as the daemon sees it: restarts, failed pools, and who gets a connection meanwhile."""

from __future__ import annotations

import asyncio
import socket

import pytest

from blockyard.daemon import backoff as backoff_module
from blockyard.daemon import pool_worker
from blockyard.daemon.backoff import CALM, LONGEST, Backoff
from blockyard.daemon.directory import YardDirectory
from blockyard.daemon.pool_worker import PoolWorker
from blockyard.errors import Unavailable
from blockyard.model import ClientSpec, NewGroup, PoolState, VolumeSpec
from blockyard.rpc.calls import OpenFailed, ShowPool
from pdus.iscsi.login import LoginStatus
from target.front_door import Route
from tests.blockyard.support import HOST_A, HOST_B, MemoryYard, run

UNKNOWN = "iqn.2026-01.io.blockyard:unknown"


async def make_group(yard: MemoryYard, name: str = "db", *clients: ClientSpec) -> str:
    asked = NewGroup(name=name, volumes=(VolumeSpec(size=1 << 20),), clients=clients or (ClientSpec(initiator="any"),))
    return (await yard.operations.create_group(asked)).group.iqn


async def until(pool: PoolWorker, state: PoolState) -> None:
    while pool.state is not state:  # noqa: ASYNC110 (the test gives the loop one turn after another)
        await asyncio.sleep(0)


def test_the_first_restart_is_at_once_and_repeats_wait_longer() -> None:
    backoff = Backoff()
    waits = []
    for now in range(12):
        backoff.started(float(now))
        waits.append(backoff.died(now + 0.5))
    assert waits[:6] == [0.0, 0.25, 0.5, 1.0, 2.0, LONGEST]
    assert waits[-1] == LONGEST


def test_a_long_life_makes_the_next_death_the_first_again() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.started(0.0)
        backoff.died(1.0)
    backoff.started(10.0)
    assert backoff.died(10.0 + CALM) == 0.0


def test_a_dead_worker_is_started_again_and_its_groups_are_there() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make_group(yard)
            yard.worker.die()
            await until(yard.pool, PoolState.RESTARTING)
            await until(yard.pool, PoolState.SERVING)
            assert (yard.worker.starts, yard.pool.restarts) == (2, 1)
            assert list(yard.pool.groups) == ["db"]

    run(scenario())


def test_a_worker_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_worker, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(pool_worker, "SILENCE_SECONDS", 0.01)

    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make_group(yard)
            yard.worker.hung = True
            await until(yard.pool, PoolState.RESTARTING)
            await until(yard.pool, PoolState.SERVING)
            assert (yard.worker.starts, list(yard.pool.groups)) == (2, ["db"])
            monkeypatch.undo()

    run(scenario())


def test_a_verb_waits_for_a_worker_that_is_being_restarted() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make_group(yard)
            yard.worker.die()
            await until(yard.pool, PoolState.RESTARTING)
            assert (await yard.operations.show_group("db")).state is PoolState.SERVING

    run(scenario())


def test_logins_during_a_restart_are_told_to_try_again() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            iqn = await make_group(yard)
            directory = YardDirectory(yard.pools)
            assert isinstance(directory.route(iqn, HOST_A, "192.0.2.7"), Route)
            yard.worker.silent = True
            yard.worker.die()
            await until(yard.pool, PoolState.RESTARTING)
            assert directory.route(iqn, HOST_A, "192.0.2.7") is LoginStatus.SERVICE_UNAVAILABLE
            assert directory.visible(HOST_A, "192.0.2.7") == [iqn]

    run(scenario())


def test_an_unknown_target_is_not_found_only_when_every_pool_has_reported() -> None:
    async def scenario() -> None:
        yard = MemoryYard("pool-0", "pool-1")
        yard.workers["pool-1"].silent = True
        async with yard:
            await until(yard.pool, PoolState.SERVING)
            directory = YardDirectory(yard.pools)
            assert directory.route(UNKNOWN, HOST_A, "192.0.2.7") is LoginStatus.SERVICE_UNAVAILABLE
            yard.workers["pool-1"].open()
            await until(yard.pools["pool-1"], PoolState.SERVING)
            assert directory.route(UNKNOWN, HOST_A, "192.0.2.7") is LoginStatus.NOT_FOUND

    run(scenario())


def test_a_client_that_is_not_admitted_is_forbidden_and_sees_nothing() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            iqn = await make_group(yard, "db", ClientSpec(initiator=HOST_A, address="192.0.2.0/24"))
            directory = YardDirectory(yard.pools)
            assert directory.route(iqn, HOST_B, "192.0.2.7") is LoginStatus.AUTHORIZATION_FAILURE
            assert directory.route(iqn, HOST_A, "198.51.100.1") is LoginStatus.AUTHORIZATION_FAILURE
            assert directory.visible(HOST_B, "192.0.2.7") == []
            assert isinstance(directory.route(iqn.upper(), HOST_A.upper(), "192.0.2.7"), Route)

    run(scenario())


def test_a_connection_is_handed_over_with_what_was_read_and_answered() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            iqn = await make_group(yard)
            directory = YardDirectory(yard.pools)
            route = directory.route(iqn, HOST_A, "192.0.2.7")
            assert isinstance(route, Route)
            initiator, accepted = socket.socketpair()
            directory.hand_over(route.key, accepted, b"login", 48)
            await yard.pool.call(ShowPool())  # goes behind it on the same channel
            [(adopted_iqn, sock, received, replied)] = yard.worker.adopted
            assert (adopted_iqn, received, replied) == (iqn, b"login", 48)
            sock.close()
            assert initiator.recv(1) == b""  # nobody else holds a copy
            initiator.close()

    run(scenario())


def test_a_worker_that_dies_between_route_and_hand_over_costs_the_connection_only() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            iqn = await make_group(yard)
            directory = YardDirectory(yard.pools)
            route = directory.route(iqn, HOST_A, "192.0.2.7")
            assert isinstance(route, Route)
            yard.worker.die()
            initiator, accepted = socket.socketpair()
            directory.hand_over(route.key, accepted, b"login", 48)  # the daemon has not noticed the death yet
            await until(yard.pool, PoolState.RESTARTING)
            assert initiator.recv(1) == b""
            initiator.close()
            await until(yard.pool, PoolState.SERVING)
            assert yard.worker.adopted == []

    run(scenario())


def test_a_pool_that_cannot_be_opened_stays_failed_while_others_serve() -> None:
    async def scenario() -> None:
        yard = MemoryYard("pool-0", "pool-1")
        yard.workers["pool-1"].failing = OpenFailed(reason="journal and data contradict each other", retry=False)
        async with yard:
            failed = yard.pools["pool-1"]
            assert (failed.state, yard.workers["pool-1"].starts) == (PoolState.FAILED, 1)
            with pytest.raises(Unavailable, match="contradict"):
                await failed.call(ShowPool())
            shown = {pool.name: pool for pool in await yard.operations.list_pools()}
            assert shown["pool-0"].state is PoolState.SERVING
            assert shown["pool-1"].reason == "journal and data contradict each other"
            assert YardDirectory(yard.pools).route(UNKNOWN, HOST_A, "192.0.2.7") is LoginStatus.SERVICE_UNAVAILABLE
            listed = await yard.operations.list_groups()
            assert "pool pool-1 is failed" in listed.unavailable[0]

    run(scenario())


def test_a_pool_that_is_locked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "FIRST", 0.001)

    async def scenario() -> None:
        yard = MemoryYard()
        yard.worker.failing = OpenFailed(reason="another process has this pool open", retry=True)
        async with yard:
            assert yard.pool.state is PoolState.FAILED
            yard.worker.failing = None
            await until(yard.pool, PoolState.SERVING)
            assert yard.pool.reason is None

    run(scenario())


def test_a_worker_that_dies_again_and_again_before_its_pool_is_open_is_shown_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff_module, "FIRST", 0.001)

    async def scenario() -> None:
        yard = MemoryYard()
        yard.worker.crashing = True
        async with yard:
            assert (yard.pool.state, yard.worker.starts) == (PoolState.FAILED, 2)
            assert yard.pool.reason == "its worker ended with code 1 before the pool was open, again; see the log"
            yard.worker.crashing = False
            await until(yard.pool, PoolState.SERVING)  # it is still tried

    run(scenario())


def test_a_worker_that_cannot_be_started_is_shown_as_failed() -> None:
    async def refuse(_: socket.socket) -> None:
        raise OSError(12, "Cannot allocate memory")

    async def scenario() -> None:
        pool = PoolWorker("pool-0", refuse, asyncio.get_running_loop())  # type: ignore[arg-type]
        life = asyncio.create_task(pool.run())
        await pool.wait_settled(5)
        assert (pool.state, "Cannot allocate memory" in (pool.reason or "")) == (PoolState.FAILED, True)
        await pool.stop()
        await life

    run(scenario())


def test_stop_lets_the_worker_end_and_starts_no_other() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            worker = yard.worker
        assert (worker.starts, yard.pool.state) == (1, PoolState.STOPPED)

    run(scenario())
