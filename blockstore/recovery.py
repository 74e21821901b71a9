"""From what a crash left to a pool that serves: load the image, replay the journal, make the result the new image.

The state found is a prefix of the acknowledged writes that includes everything ever flushed, and all of them if only
the process died. Anything a crash cannot explain is refused with Corrupt, and nothing is changed then: journals are not
written before recovery's own checkpoint has committed. Invariant: recovering twice, or crashing here, changes nothing.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from uuid import UUID

from crc32c import crc32c

from blockstore.api import Corrupt
from blockstore.blockmap import BlockMap
from blockstore.catalog import Catalog
from blockstore.checkpoint import MetaDb, Superblock, root_row
from blockstore.device import DATA, Directory, File
from blockstore.journal import NAMES, Journal, JournalImage, StoredBatch
from blockstore.layout import (
    BLOCK_MASK,
    PAGE_NODE,
    UNIT,
    UNIT_SHIFT,
    FormatError,
    parse_data_header,
    parse_records,
)
from blockstore.records import Delete, Put, Record, Trim, Write

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Replay:
    """The state that the files describe, and how it came about."""

    superblock: Superblock
    rescue: bool
    blockmap: BlockMap
    catalog: Catalog
    next_seq: int
    high_water: int
    batches: int = 0
    dropped_batches: int = 0
    """Of a torn tail: never flushed, and not whole."""
    rewritten: int = 0
    """Blocks that only the page cache had."""


def open_files(directory: Directory) -> tuple[MetaDb, File]:
    """The database and the data file of an existing pool, settled: what they show now is what the disk has, or will
    have at the next sync. Raises Corrupt when parts are missing or of different pools."""
    for name in ("meta.db", DATA, *NAMES):
        if not directory.exists(name):
            raise Corrupt(f"pool has no file {name!r}")
    directory.settle_database()
    database = MetaDb(directory.database())
    data = directory.open(DATA)
    try:
        if not database.exists:
            raise Corrupt("meta.db holds no pool")
        superblock = database.superblock()
        check_identity(data, superblock.uuid)
        check_journals(directory, superblock.journal_size)
    except BaseException:
        data.close()
        database.close()
        raise
    return database, data


def check_identity(data: File, pool: UUID) -> None:
    """Raises Corrupt unless ``data`` is device 0 of ``pool``."""
    try:
        owner, device = parse_data_header(data.read_stored(0, UNIT))
    except FormatError as error:
        raise Corrupt(f"{data.name} is no data of pool {pool}: {error}") from error
    if owner != pool or device != 0:
        raise Corrupt(f"{data.name} is device {device} of pool {owner}; meta.db is of pool {pool}")


def check_journals(directory: Directory, size: int) -> None:
    """Raises Corrupt when a journal is cut off: what was flushed may have been there, and nothing else would tell."""
    for name in NAMES:
        file = directory.open(name)
        found = file.size()
        file.close()
        if found < size:
            raise Corrupt(f"{name} has {found} bytes; it was made with {size}")


def replay(
    directory: Directory,
    database: MetaDb,
    data: File,
    map_leaves: int,
    *,
    rescue: bool = True,
    private_frees: bool = True,
    rows: bool = False,
) -> Replay:
    """Build the state. Writes nothing but, with ``rescue``, blocks that the page cache has and the disk lost (same
    boot only). ``rows``: with all nodes in memory; else those that the journal touches."""
    superblock = database.superblock()
    blockmap = BlockMap(map_leaves, private_frees=private_frees)
    state = Replay(superblock, rescue, blockmap, Catalog(), superblock.next_seq, superblock.high_water)
    database.load(state.blockmap, state.catalog, rows=rows)
    state.blockmap.generation = superblock.generation
    state.blockmap.next_map = superblock.next_map
    journals = JournalImage.read(directory, superblock.uuid)
    batches = list(journals.batches(superblock.ckpt_epoch, superblock.next_seq, superblock.chain_seed))
    synced = _synced_seq(journals, superblock, batches)
    if not data.reads_medium:
        _log.warning("pool %s: no O_DIRECT here: what is read back may be the page cache's", superblock.name)
    same_boot = superblock.boot_id == directory.boot_id()
    for i, batch in enumerate(batches):
        records = _records(batch)
        if batch.header.seq > synced and not all(
            _data_is_whole(data, record, same_boot, state) for record in records if isinstance(record, Write)
        ):
            state.dropped_batches = len(batches) - i
            break
        _apply(state, database, records)
        state.next_seq = batch.header.seq + 1
        state.batches += 1
    blockmap.take_freed()  # older batches may be replayed again until recovery's own checkpoint: left to the sweep
    if data.size() < state.high_water << UNIT_SHIFT:
        raise Corrupt(f"data has {data.size()} bytes; blocks up to {state.high_water << UNIT_SHIFT} are in use")
    return state


def _synced_seq(journals: JournalImage, superblock: Superblock, batches: list[StoredBatch]) -> int:
    """The last batch known to have been durable. Raises Corrupt when it is not there any more."""
    last = batches[-1].header.seq if batches else superblock.next_seq - 1
    synced = max([superblock.next_seq - 1, *(batch.header.synced_seq for batch in batches)])
    for batch in journals.later_batches(superblock.ckpt_epoch, last):
        if batch.header.synced_seq > last:
            raise Corrupt(
                f"{NAMES[batch.file]}: batch {batch.header.seq} at offset {batch.offset} says that batch {last + 1} was"
                " flushed, but that one is not intact"
            )
        synced = max(synced, batch.header.synced_seq)  # it is behind a torn one, but what it says is true
    return synced


def _records(batch: StoredBatch) -> list[Record]:
    try:
        return list(parse_records(batch.records))
    except FormatError as error:
        raise Corrupt(f"{NAMES[batch.file]}: batch {batch.header.seq} at offset {batch.offset}: {error}") from error


def _data_is_whole(data: File, record: Write, same_boot: bool, state: Replay) -> bool:
    """Whether the write's data is on the medium. If only the process died it is at least in the page cache, and is
    put on the medium again; if it is in neither, the block is damaged, which is no reason to drop later writes."""
    block = record.entry & BLOCK_MASK
    try:
        stored = data.read_stored(block << UNIT_SHIFT, len(record.crcs) << UNIT_SHIFT)
    except OSError as error:
        raise Corrupt(f"data: block {block} cannot be read, which is no torn tail: {error}") from error
    for i, crc in enumerate(record.crcs.tolist()):
        if crc32c(stored[i << UNIT_SHIFT : (i + 1) << UNIT_SHIFT]) == crc:
            continue
        if not same_boot:
            return False
        _rescue(data, block + i, crc, state)
    return True


def _rescue(data: File, block: int, crc: int, state: Replay) -> None:
    cached = memoryview(bytearray(UNIT))
    data.read(block << UNIT_SHIFT, cached)
    if crc32c(cached) == crc:
        if state.rescue:
            data.write(block << UNIT_SHIFT, (cached,))
        state.rewritten += 1
    else:
        _log.error(
            "pool %s: block %d is damaged: neither disk nor cache match its checksum", state.superblock.name, block
        )


def _apply(state: Replay, database: MetaDb, records: list[Record]) -> None:
    for record in records:
        if isinstance(record, Put | Delete):
            state.catalog.apply(record)
            continue
        if state.blockmap.absent and isinstance(record, Write | Trim):
            count = len(record.crcs) if isinstance(record, Write) else record.count
            database.fill(state.blockmap, state.blockmap.maps[record.map], record.grain, count)
        state.blockmap.apply(record)
        if isinstance(record, Write):
            end = (record.entry & BLOCK_MASK) + len(record.crcs)
            state.high_water = max(state.high_water, end)


def finish(directory: Directory, database: MetaDb, data: File, state: Replay) -> Journal:
    """Recovery's own checkpoint, and the journal to go on with. Its epoch is one that no batch can have carried, its
    seed is random, and only it says that this boot is the one to compare with."""
    superblock = state.superblock = replace(
        state.superblock,
        ckpt_epoch=state.superblock.ckpt_epoch + 2,
        chain_seed=int.from_bytes(os.urandom(4), "little"),
        next_seq=state.next_seq,
        generation=state.blockmap.generation,
        next_map=state.blockmap.next_map,
        high_water=state.high_water,
        boot_id=directory.boot_id(),
    )
    data.sync()
    _save(database, state, superblock)
    return Journal(
        [directory.open(name) for name in NAMES],
        superblock.journal_size,
        superblock.uuid,
        epoch=superblock.ckpt_epoch,
        seq=superblock.next_seq,
        chain=superblock.chain_seed,
        synced_seq=superblock.next_seq - 1,
    )


def _save(database: MetaDb, state: Replay, superblock: Superblock) -> None:
    blockmap, catalog = state.blockmap, state.catalog
    leaves, pages = blockmap.leaves, blockmap.pages
    database.begin()
    database.put_roots([root_row(blockmap.maps[number]) for number in blockmap.dirty_maps], blockmap.deleted_maps)
    database.put_catalog([(kind, key, catalog.raw.get((kind, key))) for kind, key in catalog.dirty])
    database.put_nodes((leaf, leaves.born[leaf], leaves.blob(leaf)) for leaf in leaves.dirty)
    database.put_nodes((PAGE_NODE + page, pages.born[page], pages.blob(page)) for page in pages.dirty)
    database.commit(superblock)
    blockmap.forget_dirty()
    catalog.dirty = set()


def sync_before_reading(directory: Directory, data: File) -> None:
    """After a failed sync Linux calls pages clean that are not on the disk. What is dirty now gets there first."""
    data.sync()
    for name in NAMES:
        file = directory.open(name)
        try:
            file.sync()
        finally:
            file.close()
