"""What opening makes of files that are missing, cut off, garbage or of a full host: a sentence, never a traceback."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstore.api import Corrupt, MediumError
from blockstore.check import check_pool
from blockstore.checkpoint import MetaDb
from blockstore.device import HostDirectory
from blockstore.hostfile import HostFile
from blockstore.layout import pack_node
from tests.blockstore.powercut import FakeDisk, open_disk
from tests.blockstore.support import GRAIN, KIB, MIB, Store, pattern


@pytest.fixture
def damaged(tmp_path: Path) -> Store:
    """A closed store with a group and a snapshot, to be damaged. Refusing it must change none of its files."""
    store = Store(tmp_path / "pool")
    driver = store.open()
    group = driver.group()
    driver.write(group.volumes[0], 0, pattern(1, MIB))
    driver.wait(group.snapshot("s"))
    driver.write(group.volumes[0], 0, pattern(2))
    store.close()
    return store


def refuse(store: Store, match: str) -> None:
    before = {name: (store.path / name).read_bytes() for name in os.listdir(store.path) if not name.endswith("-shm")}
    with pytest.raises(Corrupt, match=match):
        store.open()
    for name, content in before.items():
        if not name.startswith("meta.db"):
            assert (store.path / name).read_bytes() == content
    assert not check_pool(store.path).ok


def edit_database(store: Store, sql: str, *values: object) -> None:
    with sqlite3.connect(store.path / "meta.db") as database:
        database.execute(sql, values)
    database.close()


@pytest.mark.parametrize("content", [b"garbage" * 4096, b"SQLite format 3\0" + bytes(8192)])
def test_a_database_of_garbage_is_corrupt(damaged: Store, content: bytes) -> None:
    (damaged.path / "meta.db").write_bytes(content)
    refuse(damaged, "meta.db")


@pytest.mark.parametrize("table", ["node", "root", "catalog", "pool"])
def test_a_database_without_one_of_its_tables_is_corrupt(damaged: Store, table: str) -> None:
    edit_database(damaged, f"DROP TABLE {table}")
    with pytest.raises(Corrupt):
        damaged.open()


@pytest.mark.parametrize("name", ["data", "journal.0", "journal.1", "meta.db"])
def test_a_missing_file_is_corrupt(damaged: Store, name: str) -> None:
    (damaged.path / name).unlink()
    refuse(damaged, name)


@pytest.mark.parametrize(("name", "length"), [("data", 512 * KIB), ("data", 100), ("journal.0", 0), ("journal.1", 512)])
def test_a_file_that_was_cut_off_is_corrupt(damaged: Store, name: str, length: int) -> None:
    os.truncate(damaged.path / name, length)
    refuse(damaged, name)


@pytest.mark.parametrize(
    ("column", "value"),
    [("uuid", "no uuid"), ("uuid", 5), ("next_seq", "many"), ("version", 9), ("features", 1)],
)
def test_a_superblock_of_garbage_is_corrupt(damaged: Store, column: str, value: object) -> None:
    edit_database(damaged, f"UPDATE pool SET {column} = ?", value)
    refuse(damaged, "meta.db")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"{}",
        b"[" * 100_000,
        b'{"uuid": 5, "volumes": []}',
        b'{"volumes": [{"lun": Infinity}], "name": "x"}',
    ],
)
@pytest.mark.parametrize("kind", ["group", "snapshot"])
def test_a_catalogue_value_of_garbage_is_corrupt(damaged: Store, kind: str, value: bytes) -> None:
    edit_database(damaged, "UPDATE catalog SET value = ? WHERE kind = ?", pack_node(value), kind)
    refuse(damaged, "catalogue")


def test_a_catalogue_that_names_a_map_that_is_not_there_is_corrupt(damaged: Store) -> None:
    edit_database(damaged, "DELETE FROM root")
    refuse(damaged, "is not there")


def test_a_missing_page_is_corrupt_and_not_a_range_of_zeros(damaged: Store) -> None:
    edit_database(damaged, "DELETE FROM node WHERE id > 4294967296")
    refuse(damaged, "not there")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("DELETE FROM node WHERE id < 4294967296", "names a leaf that is not there"),
        ("UPDATE node SET data = zeroblob(length(data)) WHERE id < 4294967296", "checksum"),
        ("UPDATE node SET data = zeroblob(7) WHERE id > 4294967296", "bytes"),
    ],
)
def test_a_damaged_node_is_a_medium_error_where_it_is_read(damaged: Store, damage: str, match: str) -> None:
    """Nodes are read when they are needed: what does not need this one works on."""
    edit_database(damaged, damage)
    damaged.expect_findings = True
    driver = damaged.open()
    volume = driver.pool.groups["db"].volumes[0]
    other = driver.group("other").volumes[0]
    driver.write(other, 0, pattern(7))
    with pytest.raises(MediumError, match=match) as seen:
        driver.read(volume, 4 * GRAIN, GRAIN)
    assert seen.value.offset == 4 * GRAIN
    with pytest.raises(MediumError):
        driver.write(volume, 0, pattern(8))
    with pytest.raises(MediumError):
        driver.write(volume, 512, b"x" * 512)
    assert driver.read(other, 0, GRAIN) == pattern(7)
    damaged.close()
    assert {finding.rule for finding in damaged.check().findings} == {2}


def test_the_databases_log_is_settled_before_sqlite_sees_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync the cache shows a commit that the disk lacks; closing SQLite would put it into meta.db."""
    store.open()
    store.kill()
    steps: list[str] = []
    for name in ("settle_database", "database"):
        monkeypatch.setattr(HostDirectory, name, noting(steps, name, getattr(HostDirectory, name)))
    store.open()
    assert steps[0] == "settle_database"


def noting(steps: list[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        steps.append(name)
        return real(*arguments)

    return call


# ------------------------------------------------------------------------------------------------- creation


class Interrupted(Exception):
    """The process dies here."""


@pytest.mark.parametrize("step", range(12))
def test_a_creation_that_dies_at_any_step_is_begun_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    left = [step]
    with monkeypatch.context() as patch:
        for owner, name in [
            (HostFile, "write"),
            (HostFile, "sync"),
            (HostDirectory, "open"),
            (HostDirectory, "sync"),
            (HostDirectory, "database"),
            (MetaDb, "create"),
        ]:
            patch.setattr(owner, name, dying(getattr(owner, name), left))
        with pytest.raises(Interrupted):
            store.open()
    driver = store.open()
    driver.write(driver.group().volumes[0], 0, pattern(1))


def dying(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """``real``, until so many calls of all that share ``left`` were made."""

    def call(*arguments: Any, **more: Any) -> Any:
        if left[0] == 0:
            raise Interrupted
        left[0] -= 1
        return real(*arguments, **more)

    return call


def test_the_directory_of_a_new_pool_is_made_durable_in_its_parents(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store.path = store.path / "deep" / "er"
    store.open()
    for parent in list(store.path.parents)[:3]:
        assert str(parent) in synced


# ------------------------------------------------------------------------------------------------- a host that is full


def test_a_pool_on_a_full_host_opens_with_the_space_of_its_reserve() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    driver.write(driver.group(size=MIB).volumes[0], 0, pattern(1))
    disk.open("reserve", create=True)
    disk.faults["commit", "meta.db"] = [errno.ENOSPC]
    driver = open_disk(disk)
    assert not disk.exists("reserve")
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)


def test_a_host_that_is_too_full_to_open_a_pool_is_not_called_corruption() -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    driver.write(driver.group(size=MIB).volumes[0], 0, pattern(1))
    disk.faults["commit", "meta.db"] = [errno.ENOSPC]
    with pytest.raises(OSError, match="told to fail") as raised:
        open_disk(disk)
    assert raised.value.errno == errno.ENOSPC
    driver = open_disk(disk)
    assert driver.read(driver.pool.groups["db"].volumes[0], 0, GRAIN) == pattern(1)
