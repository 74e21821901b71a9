"""The store directory: one daemon, every pool that is or was there, and nothing made by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockyard.daemon.store import KNOWN, StoreDirectory
from blockyard.errors import InUse, Invalid, Locked, NotFound


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    """The ``pools`` directory of a store that is begun."""
    StoreDirectory(tmp_path / "store", create=True).close()
    return tmp_path / "store" / "pools"


def test_a_store_lets_one_daemon_in(tmp_path: Path) -> None:
    store = StoreDirectory(tmp_path / "store", create=True)
    with pytest.raises(Locked, match=f"process {os.getpid()}"):
        StoreDirectory(tmp_path / "store", create=True)
    store.close()
    StoreDirectory(tmp_path / "store", create=True).close()


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="cannot be used"):
        StoreDirectory(tmp_path / "file", create=True)


@pytest.mark.parametrize("left", ["", "lost+found"])
def test_where_no_store_is_none_is_begun_unasked(tmp_path: Path, left: str) -> None:
    """An empty mount point: serving it would tell initiators that their targets do not exist."""
    (tmp_path / "mount" / left).mkdir(parents=True)
    with pytest.raises(NotFound, match=r"holds no store: mount its file system.*--create"):
        StoreDirectory(tmp_path / "mount")
    assert [entry.name for entry in (tmp_path / "mount").iterdir()] == ([left] if left else [])
    with pytest.raises(NotFound):
        StoreDirectory(tmp_path / "nowhere")


def test_a_store_is_not_begun_where_a_file_system_is_to_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstab = tmp_path / "fstab"
    monkeypatch.setattr("blockyard.daemon.store._FSTAB", fstab)
    fstab.write_text(f"# /dev/x {tmp_path}/other ext4\n/dev/vda / ext4 defaults 0 1\n/dev/sdb {tmp_path}/mount ext4\n")
    for place in (tmp_path / "mount", tmp_path / "mount" / "deep" / "store"):
        with pytest.raises(Invalid, match=f"{tmp_path}/mount is not mounted though .*fstab names it"):
            StoreDirectory(place, create=True)
    StoreDirectory(tmp_path / "other", create=True).close()


def test_a_store_is_not_begun_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(Invalid, match="other things \\(photos\\)"):
        StoreDirectory(tmp_path, create=True)


def test_pools_are_made_up_to_the_number_of_workers(pools: Path) -> None:
    store = StoreDirectory(pools.parent, create=True)
    assert [(name, place.create) for name, place in store.pools(2).items()] == [("pool-0", True), ("pool-1", True)]
    for name in ("pool-10", "pool-1", "archive", "lost+found", ".trash"):
        (pools / name).mkdir()
    assert list(store.pools(1)) == ["pool-1", "pool-10", "archive"]
    assert list(store.pools(5)) == ["pool-0", "pool-1", "pool-2", "pool-10", "archive"]
    store.close()


def test_without_create_fewer_pools_than_workers_are_refused(pools: Path) -> None:
    (pools / "fast").mkdir()
    store = StoreDirectory(pools.parent)
    assert [(name, place.create) for name, place in store.pools(1).items()] == [("fast", False)]
    with pytest.raises(NotFound, match="has 1 pool\\(s\\), --workers asks for 2"):
        store.pools(2)
    store.close()


def test_a_pool_that_was_served_is_missed_and_never_made_anew(pools: Path) -> None:
    store = StoreDirectory(pools.parent, create=True)
    store.note_served("pool-0")
    store.note_served("pool-1")
    store.close()
    store = StoreDirectory(pools.parent, create=True)
    assert [(name, place.create) for name, place in store.pools(3).items()] == [
        ("pool-0", False),
        ("pool-1", False),
        ("pool-2", True),
    ]
    store.close()


def test_a_pool_is_forgotten_once_its_directory_is_gone(pools: Path) -> None:
    store = StoreDirectory(pools.parent, create=True)
    store.note_served("pool-0")
    (pools / "pool-0").mkdir()
    with pytest.raises(InUse, match="move it out"):
        store.forget("pool-0")
    (pools / "pool-0").rmdir()
    store.forget("pool-0")
    assert (pools.parent / KNOWN).read_text() == ""
    with pytest.raises(NotFound):
        store.forget("pool-0")
    store.close()
