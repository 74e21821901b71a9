"""``check``: proves a closed pool whole, or names what is not. Changes nothing.

It builds the state that opening would build (image plus journal) and verifies it against the rules; each finding has
the number of the rule. ``deep`` also reads every stored grain. A torn tail of the journal is what crashes leave and is
no finding; it is counted.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from blockstore.api import AttachMode, Corrupt, GroupRecord, StoreError, VolumeRecord
from blockstore.blockmap import PAGE_GRAIN_SHIFT, BlockMap, Map
from blockstore.catalog import Catalog, SnapshotEntry
from blockstore.checkpoint import MetaDb
from blockstore.device import Directory, File, HostDirectory
from blockstore.layout import BLOCK_MASK, LEAF_ENTRIES, LEAF_SHIFT, PRIVATE_BIT, UNIT, UNIT_SHIFT
from blockstore.recovery import Replay, open_files, replay
from blockstore.staging import staged_receives

RULES = {
    1: "data, meta.db and journals carry one uuid and a known version",
    2: "meta.db is sound and every node matches its checksum",
    3: "every root and page names existing nodes within the volume's size",
    4: "every map entry is well-formed and lies within the data file",
    5: "a block that is shared is shared by identical entries",
    6: "a node that may be changed in place belongs to one map",
    7: "every referenced block counts as used",
    8: "no flushed batch of the journal is missing",
    9: "every stored grain matches its checksum",
    10: "snapshots consist of frozen nodes only",
    11: "the counts kept of a map are those of its entries",
    13: "the catalogue is whole: maps, sizes, LUNs, names, identities and attachments",
}
_DEEP_RUN = 256  # blocks read in one go
_MAP_LEAVES = 1 << 22

Entries = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Finding:
    rule: int
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    findings: tuple[Finding, ...]
    volumes: int = 0
    snapshots: int = 0
    mapped_blocks: int = 0
    """Distinct blocks that some map references."""
    replayed_batches: int = 0
    dropped_batches: int = 0
    """Batches of a torn tail: appended, never flushed, not whole."""
    verified_blocks: int = 0
    """Read and compared (deep)."""

    @property
    def ok(self) -> bool:
        return not self.findings


def check_pool(path: Path, *, deep: bool = False) -> CheckReport:
    """Check the pool in directory ``path``, under its lock. Raises Locked, OSError."""
    directory = HostDirectory(path)
    try:
        return check_directory(directory, deep=deep)
    finally:
        directory.close()


def check_directory(directory: Directory, *, deep: bool, map_leaves: int = _MAP_LEAVES) -> CheckReport:
    try:
        database, data = open_files(directory)
    except (Corrupt, sqlite3.Error) as error:
        return CheckReport((Finding(1, str(error)),))
    try:
        return _check_open(directory, database, data, deep, map_leaves)
    finally:
        data.close()
        database.close()


def _check_open(directory: Directory, database: MetaDb, data: File, deep: bool, map_leaves: int) -> CheckReport:
    try:
        errors = database.integrity_errors()
        if errors:
            return CheckReport(tuple(Finding(2, f"meta.db: {error}") for error in errors))
        state = replay(directory, database, data, map_leaves, rescue=False)
    except sqlite3.Error as error:
        return CheckReport((Finding(2, f"meta.db: {error}"),))
    except StoreError as error:
        return CheckReport((Finding(2 if "meta.db" in str(error) else 8, str(error)),))
    checker = _Checker(state, data)
    findings = list(checker.run(deep))
    snapshots = sum(map(len, state.catalog.snapshots.values()))
    return CheckReport(
        tuple(findings),
        volumes=len(state.blockmap.maps) - sum(len(entry.maps) for entry in _snapshots(state.catalog)),
        snapshots=snapshots,
        mapped_blocks=len(checker.blocks),
        replayed_batches=state.batches,
        dropped_batches=state.dropped_batches,
        verified_blocks=len(checker.blocks) if deep else 0,
    )


class _Checker:
    def __init__(self, state: Replay, data: File) -> None:
        self._state = state
        self._blockmap: BlockMap = state.blockmap
        self._data = data
        self._data_blocks = data.size() >> UNIT_SHIFT
        self.blocks: Entries = np.zeros(0, np.uint64)  # distinct, sorted
        self._crcs: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)

    def run(self, deep: bool) -> Iterator[Finding]:
        broken = False
        for finding in self._check_nodes():
            broken = True
            yield finding
        yield from check_catalog(self._state.catalog, self._blockmap)
        if broken:
            return  # what follows would walk into nodes that are not there
        yield from self._check_sharing()
        yield from self._check_entries()
        yield from self._check_counts()
        if deep:
            yield from self._check_data()

    def _check_nodes(self) -> Iterator[Finding]:
        for problem in self._blockmap.missing_nodes():
            yield Finding(3, problem)
        for one in self._blockmap.maps.values():
            yield from self._check_end(one)

    def _check_end(self, one: Map) -> Iterator[Finding]:
        """Nothing may be mapped behind the end of the volume."""
        end = one.size >> UNIT_SHIFT
        if not end or not one.root or end >> PAGE_GRAIN_SHIFT >= len(one.root):
            return
        row = self._blockmap.pages.row(one.root[-1])
        last_leaf = (end - 1 >> LEAF_SHIFT) & (len(row) - 1)
        if row[last_leaf + 1 :].any():
            yield Finding(3, f"map {one.number}: leaves are mapped behind its {one.size} bytes")
        leaf = int(row[last_leaf])
        if end % LEAF_ENTRIES and self._rows(np.array([leaf]))[0, end % LEAF_ENTRIES :].any():
            yield Finding(3, f"map {one.number}: grains are mapped behind its {one.size} bytes")

    def _check_sharing(self) -> Iterator[Finding]:
        """A node of one map's own age must not be under another map, and a snapshot has none of its own age."""
        blockmap = self._blockmap
        uses = np.zeros(blockmap.leaves.top, np.int64)
        of_map = {number: self._leaves_of(one) for number, one in blockmap.maps.items()}
        for leaves in of_map.values():
            uses[leaves] += 1
        born = np.frombuffer(blockmap.leaves.born, np.uint64)
        frozen = {number for entry in _snapshots(self._state.catalog) for number in entry.maps.values()}
        for number, leaves in of_map.items():
            own = leaves[born[leaves] >= blockmap.maps[number].generation]
            if (uses[own] > 1).any():
                yield Finding(6, f"map {number}: leaf {int(own[uses[own] > 1][0])} may be changed but is shared")
            if number in frozen and len(own):
                yield Finding(10, f"snapshot map {number}: leaf {int(own[0])} is not frozen")

    def _check_entries(self) -> Iterator[Finding]:
        _, leaf_ids = self._blockmap.reachable()
        rows = self._rows(leaf_ids)
        mapped = rows != 0
        entries, crcs = rows[mapped], self._crc_rows(leaf_ids)[mapped]
        if (entries & np.uint64(PRIVATE_BIT)).any():
            yield Finding(6, "an entry says private, which this version never writes")
        wrong = (entries & ~np.uint64(BLOCK_MASK | PRIVATE_BIT)) != 0
        if wrong.any():
            yield Finding(4, f"entry {int(entries[wrong][0]):#018x}: device, length, codec or reserved bits are set")
        blocks = entries & np.uint64(BLOCK_MASK)
        if (blocks >= self._data_blocks).any():
            yield Finding(4, f"block {int(blocks.max())} is referenced; the data file has {self._data_blocks}")
        if (blocks >= self._state.high_water).any():
            yield Finding(7, f"block {int(blocks.max())} is referenced but lies above {self._state.high_water}")
        order = np.argsort(blocks, kind="stable")
        blocks, crcs = blocks[order], crcs[order]
        same = blocks[1:] == blocks[:-1]
        if (same & (crcs[1:] != crcs[:-1])).any():
            block = int(blocks[1:][same & (crcs[1:] != crcs[:-1])][0])
            yield Finding(5, f"block {block} is referenced with two checksums")
        first = np.concatenate(([True], ~same))[: len(blocks)]
        self.blocks, self._crcs = blocks[first], crcs[first]

    def _check_counts(self) -> Iterator[Finding]:
        for one in self._blockmap.maps.values():
            counted = int(np.count_nonzero(self._rows(self._leaves_of(one))))
            if counted != one.mapped:
                yield Finding(11, f"map {one.number}: {one.mapped} mapped grains are noted, {counted} are there")

    def _check_data(self) -> Iterator[Finding]:
        blocks, crcs = self.blocks.tolist(), self._crcs.tolist()
        at = 0
        while at < len(blocks):
            end = at + 1
            while end < len(blocks) and blocks[end] == blocks[end - 1] + 1 and end - at < _DEEP_RUN:
                end += 1
            try:
                stored = self._data.read_stored(blocks[at] << UNIT_SHIFT, (end - at) << UNIT_SHIFT)
            except OSError as error:
                yield Finding(9, f"blocks {blocks[at]} to {blocks[end - 1]} cannot be read: {error}")
                stored = b""
            for i in range(at, end if stored else at):
                if crc32c(stored[(i - at) * UNIT : (i - at + 1) * UNIT]) != crcs[i]:
                    yield Finding(9, f"block {blocks[i]} does not match its checksum ({self._owner(blocks[i])})")
            at = end

    def _owner(self, block: int) -> str:
        """Who references the block: for the one who must restore it."""
        for one in self._blockmap.maps.values():
            for index, leaf in self._leaf_places(one):
                found = np.flatnonzero(self._rows(np.array([leaf]))[0] & np.uint64(BLOCK_MASK) == block)
                if len(found):
                    return f"map {one.number}, offset {((index << LEAF_SHIFT) + int(found[0])) << UNIT_SHIFT}"
        return "no map"

    def _leaf_places(self, one: Map) -> Iterator[tuple[int, int]]:
        for index, page in enumerate(one.root):
            row = self._blockmap.pages.row(page)
            for slot in np.flatnonzero(row).tolist():
                yield index * len(row) + slot, int(row[slot])

    def _leaves_of(self, one: Map) -> npt.NDArray[np.int64]:
        rows = [self._blockmap.pages.row(page) for page in one.root if page]
        ids: npt.NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64)
        return np.compress(ids != 0, ids)

    def _rows(self, leaves: npt.NDArray[np.int64]) -> Entries:
        return self._blockmap.leaves.entry_array.reshape(-1, LEAF_ENTRIES)[leaves]

    def _crc_rows(self, leaves: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        return self._blockmap.leaves.crc_array.reshape(-1, LEAF_ENTRIES)[leaves]


def check_catalog(catalog: Catalog, blockmap: BlockMap) -> Iterator[Finding]:
    """Rule 13."""
    named: Counter[int] = Counter()
    groups = {entry.record.uuid: entry for entry in catalog.groups.values()}
    for entry in groups.values():
        record = entry.record
        named.update(entry.maps.values())
        yield from _check_volumes(f"group {record.name}", record.volumes, entry.maps, blockmap)
        if any(volume.lun >= record.next_lun for volume in record.volumes):
            yield Finding(13, f"group {record.name}: a LUN is not below next_lun {record.next_lun}")
        yield from _check_attachments(record)
    for snapshot in _snapshots(catalog):
        named.update(snapshot.maps.values())
        what = f"snapshot {snapshot.record.name}"
        if snapshot.group not in groups:
            yield Finding(13, f"{what}: its group {snapshot.group} is not there")
        yield from _check_volumes(what, snapshot.record.volumes, snapshot.maps, blockmap)
    for staged in staged_receives(catalog):
        named.update(staged.maps.values())
    for number in blockmap.maps:
        if named[number] != 1:
            yield Finding(13, f"map {number} is named {named[number]} times in the catalogue")
    if blockmap.maps and max(blockmap.maps) >= blockmap.next_map:
        yield Finding(13, f"map {max(blockmap.maps)} is not below next_map {blockmap.next_map}")
    iqns = Counter(entry.record.iqn for entry in groups.values())
    uuids = Counter[UUID](volume.uuid for entry in groups.values() for volume in entry.record.volumes)
    for twice in [str(key) for counter in (iqns, uuids) for key, count in counter.items() if count > 1]:
        yield Finding(13, f"{twice} is used twice")


def _check_attachments(record: GroupRecord) -> Iterator[Finding]:
    what, attachments = f"group {record.name}", record.attachments
    if len({each.host.lower() for each in attachments}) != len(attachments):
        yield Finding(13, f"{what}: a host is attached twice")
    if len({each.generation for each in attachments}) != len(attachments):
        yield Finding(13, f"{what}: two attachments have the same generation")
    if any(not 0 < each.generation <= record.attach_generation for each in attachments):
        yield Finding(13, f"{what}: the generation of an attachment is not within 1 to {record.attach_generation}")
    modes = {each.mode for each in attachments}
    if len(modes) > 1 or (AttachMode.SINGLE_WRITER in modes and len(attachments) > 1):
        yield Finding(13, f"{what}: its attachments exclude each other")


def _check_volumes(
    what: str, volumes: tuple[VolumeRecord, ...], maps: Mapping[int, int], blockmap: BlockMap
) -> Iterator[Finding]:
    if len({volume.lun for volume in volumes}) != len(volumes):
        yield Finding(13, f"{what}: a LUN is used twice")
    for volume in volumes:
        one = blockmap.maps.get(maps[volume.lun])
        if one is None:
            yield Finding(13, f"{what}: map {maps[volume.lun]} of LUN {volume.lun} is not there")
        elif one.size != volume.size:
            yield Finding(13, f"{what}: LUN {volume.lun} has {volume.size} bytes, its map {one.size}")


def _snapshots(catalog: Catalog) -> list[SnapshotEntry]:
    return [entry for of_group in catalog.snapshots.values() for entry in of_group.values()]
