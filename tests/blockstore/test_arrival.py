"""A group goes to another pool, the store's part: identities, the one batch that decides, and crashes in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from blockstore.api import (
    AlreadyExists,
    AttachmentRecord,
    AttachMode,
    Busy,
    CachePolicy,
    ChapSecret,
    ClientRecord,
    Corrupt,
    Departure,
    Group,
    InUse,
    Invalid,
    NotFound,
    StoreError,
)
from blockstore.arrival import (
    ArrivalReceiver,
    abort_arrival,
    arrived_snapshots,
    begin_arrival,
    commit_arrival,
    prune_arrival,
)
from blockstore.group import chain_digest
from blockstore.staging import Arrival, arrivals, find_staged
from tests.blockstore.streaming import content, fill, fingerprint, receive, scrub, send
from tests.blockstore.support import GRAIN, MIB, PERMIT, Answer, Driver, Store, pattern

CLIENT = ClientRecord("iqn.2026-01.test:host", "192.0.2.0/24", ChapSecret("alice", "correct horse 1"))
ATTACHED = AttachmentRecord(
    "iqn.2026-01.test:attached", AttachMode.SINGLE_WRITER, 3, 1.0, ChapSecret("iqn.2026-01.test:attached", "s" * 16)
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """Where the group goes."""
    store = Store(tmp_path / "other")
    yield store
    store.prove_whole()


def source(store: Store) -> tuple[Driver, Group]:
    """Group ``db`` of two volumes (a third was removed) with snapshots ``a`` and ``b`` and writes since."""
    driver = store.open()
    group = driver.group(count=3, clients=[CLIENT], cache=CachePolicy.WRITETHROUGH)
    driver.wait(group.remove_volume(2))
    driver.wait(group.update(labels={"owner": "shop"}, attachments=[ATTACHED]))
    fill(driver, group, {0: 1, 7: 2, 600: 4})
    driver.wait(group.snapshot("a"))
    fill(driver, group, {7: 0, 9: 8}, 1)
    driver.wait(group.snapshot("b"))
    fill(driver, group, {0: 5, 1000: 6})
    return driver, group


def begin(here: Driver, there: Driver) -> UUID:
    record = here.pool.groups["db"].record
    there.wait(begin_arrival(there.engine, Arrival(record.uuid, record.name, record.iqn, here.pool.uuid)))
    return record.uuid


def bring(here: Driver, there: Driver, snapshot: str, base: str | None = None, cut: int | None = None) -> None:
    """Send ``snapshot`` to the arriving group; ``cut``: only so many pieces of it."""
    group = here.pool.groups["db"]
    receiver = ArrivalReceiver(there.engine, group.record.uuid, group.snapshots[snapshot])
    try:
        for part in send(here, "db", snapshot, base=base)[:cut]:
            there.wait(receiver.feed(part))
        there.wait(receiver.end())
        there.wait(receiver.commit())
    except StoreError:
        there.wait(receiver.save())
        raise
    finally:
        receiver.close()


def leave(here: Driver, there: Driver, uuid: UUID) -> Departure:
    chain = chain_digest(arrived_snapshots(there.engine, uuid))
    return here.wait(here.pool.groups["db"].leave(there.pool.uuid, "last", chain))


def commit(there: Driver, departure: Departure) -> None:
    record = replace(departure.group, generation=departure.group.generation + 1)
    there.wait(commit_arrival(there.engine, record, departure.last.uuid, ()))


def move(here: Driver, there: Driver) -> Departure:
    """All but the deletion at the source."""
    uuid = begin(here, there)
    base = None
    for name in here.pool.groups["db"].snapshots:
        bring(here, there, name, base)
        base = name
    departure = leave(here, there, uuid)
    bring(here, there, "last", base)
    commit(there, departure)
    return departure


def test_a_moved_group_has_every_identity_and_all_content(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    before, snapshots = group.record, dict(group.snapshots)
    live = [content(here, "db", lun) for lun in (0, 1)]
    prints = {name: fingerprint(here, "db", name).sha256 for name in snapshots}

    move(here, there)
    here.wait(here.pool.delete_group("db"))

    moved = there.pool.groups["db"]
    assert moved.record == replace(before, generation=2)
    assert moved.record.next_lun == 3
    assert (moved.record.attachments, moved.record.attach_generation) == ((ATTACHED,), 3)
    assert moved.record.labels == {"owner": "shop"}
    assert dict(moved.snapshots) == snapshots
    assert [content(there, "db", lun) for lun in (0, 1)] == live
    assert {name: fingerprint(there, "db", name).sha256 for name in moved.snapshots} == prints
    assert moved.volumes[0].write_through
    driver = other.reopen()
    assert driver.pool.groups["db"].record == moved.record
    assert list(driver.pool.groups["db"].snapshots) == ["a", "b"]
    assert [content(driver, "db", lun) for lun in (0, 1)] == live


def test_nothing_of_it_is_left_at_the_source_and_nothing_too_much_at_the_destination(
    store: Store, other: Store
) -> None:
    (here, _), there = source(store), other.open()
    needed = len(set(store_blocks(here)))

    move(here, there)
    here.wait(here.pool.delete_group("db"))
    here.wait(here.pool.sweep(), patience=200)
    there.wait(there.pool.sweep(), patience=200)

    assert here.pool.statistics().used - here.pool.statistics().pending_free == 0
    assert len(set(store_blocks(there))) == needed
    assert not list(arrivals(there.engine.catalog))


def store_blocks(driver: Driver) -> list[int]:
    """Every block that some map names, once for each map."""
    found = []
    for one in driver.engine.blockmap.maps.values():
        entries = (driver.engine.blockmap.entry(one, grain) for grain in range(one.size // GRAIN))
        found += [block for block, _ in entries if block]
    return found


def test_it_goes_there_and_back_with_rising_generations(store: Store, other: Store) -> None:
    (here, _), there = source(store), other.open()
    live = content(here, "db")

    move(here, there)
    here.wait(here.pool.delete_group("db"))
    move(there, here)
    there.wait(there.pool.delete_group("db"))

    assert here.pool.groups["db"].record.generation == 3
    assert content(here, "db") == live
    fill(here, here.pool.groups["db"], {3: 3})
    assert content(here, "db")[3 * GRAIN : 4 * GRAIN] == pattern(3)
    assert fingerprint(here, "db", "b").sha256  # what was written since left the snapshots alone


def test_an_arriving_group_is_seen_by_nobody_but_scrub_and_usage(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")

    assert dict(there.pool.groups) == {}
    assert arrived_snapshots(there.engine, uuid) == (group.snapshots["a"].uuid,)
    assert scrub(there).blocks == 3
    assert there.wait(there.pool.usage()).groups == {}
    with pytest.raises(NotFound):
        there.wait(there.pool.clone_group("db", "a", "x", iqn="iqn.2026-01.test:x", clients=()))


def test_snapshots_that_came_survive_a_crash_and_a_cut_one_goes_on(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    driver_write = b"".join(pattern(100 + i) for i in range(1000))
    here.write(group.volumes[0], 4 * MIB, driver_write)
    here.wait(group.snapshot("c"))
    uuid = begin(here, there)
    bring(here, there, "a")
    with pytest.raises(Corrupt, match="cut at LUN"):
        bring(here, there, "c", "a", cut=4)

    there = other.reopen()

    assert len(arrived_snapshots(there.engine, uuid)) == 1
    (arrival,) = arrivals(there.engine.catalog)
    staged = find_staged(there.engine.catalog, arrival.staging)
    assert staged is not None
    receiver = ArrivalReceiver(there.engine, uuid, group.snapshots["c"])
    for part in send(here, "db", "c", base="a", resume=staged.token):
        there.wait(receiver.feed(part))
    there.wait(receiver.end())
    there.wait(receiver.commit())
    receiver.close()
    bring(here, there, "b", "a")
    departure = leave(here, there, uuid)
    bring(here, there, "last", "c")
    commit(there, departure)
    assert content(there, "db") == content_at_source(here, store)


def content_at_source(here: Driver, store: Store) -> bytes:
    """The volume of the group that left, which is served no more: taken back first."""
    here.wait(here.pool.groups["db"].stay())
    return content(here, "db")


def test_a_half_received_snapshot_gives_way_to_another(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    here.write(group.volumes[0], 4 * MIB, b"".join(pattern(100 + i) for i in range(1000)))
    here.wait(group.snapshot("c"))
    begin(here, there)
    with pytest.raises(Corrupt, match="cut at LUN"):
        bring(here, there, "c", cut=4)

    bring(here, there, "a")

    assert len(there.engine.blockmap.maps) == 2


def test_a_group_that_left_refuses_all_io_and_every_change_until_it_stays(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")
    bring(here, there, "b", "a")
    volume, live = group.volumes[0], content(here, "db")

    leave(here, there, uuid)

    answer = Answer()
    volume.write(0, pattern(99), PERMIT, answer)
    here.runner.settle()
    assert isinstance(answer.error, NotFound)
    assert dict(group.volumes) == {}
    changes: list[Callable[[], Future[Any]]] = [
        lambda: group.snapshot("x"),
        lambda: group.delete_snapshot("a"),
        lambda: group.rollback("a"),
        lambda: group.resize(0, 32 * MIB),
        lambda: group.remove_volume(0),
        lambda: group.update(clients=()),
        lambda: group.update(attachments=()),
        lambda: group.leave(uuid4(), "again", ""),
    ]
    for change in changes:
        with pytest.raises(InUse, match="is leaving this pool"):
            here.wait(change())
    here = store.reopen()
    group = here.pool.groups["db"]
    assert group.record.leaving == there.pool.uuid
    assert dict(group.volumes) == {}
    stayed = here.wait(group.stay())
    assert (stayed.leaving, stayed.generation) == (None, 3)
    assert here.wait(group.stay()).generation == 3  # again: nothing happens
    assert content(here, "db") == live
    here.wait(group.delete_snapshot("last"))


def test_a_write_is_before_the_leave_and_moved_or_refused(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")
    bring(here, there, "b", "a")
    before, after = Answer(), Answer()
    volume = group.volumes[0]
    volume.write(5 * GRAIN, pattern(55), PERMIT, before)

    departing = group.leave(there.pool.uuid, "last", chain_digest(arrived_snapshots(there.engine, uuid)))
    volume.write(6 * GRAIN, pattern(66), PERMIT, after)
    departure = here.wait(departing)
    bring(here, there, "last", "b")
    commit(there, departure)

    assert before.ok
    assert isinstance(after.error, NotFound)
    moved = content(there, "db")
    assert moved[5 * GRAIN : 6 * GRAIN] == pattern(55)
    assert moved[6 * GRAIN : 7 * GRAIN] == bytes(GRAIN)


def test_a_group_does_not_leave_while_the_other_pool_has_other_snapshots(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")

    with pytest.raises(Busy, match="were taken or deleted meanwhile"):
        leave(here, there, uuid)

    assert group.record.leaving is None
    bring(here, there, "b", "a")
    here.wait(group.delete_snapshot("a"))
    with pytest.raises(Busy):
        leave(here, there, uuid)
    there.wait(prune_arrival(there.engine, uuid, [uuid, *arrived_snapshots(there.engine, uuid)[:1]]))
    leave(here, there, uuid)


def test_the_commit_needs_the_last_snapshot_and_happens_once(store: Store, other: Store) -> None:
    (here, _), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")
    bring(here, there, "b", "a")
    departure = leave(here, there, uuid)
    with pytest.raises(NotFound, match="last snapshot"):
        commit(there, departure)
    bring(here, there, "last", "b")
    commit(there, departure)

    commit(there, departure)

    assert list(there.pool.groups["db"].snapshots) == ["a", "b"]
    with pytest.raises(AlreadyExists):
        begin(here, there)
    with pytest.raises(NotFound):
        bring(here, there, "a")


def test_a_commit_of_other_volumes_is_refused(store: Store, other: Store) -> None:
    (here, _), there = source(store), other.open()
    uuid = begin(here, there)
    bring(here, there, "a")
    bring(here, there, "b", "a")
    departure = leave(here, there, uuid)
    bring(here, there, "last", "b")

    with pytest.raises(Invalid, match="other volumes"):
        commit(there, replace(departure, group=replace(departure.group, volumes=departure.group.volumes[:1])))

    assert dict(there.pool.groups) == {}


def test_what_came_can_be_forgotten_at_once_and_after_a_crash(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    here.write(group.volumes[0], 4 * MIB, b"".join(pattern(100 + i) for i in range(1000)))
    here.wait(group.snapshot("c"))
    uuid = begin(here, there)
    bring(here, there, "a")
    with pytest.raises(Corrupt):
        bring(here, there, "c", "a", cut=4)
    there = other.reopen()

    there.wait(abort_arrival(there.engine, uuid))
    there.wait(abort_arrival(there.engine, uuid))
    there.wait(there.pool.sweep(), patience=200)

    assert there.engine.blockmap.maps == {}
    assert there.engine.catalog.raw == {}
    assert there.pool.statistics().used - there.pool.statistics().pending_free == 0
    there.group("db")  # the name is free


def test_very_many_snapshots_are_forgotten_in_batches(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    base = None
    for number in range(300):
        here.wait(group.snapshot(f"s{number}"))
        bring(here, there, f"s{number}", base)
        base = f"s{number}"

    there.wait(prune_arrival(there.engine, uuid, arrived_snapshots(there.engine, uuid)[10:]))
    assert len(arrived_snapshots(there.engine, uuid)) == 10
    there.wait(abort_arrival(there.engine, uuid))

    assert there.engine.catalog.raw == {}


def test_a_stream_of_another_snapshot_than_announced_is_refused(store: Store, other: Store) -> None:
    (here, group), there = source(store), other.open()
    uuid = begin(here, there)
    receiver = ArrivalReceiver(there.engine, uuid, group.snapshots["a"])
    head, *_ = send(here, "db", "b")
    with pytest.raises(Corrupt, match="announced was a"):
        there.wait(receiver.feed(head))
    with pytest.raises(InUse, match="coming in"):
        there.wait(abort_arrival(there.engine, uuid))
    receiver.close()


def test_clones_of_its_snapshots_stay_and_keep_working(store: Store, other: Store) -> None:
    (here, _), there = source(store), other.open()
    clone = here.wait(here.pool.clone_group("db", "a", "clone", iqn="iqn.2026-01.test:clone", clients=()))
    cloned = content(here, "clone")

    move(here, there)
    here.wait(here.pool.delete_group("db"))
    here.wait(here.pool.sweep(), patience=200)

    assert content(here, "clone") == cloned
    fill(here, clone, {2: 22})
    assert clone.record.origin == "db@a"


def test_a_stream_onto_a_group_that_left_is_refused(store: Store, other: Store, tmp_path: Path) -> None:
    here, there = store.open(), other.open()
    origin = here.group("origin")
    fill(here, origin, {1: 1})
    here.wait(origin.snapshot("one"))
    receive(here, "db", send(here, "origin", "one"))
    fill(here, origin, {2: 2})
    here.wait(origin.snapshot("two"))
    uuid = begin(here, there)
    bring(here, there, "one")
    leave(here, there, uuid)

    with pytest.raises(InUse, match="is leaving"):
        receive(here, "db", send(here, "origin", "two", base="one"))
