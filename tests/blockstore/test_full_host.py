"""A host file system that is really full: a tmpfs of 64 MiB, where the tests may mount one.

What must go on: reads, UNMAP, deletes, checkpoints (they get the reserve), and opening again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.api import OutOfSpace
from blockstore.pool import Tuning
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Answer, Store, pattern

TUNING = Tuning(grow_step=4 * MIB, keep_free=0, reserve=4 * MIB, map_leaves=1 << 12)


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 64 MiB. Where none may be mounted it is the ordinary one: never full, and the
    same steps must pass there too (test_faults.py has the fake that says it is full)."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    yield mount
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill_up(directory: Path) -> Path:
    """Take all that the host has left, to the last page, but no more than 64 MiB."""
    path = directory / "somebody-else"
    with path.open("wb", buffering=0) as file:
        try:
            for _ in range(64 * MIB // (4 * KIB)):
                file.write(b"x" * 4 * KIB)
        except OSError:
            os.fsync(file.fileno())
    return path


def test_a_pool_on_a_full_host_reads_unmaps_deletes_checkpoints_and_opens(small_host: Path) -> None:
    store = Store(small_host / "pool", tuning=TUNING)
    driver = store.open()
    group, other = driver.group("db", size=64 * MIB), driver.group("other", size=64 * MIB)
    driver.write(group.volumes[0], 0, pattern(1, 8 * MIB))
    driver.write(other.volumes[0], 0, pattern(2, 8 * MIB))
    driver.wait(driver.pool.checkpoint())
    fill_up(small_host)
    while len(group.snapshots) < 20:  # until it is full; a host that never is goes on
        try:
            driver.write(group.volumes[0], 0, pattern(3, 4 * MIB))
        except OutOfSpace:
            break
        driver.wait(group.snapshot(f"s{len(group.snapshots)}"))
    assert driver.pool.statistics().state == "serving"
    assert driver.read(other.volumes[0], 0, 8 * MIB) == pattern(2, 8 * MIB)
    driver.discard(other.volumes[0], 0, 4 * MIB)
    driver = store.reopen()
    group, other = driver.pool.groups["db"], driver.pool.groups["other"]
    assert driver.read(other.volumes[0], 0, 8 * MIB) == bytes(4 * MIB) + pattern(2, 4 * MIB)
    driver.wait(driver.pool.delete_group("other"))
    for name in list(group.snapshots):
        driver.wait(group.delete_snapshot(name))
    driver.runner.advance(5)
    driver.wait(driver.pool.sweep())
    driver.write(group.volumes[0], 32 * MIB, pattern(4, 2 * MIB))
    assert driver.read(group.volumes[0], 32 * MIB, 2 * MIB) == pattern(4, 2 * MIB)
    assert driver.read(group.volumes[0], 4 * MIB, 4 * MIB) == pattern(1, 4 * MIB)
    driver.wait(driver.pool.checkpoint())
    store.prove_whole()


def test_a_checkpoint_of_many_nodes_finds_no_room_and_heals_when_there_is_some(small_host: Path) -> None:
    """The database's log cannot grow: nothing is lost, the pool serves on, and saves everything later."""
    store = Store(small_host / "pool", tuning=Tuning(grow_step=4 * MIB, keep_free=0, reserve=MIB, map_leaves=1 << 12))
    driver = store.open()
    volume = driver.group(size=8 << 30).volumes[0]
    for i in range(800):  # 4.7 MiB of leaves
        driver.write(volume, i * 2 * MIB, pattern(i))
    path = fill_up(small_host)
    answers = [Answer() for _ in range(800)]
    for i, answer in enumerate(answers):  # every leaf again, in one batch
        volume.write(i * 2 * MIB, pattern(i), PERMIT, answer)
    checkpoint = driver.pool.checkpoint()
    driver.runner.advance(3)
    assert all(answer.ok for answer in answers)
    assert driver.pool.statistics().state == "serving"
    assert checkpoint.done()
    driver.discard(volume, 0, GRAIN)
    assert driver.read(volume, 2 * MIB, GRAIN) == pattern(1)
    path.unlink()
    driver.runner.advance(3)
    driver.wait(driver.pool.checkpoint())
    driver = store.reopen()
    assert driver.engine.recovered.batches == 0
    volume = driver.pool.groups["db"].volumes[0]
    for i in range(1, 800):
        assert driver.read(volume, i * 2 * MIB, GRAIN) == pattern(i)
    store.prove_whole()
