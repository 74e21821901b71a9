"""Cuts and failures inside SQLite: within its commit, and while it copies its log into the database.

The rest of the store sees SQLite as one step that happens or does not. Here each write and sync of ``meta.db`` and its
log fails or is the last one that the disk saw.
"""

from __future__ import annotations

import errno
import random

import pytest

from blockstore.api import CachePolicy, FailStopped, OutOfSpace, StoreError
from blockstore.check import check_directory
from tests.blockstore.powercut import TUNING, Cutter, Event, FakeDisk, open_disk, restart, sectors
from tests.blockstore.support import GRAIN, MIB, Driver, pattern
from tests.blockstore.workload import VARIANTS, Judge, Workload
from tests.scale import SEED, scaled

LOG, DATABASE = "meta.db-wal", "meta.db"


def content(driver: Driver, count: int) -> list[bytes]:
    """The first grains of the only volume."""
    volume = driver.pool.groups["db"].volumes[0]
    return [driver.read(volume, grain * GRAIN, GRAIN) for grain in range(count)]


def write_grains(driver: Driver, first: int, end: int, *, sync: bool = True) -> None:
    """Grain i becomes pattern(i)."""
    volume = driver.pool.groups["db"].volumes[0]
    for grain in range(first, end):
        driver.write(volume, grain * GRAIN, pattern(grain), sync=sync)


def expected(count: int) -> list[bytes]:
    return [pattern(grain) for grain in range(count)]


@pytest.fixture
def driver(disk: FakeDisk) -> Driver:
    """A pool with two checkpoints in its database, four flushed grains, the last two only in the journal."""
    driver = open_disk(disk)
    driver.group(size=MIB)
    write_grains(driver, 0, 2)
    driver.wait(driver.pool.checkpoint())
    write_grains(driver, 2, 4)
    return driver


# ------------------------------------------------------------------------------------------------- cuts


def recorded(act: str) -> tuple[Workload, int]:
    """A workload that ends with a checkpoint, or one and a close, and where in its trace that begins."""
    work = Workload(CachePolicy.WRITETHROUGH, SEED, VARIANTS[0])
    work.disk.log_pages = 1 if act == "copying the log" else 1000
    work.driver = VARIANTS[0].open(work.disk)
    for verb in ["write"] * 8 + ["snapshot", "checkpoint", "ragged", "clone"] + ["write"] * 4:
        work.do(verb)
    work.driver.runner.advance(0.5)
    begin = work.events
    work.do("checkpoint")
    work.driver.runner.advance(0.5)
    if act == "closing":
        work.do("close")
    return work, begin


@pytest.mark.slow
@pytest.mark.parametrize("act", ["committing", "copying the log", "closing"])
def test_a_cut_at_any_io_of_sqlite_finds_the_image_before_or_after(act: str) -> None:
    """Of what no sync covered nothing landed, all, all but a part of the last, random sectors. In ``make test`` every
    third write is a cut point, and everything that is no write."""
    work, begin = recorded(act)
    judge, rng = Judge(work), random.Random(SEED)
    cutter = Cutter(work.disk.trace, "boot-2")
    seen, stride = 0, 1 if scaled(1) > 1 else 3
    while cutter.at < work.events:
        event = cutter.step()
        if cutter.at <= begin or not event.file.startswith(DATABASE):
            continue
        seen += 1
        if event.kind == "write" and seen % stride:
            continue
        for fate in (cutter.none_landed(), cutter.all_landed(), cutter.last_torn(rng), cutter.some_landed(rng)):
            judge.judge(cutter.at, fate, f"{act}, {event.kind} of {event.file}")
    print(f"{act}: {seen} I/Os of SQLite, {judge.states} states")
    assert seen >= 20
    assert judge.states >= 4 * (seen // stride)


def test_a_page_of_the_log_torn_at_every_sector_is_no_commit() -> None:
    work, begin = recorded("committing")
    trace = work.disk.trace
    last = max(i for i, event in enumerate(trace) if event.file == LOG and event.kind == "write")
    judge = Judge(work)
    for torn in range(len(sectors(trace[last]))):
        parts = sectors(trace[last])
        del parts[torn]
        cutter = Cutter([*trace[:last], *parts], "boot-2")
        for _ in range(last + len(parts)):
            cutter.step()
        judge.judge(last, cutter.all_landed(), f"sector {torn} of the last page is missing")
    assert last > begin
    assert judge.states == len(sectors(trace[last])) > 8


# ------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("operation", "file"), [("sync", LOG), ("write", LOG), ("write-part", LOG), ("write-after", LOG)]
)
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_error_inside_a_commit_stops_the_pool_and_loses_nothing(
    disk: FakeDisk, driver: Driver, operation: str, file: str, after: int
) -> None:
    disk.faults[operation, file] = [0] * (after if operation != "sync" else 0) + [errno.EIO]
    with pytest.raises(FailStopped):
        driver.wait(driver.pool.checkpoint())
    with pytest.raises(FailStopped):
        write_grains(driver, 4, 5)
    assert content(driver, 4) == expected(4)
    driver = restart(disk)
    assert content(driver, 4) == expected(4)
    driver = restart(disk, boot="boot-2", power_cut=True)
    assert content(driver, 4) == expected(4)


# Where it loses, a failing generator closes its statement, and calls back into the VFS with its exception still set.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("settles", [True, False], ids=["as it is", "without settling"])
def test_a_failed_sync_in_a_commit_then_a_restart_then_a_power_cut(
    disk: FakeDisk, driver: Driver, settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache shows a commit that the disk lacks. SQLite would copy it into the database, and a cut in that would
    leave a mixture, with a log that cannot mend it."""
    driver.wait(driver.pool.close())
    driver = open_disk(disk)
    for number in range(4):  # so much that pages of an older and a newer image make no image
        group = driver.group(f"g{number}", size=MIB)
        driver.write(group.volumes[0], 0, pattern(number))
        driver.wait(group.snapshot("s"))
    write_grains(driver, 0, 4)
    disk.faults["sync", LOG] = [errno.EIO]
    with pytest.raises(FailStopped):
        driver.wait(driver.pool.checkpoint())
    cutter = Cutter([], "boot-2")
    cutter.start_from(disk)
    before = len(disk.trace)
    with monkeypatch.context() as patch:
        if not settles:
            patch.setattr(FakeDisk, "settle_database", lambda self: None)
        restart(disk)
    events = disk.trace[before:]
    cutter.follow(events)
    lost, rng = 0, random.Random(SEED)
    for _ in events:
        cutter.step()
        lost += sum(not whole(each) for each in (cutter.none_landed(), cutter.all_landed(), cutter.some_landed(rng)))
    assert (lost == 0) == settles, "unsettled, it must lose something, or this test could not fail"
    assert content(restart(disk, boot="boot-2", power_cut=True), 4) == expected(4)


def whole(disk: FakeDisk) -> bool:
    """Whether the disk opens and has the flushed grains, in an image without damage."""
    try:
        image = check_directory(disk.copy(), deep=True, map_leaves=TUNING.map_leaves)
        return image.ok and content(open_disk(disk), 4) == expected(4)
    except (StoreError, OSError):
        return False


@pytest.mark.parametrize("operation", ["write", "write-part"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_full_host_inside_a_commit_changes_nothing_and_is_tried_again(
    disk: FakeDisk, driver: Driver, operation: str, after: int
) -> None:
    disk.faults[operation, LOG] = [0] * after + [errno.ENOSPC]
    with pytest.raises(OutOfSpace):
        driver.wait(driver.pool.checkpoint())
    assert driver.pool.statistics().state == "serving"
    write_grains(driver, 4, 5)
    other = disk.copy()
    other.lose_cache()
    other.boot = "boot-2"
    assert content(open_disk(other), 5) == expected(5)
    before = driver.pool.statistics().counters["checkpoints"]
    driver.runner.advance(5)
    assert driver.pool.statistics().counters["checkpoints"] > before
    write_grains(driver, 5, 6)
    assert content(restart(disk, boot="boot-2", power_cut=True), 6) == expected(6)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["write", "write-part", "sync"])
def test_an_error_while_sqlite_copies_its_log_loses_nothing(disk: FakeDisk, number: int, operation: str) -> None:
    """SQLite says nothing of it and copies those pages again later; the log has them until then."""
    disk.log_pages = 1
    driver = open_disk(disk)
    driver.group(size=MIB)
    for grain in range(6):
        write_grains(driver, grain, grain + 1)
        disk.faults[operation, DATABASE] = [number]
        driver.wait(driver.pool.checkpoint())
        assert disk.faults.pop((operation, DATABASE)) == [], "the fault never came"
        other = disk.copy()
        other.lose_cache()
        other.boot = "boot-2"
        assert content(open_disk(other), grain + 1) == expected(grain + 1)
    assert content(restart(disk), 6) == expected(6)


@pytest.mark.parametrize("which", range(4))
def test_whichever_sync_of_the_log_fails_nothing_flushed_is_lost(disk: FakeDisk, which: int) -> None:
    """Of a commit, of the log's new beginning, or before the log is copied: the first stops the pool."""
    disk.log_pages = 1
    driver = open_disk(disk)
    driver.group(size=MIB)
    disk.faults["sync", LOG] = [0] * which + [errno.EIO]
    for grain in range(4):
        try:
            write_grains(driver, grain, grain + 1)
            driver.wait(driver.pool.checkpoint())
        except FailStopped:
            driver = restart(disk)
            write_grains(driver, grain, grain + 1)
    assert disk.faults.get(("sync", LOG), []) == []
    assert content(restart(disk, boot="boot-2", power_cut=True), 4) == expected(4)


@pytest.mark.parametrize("file", [DATABASE, LOG])
def test_a_database_that_cannot_be_read_is_not_called_corrupt(disk: FakeDisk, driver: Driver, file: str) -> None:
    assert content(driver, 4) == expected(4)
    disk.faults["read", file] = [errno.EIO]
    with pytest.raises(OSError, match=r"meta\.db") as raised:
        open_disk(disk)
    assert raised.value.errno == errno.EIO
    assert content(restart(disk), 4) == expected(4)


@pytest.mark.parametrize(("operation", "file"), [("write", LOG), ("write-part", LOG), ("sync", LOG)])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_in_recoverys_own_commit_leaves_all_to_the_next_start(
    disk: FakeDisk, driver: Driver, operation: str, file: str, number: int
) -> None:
    """Settling writes and syncs the log first; the faults come after that."""
    assert content(driver, 4) == expected(4)
    disk.faults[operation, file] = [0, 0, number]
    with pytest.raises(OSError, match=r"meta|disk"):
        open_disk(disk)
    assert disk.faults[operation, file] == []
    assert content(restart(disk), 4) == expected(4)
    assert content(restart(disk, boot="boot-2", power_cut=True), 4) == expected(4)


def test_the_trace_has_what_sqlite_writes(disk: FakeDisk, driver: Driver) -> None:
    """Guards the machinery: a commit reaches the log in many writes and one sync, and the database only later."""
    before = len(disk.trace)
    driver.wait(driver.pool.checkpoint())
    events: list[Event] = [event for event in disk.trace[before:] if event.file.startswith(DATABASE)]
    assert {event.file for event in events} == {LOG}
    assert [event.kind for event in events].count("sync") == 1
    assert len(events) > 10
