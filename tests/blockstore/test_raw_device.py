"""Pools whose data lies on a whole block device: loop devices with sectors of 512 and of 4096 bytes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.api import AlreadyExists, Corrupt, InUse, Invalid, OutOfSpace, Volume
from blockstore.creation import create_pool
from blockstore.dump import dump_pool
from blockstore.hostfile import GUARD, DeviceFile, HostFile
from blockstore.layout import UNIT, UNIT_SHIFT, parse_data_header
from blockstore.pool import Tuning
from blockstore.signatures import stable_path
from tests.blockstore.support import GRAIN, KIB, MIB, Driver, Store, pattern
from tests.loopdevice import LoopDevice, loop_device

SIZE = 64 * MIB
pytestmark = pytest.mark.slow
TUNING = Tuning(grow_step=8 * MIB, keep_free=0, reserve=0, map_leaves=1 << 12)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE, request.param) as made:
        yield made


@pytest.fixture
def other(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as made:
        yield made


@pytest.fixture
def raw(device: LoopDevice, tmp_path: Path) -> Iterator[Store]:
    """A pool on ``device``; after the test ``check`` has proved it whole."""
    store = raw_store(tmp_path / "pool", device)
    yield store
    store.prove_whole()


def raw_store(path: Path, device: LoopDevice, *, force: bool = False) -> Store:
    create_pool(path, path.name, device=device.path, force=force, journal_size=256 * KIB)
    return Store(path, tuning=TUNING)


def fill(driver: Driver, volume: Volume) -> int:
    """Write until nothing is free; how many bytes it took."""
    for written in range(0, volume.size, MIB):
        try:
            driver.write(volume, written, pattern(written, MIB))
        except OutOfSpace:
            return written
    raise AssertionError("the device never was full")


def holders(path: Path) -> list[str]:
    """Signatures that the host's own tools find."""
    done = subprocess.run(["wipefs", "-n", "-o", "TYPE", "--noheadings", str(path)], capture_output=True, text=True)
    return done.stdout.split()


# ------------------------------------------------------------------------------------------------- data


def test_flushed_writes_survive_a_kill_and_the_check_reads_every_block(raw: Store) -> None:
    driver = raw.open()
    volume = driver.group(size=32 * MIB).volumes[0]
    driver.write(volume, 0, pattern(1, 4 * MIB), sync=True)
    driver.write(volume, 8 * MIB + 512, pattern(2, 1024))  # ragged, and never flushed: the process alone dies
    driver = raw.reopen()
    volume = driver.pool.groups["db"].volumes[0]
    assert driver.read(volume, 0, 4 * MIB) == pattern(1, 4 * MIB)
    assert driver.read(volume, 8 * MIB + 512, 1024) == pattern(2, 1024)
    raw.close()
    report = raw.check()
    assert (report.findings, report.verified_blocks) == ((), 4 * MIB // GRAIN + 1)


def test_a_pools_size_is_its_devices_and_nothing_grows(raw: Store, device: LoopDevice) -> None:
    driver = raw.open()
    statistics = driver.pool.statistics()
    assert (statistics.size, statistics.data) == (SIZE - GUARD, str(device.path))
    assert driver.engine._space.allocator.free == (SIZE - 2 * GUARD) >> UNIT_SHIFT


def test_a_full_device_refuses_reads_on_and_heals_by_deletes(raw: Store) -> None:
    driver = raw.open()
    volume = driver.group(size=128 * MIB).volumes[0]
    written = fill(driver, volume)
    assert SIZE - 4 * MIB <= written <= SIZE - 2 * MIB
    assert driver.read(volume, written - MIB, MIB) == pattern(written - MIB, MIB)
    driver.discard(volume, 0, 8 * MIB)
    driver.wait(driver.pool.sweep())
    driver.write(volume, 0, pattern(3, 8 * MIB))
    assert driver.read(volume, 0, 8 * MIB) == pattern(3, 8 * MIB)


def test_a_device_that_grew_is_used_to_its_new_end_from_the_next_open_on(raw: Store, device: LoopDevice) -> None:
    raw.open()
    device.grow(2 * SIZE)
    assert raw.reopen().pool.statistics().size == 2 * SIZE - GUARD


def test_a_device_that_shrank_below_what_is_in_use_is_refused(raw: Store, device: LoopDevice) -> None:
    driver = raw.open()
    driver.write(driver.group(size=32 * MIB).volumes[0], 0, pattern(1, 32 * MIB), sync=True)
    raw.close()
    device.grow(16 * MIB)
    with pytest.raises(Corrupt, match="16777216 bytes; blocks up to"):
        raw.open()
    device.grow(SIZE)
    raw.expect_findings = True  # what lay behind the end is gone


def test_a_size_limit_below_the_devices_size_holds(raw: Store) -> None:
    raw.size_limit = 32 * MIB
    driver = raw.open()
    assert driver.pool.statistics().size == 32 * MIB
    assert driver.engine._space.allocator.blocks == 32 * MIB >> UNIT_SHIFT


def test_clients_data_never_lies_where_hosts_look_for_signatures(raw: Store, device: LoopDevice) -> None:
    """A client's RAID superblock at the right place would make Linux take the pool's device for a RAID member."""
    driver = raw.open()
    volume = driver.group(size=128 * MIB).volumes[0]
    fill(driver, volume)
    driver.discard(volume, 0, 16 * MIB)
    driver.wait(driver.pool.sweep())
    driver.write(volume, 0, pattern(7, 16 * MIB), sync=True)
    raw.close()
    content = device.path.open("rb").read()
    assert content[UNIT:GUARD] == bytes(GUARD - UNIT)
    assert content[-GUARD:] == bytes(GUARD)
    assert holders(device.path) == []


# ------------------------------------------------------------------------------------------------- the file


def test_a_device_file_allocates_within_its_size_and_finds_no_space_behind_it(raw: Store) -> None:
    file = DeviceFile(raw.path / "data")
    file.allocate(0, SIZE)
    with pytest.raises(OSError, match=f"{SIZE} bytes") as raised:
        file.allocate(SIZE - GRAIN, 2 * GRAIN)
    assert raised.value.errno == errno.ENOSPC
    assert file.reads_medium
    file.close()


def test_a_punched_range_reads_as_zeros_and_its_space_is_back(device: LoopDevice, raw: Store) -> None:
    file = DeviceFile(raw.path / "data")
    file.write(8 * MIB, (pattern(1, 16 * MIB),))
    file.sync()
    before = device.stored_bytes()
    file.punch(8 * MIB, 8 * MIB)
    assert device.stored_bytes() <= before - 7 * MIB
    assert file.read_stored(16 * MIB - GRAIN, 2 * GRAIN) == bytes(GRAIN) + pattern(1, GRAIN)
    file.close()


# ------------------------------------------------------------------------------------------------- whose it is


def test_an_open_pools_device_can_neither_be_opened_again_nor_mounted(raw: Store, device: LoopDevice) -> None:
    raw.open()
    with pytest.raises(OSError, match="is in use: mounted, or part of another device or pool"):
        DeviceFile(raw.path / "data")
    with pytest.raises(OSError, match="busy"):
        os.open(device.path, os.O_RDWR | os.O_EXCL)
    raw.kill()
    os.close(os.open(device.path, os.O_RDWR | os.O_EXCL))


def test_a_mounted_device_is_refused(device: LoopDevice, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", str(device.path)], check=True, timeout=60)
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", str(device.path), str(mount)], check=True, timeout=30)
    try:
        with pytest.raises(OSError, match="is in use: mounted"):
            create_pool(tmp_path / "pool", "pool", device=device.path, force=True)
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=30)
    assert not (tmp_path / "pool").exists()


def test_the_wrong_device_is_refused_with_what_was_seen_and_expected(
    raw: Store, other: LoopDevice, tmp_path: Path
) -> None:
    stranger = create_pool(tmp_path / "stranger", "stranger", device=other.path, journal_size=256 * KIB)
    with LedAstray(raw.path / "data", other.path), pytest.raises(Corrupt) as raised:
        raw.open()
    assert str(other.path) in str(raised.value)
    assert f"of pool {stranger}; meta.db is of pool" in str(raised.value)


def test_a_device_that_something_else_was_put_on_is_refused(raw: Store, other: LoopDevice) -> None:
    subprocess.run(["mkfs.ext4", "-q", str(other.path)], check=True, timeout=60)
    with LedAstray(raw.path / "data", other.path):
        with pytest.raises(Corrupt, match=f"{other.path} is no data of pool .*checksum"):
            raw.open()
        assert "is no data of pool" in raw.check().findings[0].message


def test_a_device_that_is_not_there_may_come_back_and_is_no_corruption(raw: Store) -> None:
    gone = LedAstray(raw.path / "data", Path("/dev/disk/by-id/none"))
    with gone, pytest.raises(FileNotFoundError, match="/dev/disk/by-id/none, which is not there"):
        raw.open()
    raw.open()


def test_a_device_without_a_medium_may_come_back_and_is_no_corruption(raw: Store) -> None:
    unused = subprocess.run(["losetup", "--find"], check=True, capture_output=True, text=True, timeout=30)
    with LedAstray(raw.path / "data", Path(unused.stdout.strip())), pytest.raises(OSError, match="has no medium"):
        raw.open()


@pytest.mark.parametrize("target", ["/dev/null", "/etc/hostname", "relative"])
def test_a_link_to_anything_but_a_block_device_is_refused(raw: Store, target: str) -> None:
    (raw.path / "relative").write_bytes(bytes(SIZE))
    with LedAstray(raw.path / "data", Path(target)), pytest.raises(Corrupt, match="path of a block device"):
        raw.open()


class LedAstray:
    """``link`` leads to ``target`` for a while."""

    def __init__(self, link: Path, target: Path) -> None:
        self._link, self._target = link, target

    def __enter__(self) -> None:
        self._before = self._link.readlink()
        self._set(self._target)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def _set(self, target: Path) -> None:
        self._link.unlink()
        self._link.symlink_to(target)


def test_dump_names_the_device(raw: Store, device: LoopDevice) -> None:
    assert f"{device.path}: {SIZE} bytes" in list(dump_pool(raw.path))


# ------------------------------------------------------------------------------------------------- creation


def partition_table(path: Path) -> None:
    entry = bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
    path.open("r+b").write(bytes(446) + entry + bytes(48) + b"\x55\xaa")


def raid_member(path: Path) -> None:
    """A version 1.0 superblock of Linux md lies at the end: 8 KiB before it, aligned to 4 KiB."""
    magic, version = (0xA92B4EFC).to_bytes(4, "little"), (1).to_bytes(4, "little")
    sector = (SIZE - 8 * KIB) // 512
    superblock = bytearray(1024)
    superblock[0:8] = magic + version
    superblock[144:152] = sector.to_bytes(8, "little")
    total = sum(int.from_bytes(superblock[i : i + 4], "little") for i in range(0, 256, 4))
    superblock[216:220] = ((total & 0xFFFFFFFF) + (total >> 32)).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.seek(SIZE - 8 * KIB)
        file.write(superblock)


CARRIED = {
    "ext4": lambda path: subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, timeout=60),
    "swap": lambda path: subprocess.run(["mkswap", str(path)], check=True, timeout=60, capture_output=True),
    "dos": partition_table,
    "linux_raid_member": raid_member,
}


@pytest.mark.parametrize("what", CARRIED)
def test_a_device_that_carries_something_is_taken_only_by_force(other: LoopDevice, tmp_path: Path, what: str) -> None:
    CARRIED[what](other.path)
    before = other.path.open("rb").read()
    with pytest.raises(InUse, match=f"carries .*{what}"):
        create_pool(tmp_path / "pool", "pool", device=other.path, journal_size=256 * KIB)
    assert other.path.open("rb").read() == before
    assert not (tmp_path / "pool").exists()
    store = raw_store(tmp_path / "pool", other, force=True)
    assert holders(other.path) == []
    store.open()
    store.prove_whole()


def test_another_pools_device_is_taken_only_by_force(raw: Store, device: LoopDevice, tmp_path: Path) -> None:
    owner, _ = parse_data_header(device.path.open("rb").read(UNIT))
    with pytest.raises(InUse, match=f"carries data of pool {owner}"):
        create_pool(tmp_path / "second", "second", device=device.path)
    with pytest.raises(AlreadyExists):
        create_pool(raw.path, "pool", device=device.path, force=True)


def test_what_is_no_block_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    with pytest.raises(Invalid, match="is no block device"):
        create_pool(tmp_path / "pool", "pool", device=tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        create_pool(tmp_path / "pool", "pool", device=tmp_path / "none")
    assert not (tmp_path / "pool").exists()


def test_a_creation_that_died_is_not_served_and_is_begun_anew_by_force(
    other: LoopDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr("blockstore.checkpoint.MetaDb.create", die)
        with pytest.raises(OSError, match="dies here"):
            create_pool(tmp_path / "pool", "pool", device=other.path, journal_size=256 * KIB)
    store = Store(tmp_path / "pool", tuning=TUNING)
    with pytest.raises(Corrupt, match="its creation was interrupted"):
        store.open()
    store = raw_store(tmp_path / "pool", other, force=True)
    store.open()
    store.prove_whole()


def test_the_path_that_is_kept_is_one_that_outlives_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: LoopDevice
) -> None:
    """Kernel names are given anew at every start; the links of by-id are not."""
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    monkeypatch.setattr("blockstore.signatures._BY_ID", by_id)
    assert stable_path(other.path) == other.path  # there is no better one
    (by_id / "ata-disk_1").symlink_to("/dev/null")
    (by_id / "wwn-0x5000").symlink_to(other.path)
    assert stable_path(other.path) == by_id / "wwn-0x5000"
    with pytest.raises(FileNotFoundError):
        stable_path(Path("/dev/none-of-that-name"))


def test_journals_stay_in_the_directory(raw: Store) -> None:
    driver: Driver = raw.open()
    assert {file.name for file in driver.engine._journal._files} == {"journal.0", "journal.1"}
    assert not any(isinstance(file, DeviceFile) for file in driver.engine._journal._files)
    assert all(isinstance(file, HostFile) for file in driver.engine._journal._files)
