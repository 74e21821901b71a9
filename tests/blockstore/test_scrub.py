"""The scrub finds what rotted and says where; the fingerprint depends on content alone."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from blockstore.api import Closed, InUse, MediumError
from blockstore.layout import UNIT
from blockstore.scrub import Scrub
from tests.blockstore.streaming import block_of, fill, fingerprint, scrub
from tests.blockstore.support import GRAIN, MIB, Driver, Store, pattern


def flip_bit(driver: Driver, block: int) -> None:
    data = driver.engine.data
    stored = bytearray(data.read_stored(block * UNIT, UNIT))
    stored[100] ^= 4
    data.write(block * UNIT, [bytes(stored)])
    data.sync()


def test_a_scrub_of_a_sound_pool_reads_every_shared_block_once(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, b"".join(pattern(1 + i) for i in range(1000)))
    driver.wait(group.snapshot("a"))
    fill(driver, group, {3: 4000, 5: 4001})
    driver.wait(driver.pool.clone_group("db", "a", "clone", iqn="iqn.2026-01.test:clone", clients=()))

    report = scrub(driver)

    assert (report.blocks, report.errors) == (1002, ())
    assert driver.pool.statistics().counters["scrubbed_bytes"] == 1002 * GRAIN


def test_a_scrub_finds_a_flipped_bit_and_says_where(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.expect_findings = True
    driver = store.open()
    group = driver.group(count=2)
    fill(driver, group, {i: 1 + i for i in range(50)}, 1)
    flip_bit(driver, block_of(driver, "db", 7, 1))

    with caplog.at_level(logging.ERROR):
        report = scrub(driver)

    (error,) = report.errors
    assert (error.place.group, error.place.snapshot, error.place.lun, error.offset) == ("db", None, 1, 7 * GRAIN)
    assert (report.blocks, report.error_count) == (50, 1)
    assert "group db, LUN 1 (vol1), LBA 56" in caplog.text
    assert driver.pool.statistics().counters["scrub_errors"] == 1


def test_damage_that_only_a_snapshot_sees_is_found_there(store: Store) -> None:
    store.expect_findings = True
    driver = store.open()
    group = driver.group()
    fill(driver, group, {5: 1})
    block = block_of(driver, "db", 5)
    driver.wait(group.snapshot("a"))
    fill(driver, group, {5: 2})
    flip_bit(driver, block)

    (error,) = scrub(driver).errors

    assert (error.place.snapshot, error.offset, error.block) == ("a", 5 * GRAIN, block)


def test_a_block_that_was_overwritten_while_it_was_read_is_no_error(store: Store) -> None:
    store.expect_findings = True
    driver = store.open()
    group = driver.group()
    fill(driver, group, {5: 1})
    flip_bit(driver, block_of(driver, "db", 5))
    run = Scrub(driver.engine, rate=None, progress=lambda done, errors: None)
    report = run.scrub()
    driver.runner.tick()  # the first reading is on its way
    fill(driver, group, {5: 2})

    assert driver.wait(report).errors == ()
    run.close()


def test_a_scrub_keeps_its_rate(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, b"".join(pattern(1 + i) for i in range(2048)))

    report = scrub(driver, rate=2 * MIB)

    assert 3.9 <= report.seconds <= 4.5


def test_one_scrub_at_a_time_and_it_can_be_ended(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    fill(driver, group, {1: 1})
    run = Scrub(driver.engine, rate=1, progress=lambda done, errors: None)
    future = run.scrub()

    with pytest.raises(InUse):
        Scrub(driver.engine, rate=None, progress=lambda done, errors: None)
    run.close()
    with pytest.raises(Closed):
        driver.wait(future, patience=GRAIN + 10)
    assert scrub(driver).blocks == 1


def test_a_fingerprint_depends_on_content_and_not_on_where_it_lies(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    here, there = store.open(), other.open()
    group, twin = here.group(), there.group("twin")
    fill(here, group, {i: i + 1 for i in range(300)})
    fill(there, twin, dict.fromkeys(range(400), 7))
    there.write(twin.volumes[0], 0, b"".join(pattern(i + 1) for i in range(300)))
    there.write(twin.volumes[0], 300 * GRAIN, bytes(100 * GRAIN))
    here.wait(group.snapshot("a"))
    there.wait(twin.snapshot("b"))

    assert fingerprint(here, "db", "a").sha256 == fingerprint(there, "twin", "b").sha256
    fill(there, twin, {299: 1})
    there.wait(twin.snapshot("c"))
    assert fingerprint(there, "twin", "c").sha256 != fingerprint(there, "twin", "b").sha256
    other.prove_whole()


def test_a_fingerprint_is_the_one_that_is_documented(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=MIB)
    fill(driver, group, {3: 1, 200: 2})
    driver.wait(group.snapshot("a"))

    volume = hashlib.sha256(b"blockyard content 1\n" + MIB.to_bytes(8, "little"))
    for grain, seed in ((3, 1), (200, 2)):
        volume.update(grain.to_bytes(8, "little") + pattern(seed))
    whole = hashlib.sha256(b"blockyard snapshot 1\n" + bytes(4) + volume.digest())
    assert fingerprint(driver, "db", "a").sha256 == whole.hexdigest()


def test_verify_refuses_to_name_a_fingerprint_of_damaged_content(store: Store) -> None:
    store.expect_findings = True
    driver = store.open()
    group = driver.group()
    fill(driver, group, {i: 1 + i for i in range(20)})
    driver.wait(group.snapshot("a"))
    flip_bit(driver, block_of(driver, "db", 11))

    with pytest.raises(MediumError, match="snapshot a, LUN 0, LBA 88"):
        fingerprint(driver, "db", "a")
    driver.wait(group.delete_snapshot("a"))
