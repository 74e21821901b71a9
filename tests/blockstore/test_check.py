"""check finds what it says it finds: for each rule a pool that breaks it, made by writing a wrong image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from blockstore.blockmap import BlockMap
from blockstore.catalog import Catalog
from blockstore.check import RULES, check_directory
from blockstore.layout import LEAF_SHIFT
from blockstore.pool import EnginePool
from tests.blockstore.powercut import TUNING, FakeDisk, open_disk
from tests.blockstore.support import GRAIN, MIB, pattern


def volume_map(pool: EnginePool) -> tuple[BlockMap, int]:
    """The block map, and where the first volume's first leaf begins in it."""
    blockmap = pool.blockmap
    number = pool.catalog.groups["db"].maps[0]
    return blockmap, blockmap.leaf_of(blockmap.maps[number], 0) << LEAF_SHIFT


def name_a_missing_block(pool: EnginePool) -> None:
    blockmap, at = volume_map(pool)
    blockmap.leaves.entries[at] = 1 << 30


def set_reserved_bits(pool: EnginePool) -> None:
    blockmap, at = volume_map(pool)
    blockmap.leaves.entries[at] |= 1 << 60


def share_a_block_with_another_checksum(pool: EnginePool) -> None:
    blockmap, at = volume_map(pool)
    blockmap.leaves.entries[at] = blockmap.leaves.entries[at + 1]


def name_a_private_block_twice(pool: EnginePool) -> None:
    blockmap = pool.blockmap
    one = blockmap.maps[pool.catalog.groups["db"].maps[0]]
    blockmap.write_one(one, 9, *blockmap.entry(one, 4))


def share_a_writable_leaf(pool: EnginePool) -> None:
    for one in pool.blockmap.maps.values():
        one.generation = 1


def lose_a_mapped_grain(pool: EnginePool) -> None:
    blockmap, at = volume_map(pool)
    blockmap.leaves.entries[at] = 0


def map_behind_the_end(pool: EnginePool) -> None:
    blockmap, at = volume_map(pool)
    blockmap.leaves.entries[at + 300] = blockmap.leaves.entries[at]
    blockmap.leaves.crcs[at + 300] = blockmap.leaves.crcs[at]


def take_the_lun_numbers_back(pool: EnginePool) -> None:
    _change_group(pool.catalog, next_lun=0)


def forget_a_volume(pool: EnginePool) -> None:
    _change_group(pool.catalog, volumes=())


def _change_group(catalog: Catalog, **changes: object) -> None:
    entry = catalog.groups["db"]
    catalog.apply(replace(entry, record=replace(entry.record, **changes)).put())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (map_behind_the_end, 3),
        (name_a_missing_block, 4),
        (set_reserved_bits, 4),
        (share_a_block_with_another_checksum, 5),
        (name_a_private_block_twice, 6),
        (share_a_writable_leaf, 6),
        (name_a_missing_block, 7),
        (share_a_writable_leaf, 10),
        (lose_a_mapped_grain, 11),
        (take_the_lun_numbers_back, 13),
        (forget_a_volume, 13),
    ],
)
def test_check_finds_what_breaks_a_rule(damage: Callable[[EnginePool], None], rule: int) -> None:
    disk = FakeDisk()
    driver = open_disk(disk)
    group = driver.group(size=MIB)
    driver.write(group.volumes[0], 0, pattern(1, 4 * GRAIN) + pattern(2))
    driver.write(group.volumes[0], GRAIN, pattern(3))
    driver.wait(group.snapshot("s"))
    pool = driver.engine
    damage(pool)
    blockmap = pool.blockmap
    for nodes in (blockmap.leaves, blockmap.pages):  # everything into the next image
        nodes.dirty.extend(np.flatnonzero(np.frombuffer(nodes.state, np.uint8, nodes.top))[1:].tolist())
        for node in nodes.dirty:
            nodes.state[node] = 2
    blockmap.dirty_maps.update(blockmap.maps)
    driver.wait(driver.pool.checkpoint())
    report = check_directory(disk, deep=True, map_leaves=TUNING.map_leaves)
    assert rule in {finding.rule for finding in report.findings}, report
    assert {finding.rule for finding in report.findings} <= set(RULES)
