"""Counting who owns how many blocks, from the last checkpoint: ``python -m blockstore.accounting META.DB``.

It runs in a process of its own, because numpy and SQLite would take turns with the loop thread on one interpreter
lock. It reads ``meta.db`` in one read transaction, so its answer is of one moment, whatever is written meanwhile: the
switch of the checkpoint that it finds. Every unique leaf is read once (once per TiB of data file, to bound memory).
When to count and what to do with the answer is ``accountant``'s.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from blockstore.api import GroupUsage, SnapshotUsage, VolumeUsage
from blockstore.catalog import Catalog
from blockstore.checkpoint import MetaDb
from blockstore.device import read_only
from blockstore.layout import (
    BLOCK_MASK,
    ENTRY,
    LEAF_BYTES,
    LEAF_ENTRIES,
    NODE_ID,
    PAGE_ENTRIES,
    PAGE_NODE,
)
from blockstore.owners import NOBODY, POOL, Owners, OwnerTree

_RANGE = 1 << 28  # blocks (1 TiB) whose owners are kept at a time: 1 GiB of memory
_LEAVES = 256  # read in one go
_PAGES = 32
_SLICE = 1 << 22  # owners counted in one go

Report = Callable[[float], None]
"""Told how much is done, 0 to 1."""


def count(path: str, report: Report = lambda done: None) -> tuple[int, dict[UUID, GroupUsage]]:
    """(first journal batch that the answer does not cover, usage by group). Raises sqlite3.Error, FormatError."""
    connection = read_only(Path(path))
    try:
        connection.execute("BEGIN")  # one moment for all that is read
        return _Count(connection, report).run()
    finally:
        connection.close()


class _Count:
    def __init__(self, connection: sqlite3.Connection, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._database = MetaDb(connection)
        self._superblock = self._database.superblock()
        catalog = Catalog()
        for kind, key, value in self._database.catalog():
            catalog.load(kind, key, value)
        self._tree = OwnerTree(catalog)
        self._mapped: dict[int, int] = {}

    def run(self) -> tuple[int, dict[UUID, GroupUsage]]:
        leaves = self._own_leaves(self._own_pages())
        owned = np.zeros(len(self._tree), np.int64)
        blocks = self._superblock.high_water
        for first in range(0, blocks, _RANGE):
            owners = np.full(min(_RANGE, blocks - first), NOBODY, np.uint32)
            for done in self._own_blocks(owners, first, leaves):
                self._report((first + done * len(owners)) / blocks)
            for at in range(0, len(owners), _SLICE):
                part = owners[at : at + _SLICE]
                owned += np.bincount(part[part != NOBODY], minlength=len(owned))
        return self._superblock.next_seq, self._tree.usage(owned, self._mapped)

    def _own_pages(self) -> Owners:
        """Owners by page id."""
        pages = _nobody(self._database.last_node(PAGE_NODE))
        for root in self._database.roots():
            self._mapped[root.number] = root.mapped
            ids = np.frombuffer(root.root, np.uint32)
            ids = ids[ids != 0]
            self._tree.join(pages, ids, np.full(len(ids), self._tree.of_map.get(root.number, POOL), np.uint32))
        return pages

    def _own_leaves(self, pages: Owners) -> Owners:
        """Owners by leaf id."""
        leaves = _nobody(self._database.last_node(0))
        for ids, bodies in self._database.bodies(PAGE_NODE, _PAGES):
            named = np.frombuffer(bodies, NODE_ID)
            owners = np.repeat(pages[ids], PAGE_ENTRIES)
            used = (named != 0) & (owners != NOBODY)  # nobody's are pages that the next sweep deletes
            self._tree.join(leaves, named[used], owners[used])
        return leaves

    def _own_blocks(self, owners: Owners, first: int, leaves: Owners) -> Iterator[float]:
        """Fill in the owners of the blocks from ``first`` on; yields how much is done."""
        for ids, bodies in self._database.bodies(0, _LEAVES):
            rows = np.frombuffer(bodies, np.uint8).reshape(-1, LEAF_BYTES)[:, : LEAF_ENTRIES * ENTRY.itemsize]
            blocks = (np.ascontiguousarray(rows).view(ENTRY).ravel() & np.uint64(BLOCK_MASK)).astype(np.int64)
            joining = np.repeat(leaves[ids], LEAF_ENTRIES)
            used = (blocks != 0) & (joining != NOBODY)
            blocks -= first
            used &= (blocks >= 0) & (blocks < len(owners))
            if not used.all():
                blocks, joining = blocks[used], joining[used]
            self._tree.join(owners, blocks, joining)
            yield int(ids[-1]) / len(leaves)


def _nobody(last: int) -> Owners:
    return np.full(last + 1, NOBODY, np.uint32)


# ------------------------------------------------------------------------------------------------ between processes


def dump(next_seq: int, groups: dict[UUID, GroupUsage]) -> str:
    return json.dumps(
        {
            "next_seq": next_seq,
            "groups": {
                group.hex: {
                    "exclusive": usage.exclusive,
                    "reclaimable": usage.reclaimable,
                    "volumes": {lun: asdict(volume) for lun, volume in usage.volumes.items()},
                    "snapshots": {uuid.hex: [own.mapped, own.exclusive] for uuid, own in usage.snapshots.items()},
                }
                for group, usage in groups.items()
            },
        }
    )


def parse(line: str) -> tuple[int, dict[UUID, GroupUsage]]:
    """What ``dump`` made."""
    answer: dict[str, Any] = json.loads(line)
    return answer["next_seq"], {UUID(key): _group(value) for key, value in answer["groups"].items()}


def _group(value: dict[str, Any]) -> GroupUsage:
    return GroupUsage(
        exclusive=value["exclusive"],
        reclaimable=value["reclaimable"],
        volumes={int(lun): VolumeUsage(**volume) for lun, volume in value["volumes"].items()},
        snapshots={UUID(key): SnapshotUsage(*snapshot) for key, snapshot in value["snapshots"].items()},
    )


def main() -> None:
    os.nice(10)  # the worker's I/O comes first
    path = sys.argv[1]
    print(dump(*count(path, lambda done: print(f"{done:.3f}", flush=True))))


if __name__ == "__main__":
    main()
