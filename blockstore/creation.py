"""The birth of a pool: its files, empty, in an order that a crash at any point can be started anew from.

The commit that gives ``meta.db`` its tables and superblock is the birth; before it there is no pool, after it a whole
one. Invariant: nothing that might be somebody's data is overwritten.
"""

from __future__ import annotations

from uuid import uuid4

from blockstore import journal as journals
from blockstore.api import Corrupt, Invalid
from blockstore.checkpoint import MetaDb, Superblock
from blockstore.device import Directory
from blockstore.layout import SECTOR, UNIT, pack_data_header
from blockstore.recovery import DATA


def is_unborn(directory: Directory) -> bool:
    """Whether there is no pool, or only the beginnings of one. The commit that makes ``meta.db`` whole is its birth."""
    if directory.exists("meta.db"):
        directory.settle_database()  # before SQLite opens it, here as in recovery: closing makes it a part of meta.db
        database = MetaDb(directory.database())
        try:
            if database.exists:
                return False
        finally:
            database.close()
    if directory.exists(DATA):
        data = directory.open(DATA)
        try:
            if data.size() > UNIT:
                raise Corrupt(f"data has {data.size()} bytes but meta.db holds no pool: not overwritten")
        finally:
            data.close()
    return True


def create(directory: Directory, name: str, journal_size: int) -> None:
    """Make the files of an empty pool. Raises Invalid, OSError."""
    if journal_size < journals.MIN_SIZE or journal_size % SECTOR:
        raise Invalid(f"journal size {journal_size}: allowed are multiples of {SECTOR} from {journals.MIN_SIZE} bytes")
    uuid = uuid4()
    journals.create_files(directory, journal_size)
    data = directory.open(DATA, create=True)
    data.write(0, (pack_data_header(uuid, device=0),))
    data.sync()
    data.close()
    database = MetaDb(directory.database())
    directory.sync()
    database.create(
        Superblock(
            uuid=uuid,
            name=name,
            journal_size=journal_size,
            ckpt_epoch=1,
            chain_seed=0,
            next_seq=1,
            generation=1,
            next_map=1,
            high_water=1,
            boot_id=directory.boot_id(),
        )
    )
    database.close()
    directory.sync()
