"""Ten thousand snapshots of a group, through worker, daemon, REST and the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from blockyard.errors import Invalid, NotFound, Unavailable
from blockyard.model import NewGroup, SnapshotPage, VolumeSpec
from blockyard.rpc import calls
from tests.blockyard.support import MemoryYard, run, served_yard
from tests.blockyard.test_cli import Command

MANY = 10_000
SECONDS = 2.0  # for a listing of so many: the promise; of CPU, which other processes of the machine do not change


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[MemoryYard]:
    with served_yard(tmp_path / "api.sock") as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKYARD_API", f"unix:{tmp_path / 'api.sock'}")
        yield served


async def make(yard: MemoryYard, count: int) -> None:
    await yard.operations.create_group(NewGroup(name="db", volumes=(VolumeSpec(size=1 << 20),)))
    group = yard.worker.pool.groups["db"]
    for i in range(count):
        group.snapshot(f"s{i}")


async def pages(yard: MemoryYard) -> list[SnapshotPage]:
    found = [await yard.pool.call(calls.ListSnapshots(group="db"))]
    while found[-1].next is not None:
        found.append(await yard.pool.call(calls.ListSnapshots(group="db", after=found[-1].next)))
    return found


@pytest.mark.slow
def test_ten_thousand_snapshots_are_listed_in_two_seconds(yard: MemoryYard, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Command(capsys)
    cli.json("group", "create", "db", "--size", "1M", "--client", "any")
    group = yard.worker.pool.groups["db"]
    taken = [group.snapshot(f"s{i}") for i in range(MANY)]  # nothing else runs on the yard's loop meanwhile
    assert taken[-1].result(10).name == f"s{MANY - 1}"
    listed, took = timed(lambda: cli.json("snapshot", "ls", "db"))
    assert [each["name"] for each in listed] == [f"s{i}" for i in range(MANY)]
    assert took < SECONDS
    (code, out, _), took = timed(lambda: cli("snapshot", "ls", "db"))
    assert (code, len(out.splitlines())) == (0, MANY + 1)
    assert took < SECONDS


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return action(), time.process_time() - began


@pytest.mark.slow
def test_a_listing_in_pages_misses_nothing_when_snapshots_go_meanwhile() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 1200)
            first = await yard.pool.call(calls.ListSnapshots(group="db"))
            assert first.next is not None
            for name in [each.name for each in first.snapshots[:100]] + [first.snapshots[-1].name]:
                await yard.operations.delete_snapshot("db", name)
            second = await yard.pool.call(calls.ListSnapshots(group="db", after=first.next))
            assert [each.name for each in second.snapshots] == [f"s{i}" for i in range(250, 500)]

    run(scenario())


@pytest.mark.slow
def test_every_page_fits_well_into_a_message() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 1200)
            found = await pages(yard)
            assert [len(page.snapshots) for page in found] == [250, 250, 250, 250, 200]
            assert max(len(page.model_dump_json()) for page in found) < 1 << 20

    run(scenario())


def test_a_group_is_shown_with_its_newest_snapshots_and_their_number() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 50)
            await yard.operations.create_snapshot("db", "last")
            shown = await yard.operations.show_group("db")
            assert shown.snapshot_count == 51
            assert [each.name for each in shown.snapshots] == [*(f"s{i}" for i in range(31, 50)), "last"]
            assert yard.pool.groups["db"].snapshots == shown.snapshots

    run(scenario())


def test_a_message_names_a_few_of_many_snapshots() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 50)
            with pytest.raises(NotFound, match=r"s48, s49, and 40 more$"):
                await yard.operations.delete_snapshot("db", "nope")

    run(scenario())


def test_a_place_that_no_listing_gave_is_refused() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 1)
            with pytest.raises(Invalid, match="no place in a listing"):
                await yard.pool.call(calls.ListSnapshots(group="db", after="nonsense"))

    run(scenario())


def test_snapshots_of_a_pool_that_is_down_are_not_known() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 1)
            await yard.pool.stop()
            with pytest.raises(Unavailable):
                await yard.operations.list_snapshots("db")

    run(scenario())


# ------------------------------------------------------------------------------------------------ what they use


def write(yard: MemoryYard, first: int, count: int, fill: bytes) -> None:
    volume = yard.worker.pool.groups["db"].volumes[0]
    assert hasattr(volume, "store")
    for grain in range(first, first + count):
        volume.store(grain * 4096, 4096, memoryview(fill * 4096))


def test_listings_say_what_deleting_would_free() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 0)
            write(yard, 0, 10, b"a")
            await yard.operations.create_snapshot("db", "one")
            write(yard, 0, 4, b"b")
            (one,) = await yard.operations.list_snapshots("db")
            assert (one.mapped, one.exclusive) == (10 * 4096, 4 * 4096)
            group = await yard.operations.show_group("db", usage=True)
            assert (group.exclusive, group.reclaimable) == (14 * 4096, 4 * 4096)
            assert (group.volumes[0].exclusive, group.volumes[0].reclaimable) == (4 * 4096, 4 * 4096)
            assert (await yard.operations.show_group("db")).exclusive is None

    run(scenario())


def test_a_listing_shows_no_figures_rather_than_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            await make(yard, 2)
            monkeypatch.setattr("blockyard.worker.usage.PATIENCE", 0.01)
            monkeypatch.setattr(yard.worker.pool, "usage", Future)
            listed = await yard.operations.list_snapshots("db")
            assert [(each.mapped, each.exclusive) for each in listed] == [(0, None), (0, None)]

    run(scenario())
