"""Who uses how much: simple cases behind the contract, and the count against a model of dicts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore import accounting
from blockstore.api import FailStopped, Group, GroupUsage, Invalid, NewVolume
from blockstore.group import Plan
from blockstore.records import DeleteMap, SnapMap
from tests.blockstore.powercut import FakeDisk, open_disk
from tests.blockstore.support import GRAIN, MIB, PERMIT, Answer, Driver, Store, pattern

GRAINS = 1536  # of the model's volumes: three leaves


def usage_of(driver: Driver, group: Group) -> GroupUsage:
    return driver.wait(driver.pool.usage()).groups[group.record.uuid]


def fill(driver: Driver, group: Group, seed: int, count: int, *, first: int = 0) -> None:
    driver.write(group.volumes[0], first * GRAIN, pattern(seed, count * GRAIN))


# ------------------------------------------------------------------------------------------------ the contract


@pytest.mark.slow
def test_what_only_a_snapshot_references_is_its_own(driver: Driver) -> None:
    group = driver.group()
    fill(driver, group, 1, 10)
    snapshot = driver.wait(group.snapshot("s"))
    fill(driver, group, 2, 3)
    counted = usage_of(driver, group)
    of_snapshot, of_volume = counted.snapshots[snapshot.uuid], counted.volumes[0]
    assert (of_snapshot.mapped, of_snapshot.exclusive, of_snapshot.shared) == (10 * GRAIN, 3 * GRAIN, 7 * GRAIN)
    assert (of_volume.mapped, of_volume.exclusive, of_volume.reclaimable) == (10 * GRAIN, 3 * GRAIN, 3 * GRAIN)
    assert (counted.exclusive, counted.reclaimable) == (13 * GRAIN, 3 * GRAIN)


@pytest.mark.slow
def test_what_two_snapshots_share_is_reclaimable_and_of_neither(driver: Driver) -> None:
    group = driver.group()
    fill(driver, group, 1, 8)
    taken = [driver.wait(group.snapshot(name)) for name in ("a", "b")]
    fill(driver, group, 2, 8)
    counted = usage_of(driver, group)
    assert [counted.snapshots[each.uuid].exclusive for each in taken] == [0, 0]
    assert counted.reclaimable == 8 * GRAIN


@pytest.mark.slow
def test_what_a_clone_shares_is_of_neither_group(driver: Driver) -> None:
    group = driver.group()
    fill(driver, group, 1, 8)
    driver.wait(group.snapshot("s"))
    clone = driver.wait(driver.pool.clone_group("db", "s", "c", iqn="c", clients=[]))
    fill(driver, clone, 2, 2)
    fill(driver, group, 3, 1, first=100)
    assert usage_of(driver, clone).exclusive == 2 * GRAIN
    assert usage_of(driver, group).exclusive == 3 * GRAIN  # two that the clone overwrote, and one new
    assert group.snapshot_bytes("s") == 8 * GRAIN


@pytest.mark.slow
def test_deleting_a_snapshot_frees_what_was_foretold(store: Store) -> None:
    driver = store.open()
    driver.runner.advance(1)
    group = driver.group()
    fill(driver, group, 1, 600)
    snapshot = driver.wait(group.snapshot("s"))
    fill(driver, group, 2, 500)
    driver.wait(driver.pool.sweep())
    foretold = usage_of(driver, group).snapshots[snapshot.uuid].exclusive
    driver.wait(group.delete_snapshot("s"))
    assert driver.wait(driver.pool.sweep()) == foretold == 500 * GRAIN


# ------------------------------------------------------------------------------------------------ when it is counted


@pytest.mark.slow
def test_the_count_is_of_the_moment_of_its_checkpoint(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    fill(driver, group, 1, 4)
    counting = driver.pool.usage()
    group.volumes[0].write(MIB, pattern(2, GRAIN), PERMIT, Answer())
    assert driver.wait(counting).groups[group.record.uuid].exclusive == 4 * GRAIN
    assert usage_of(driver, group).exclusive == 5 * GRAIN


@pytest.mark.slow
def test_nothing_is_counted_again_while_nothing_changes(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    first = driver.wait(driver.pool.usage())
    assert driver.wait(driver.pool.usage()) is first
    fill(driver, group, 1, 1)
    assert driver.wait(driver.pool.usage()) is not first
    assert driver.pool.statistics().counters["usage_counts"] == 2


def test_who_waits_for_a_count_hears_that_the_pool_stopped(store: Store) -> None:
    driver = store.open()
    waiting = driver.pool.usage()
    driver.engine._fail_stop("the test says so")
    with pytest.raises(FailStopped, match="the test says so"):
        driver.wait(waiting)


def test_a_pool_that_no_other_process_can_read_refuses_to_count() -> None:
    driver = open_disk(FakeDisk())
    with pytest.raises(Invalid, match="another process"):
        driver.wait(driver.pool.usage())


# ------------------------------------------------------------------------------------------------ the model

Grains = dict[tuple[int, int], object]  # (LUN, grain) -> what is stored there; one object per stored grain


@dataclass
class ModelGroup:
    uuid: UUID
    live: Grains = field(default_factory=dict)
    snapshots: dict[str, tuple[UUID, Grains]] = field(default_factory=dict)

    def all(self) -> Iterator[Grains]:
        yield self.live
        yield from self.snapshot_grains()

    def snapshot_grains(self) -> Iterator[Grains]:
        return (grains for _, grains in self.snapshots.values())


step = st.tuples(
    st.sampled_from(
        ["write"] * 6 + ["discard", "snapshot", "snapshot", "snapshot", "clone", "rollback"]
        + ["delete snapshot", "delete group", "kill", "sweep"]
    ),
    st.integers(0, 1 << 16),
    st.integers(0, GRAINS - 9),
    st.integers(1, 8),
)  # fmt: skip


class Machine:
    """Groups of two volumes in a store, and which stored grain is referenced from where."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.driver = self.store.open()
        self.names = 0
        self.groups: dict[str, ModelGroup] = {}
        name = self.new_name()
        volumes = [NewVolume(GRAINS * GRAIN)] * 2
        group = self.driver.wait(self.driver.pool.create_group(name, iqn=name, volumes=volumes))
        self.groups[name] = ModelGroup(group.record.uuid)

    def new_name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def do(self, verb: str, pick: int, grain: int, count: int) -> None:
        name = sorted(self.groups)[pick % len(self.groups)]
        group, model, pool, lun = self.driver.pool.groups[name], self.groups[name], self.driver.pool, pick >> 8 & 1
        snapshot = sorted(model.snapshots)[pick % len(model.snapshots)] if model.snapshots else None
        places = [(lun, at) for at in range(grain, grain + count)]
        if verb == "write":
            self.driver.write(group.volumes[lun], grain * GRAIN, pattern(pick, count * GRAIN))
            model.live.update({place: object() for place in places})
        elif verb == "discard":
            self.driver.discard(group.volumes[lun], grain * GRAIN, count * GRAIN)
            for place in places:
                model.live.pop(place, None)
        elif verb == "snapshot":
            taken = self.driver.wait(group.snapshot(self.new_name()))
            model.snapshots[taken.name] = (taken.uuid, dict(model.live))
        elif verb == "clone" and snapshot and len(self.groups) < 4:
            new = self.new_name()
            clone = self.driver.wait(pool.clone_group(name, snapshot, new, iqn=new, clients=[]))
            self.groups[new] = ModelGroup(clone.record.uuid, dict(model.snapshots[snapshot][1]))
        elif verb == "rollback" and snapshot:
            automatic = self.driver.wait(group.rollback(snapshot))
            model.snapshots[automatic.name] = (automatic.uuid, model.live)
            model.live = dict(model.snapshots[snapshot][1])
        elif verb == "delete snapshot" and snapshot:
            self.driver.wait(group.delete_snapshot(snapshot))
            del model.snapshots[snapshot]
        elif verb == "delete group" and len(self.groups) > 1:
            self.driver.wait(pool.delete_group(name))
            del self.groups[name]
        elif verb == "kill":
            self.driver = self.store.reopen()
        elif verb == "sweep":
            self.driver.wait(pool.sweep())

    def compare(self) -> None:
        self.driver.wait(self.driver.pool.checkpoint())
        _, counted = accounting.count(str(self.store.path / "meta.db"))
        assert counted == accounting.parse(accounting.dump(0, counted))[1]
        assert counted.keys() == {model.uuid for model in self.groups.values()}
        for model in self.groups.values():
            usage = counted[model.uuid]
            assert usage.exclusive == self.only_in([*model.all()])
            assert usage.reclaimable == self.only_in([*model.snapshot_grains()])
            for uuid, grains in model.snapshots.values():
                assert usage.snapshots[uuid].mapped == len(grains) * GRAIN
                assert usage.snapshots[uuid].exclusive == self.only_in([grains])
            for lun in (0, 1):
                of_lun = usage.volumes[lun]
                assert of_lun.mapped == len(part(model.live, lun)) * GRAIN
                assert of_lun.exclusive == self.only_in([model.live], lun)
                assert of_lun.reclaimable == self.only_in([*model.snapshot_grains()], lun)

    def only_in(self, holders: list[Grains], lun: int | None = None) -> int:
        """Bytes of what is referenced from ``holders`` and from nowhere else."""
        ids = {id(holder) for holder in holders}
        others = [grains for model in self.groups.values() for grains in model.all() if id(grains) not in ids]
        elsewhere = {stored for grains in others for stored in grains.values()}
        here = {stored for grains in holders for stored in part(grains, lun).values()}
        return len(here - elsewhere) * GRAIN


def part(grains: Grains, lun: int | None) -> Grains:
    return {place: stored for place, stored in grains.items() if lun in (None, place[0])}


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(step, max_size=40))
def test_the_count_agrees_with_a_model(steps: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="blockyard-usage-") as directory:
        machine = Machine(Path(directory) / "pool")
        for each in steps:
            machine.do(*each)
        machine.compare()
        machine.store.prove_whole()


@pytest.mark.slow
def test_the_count_is_the_same_when_owners_are_kept_for_few_blocks_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store.open()
    group = driver.group()
    for i in range(10):
        fill(driver, group, i, 100 + i, first=37 * i)
        driver.wait(group.snapshot(f"s{i}"))
    driver.wait(driver.pool.checkpoint())
    path = str(store.path / "meta.db")
    whole = accounting.count(path)
    monkeypatch.setattr(accounting, "_RANGE", 64)
    assert accounting.count(path) == whole


@pytest.mark.slow
def test_what_a_map_outside_all_groups_shares_is_nobodys_own(store: Store) -> None:
    """As while a stream is received onto a snapshot: deleting that snapshot would not free it."""
    driver = store.open()
    group = driver.group()
    fill(driver, group, 1, 5)
    blockmap = driver.engine.blockmap
    stranger = SnapMap(blockmap.next_map, next(iter(blockmap.maps)))
    driver.wait(driver.engine.control(lambda: Plan((stranger,), lambda: None)))
    assert usage_of(driver, group).exclusive == 0
    driver.wait(driver.engine.control(lambda: Plan((DeleteMap(stranger.map),), lambda: None)))
    assert usage_of(driver, group).exclusive == 5 * GRAIN
