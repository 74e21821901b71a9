"""The birth of a pool: its files, empty, in an order that a crash at any point can be started anew from.

The commit that gives ``meta.db`` its tables and superblock is the birth; before it there is no pool, after it a whole
one. Invariant: nothing that might be somebody's data is overwritten, unless that was asked for by name.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from uuid import UUID, uuid4

from blockstore import journal as journals
from blockstore.api import AlreadyExists, Corrupt, InUse, Invalid
from blockstore.checkpoint import MetaDb, Superblock
from blockstore.device import DATA, Directory, HostDirectory, opening_error
from blockstore.hostfile import DeviceFile
from blockstore.layout import SECTOR, UNIT, pack_data_header
from blockstore.signatures import found_on, stable_path, wipe

JOURNAL_SIZE = 64 << 20  # bytes of each of the two
_SMALLEST_DEVICE = 16 << 20  # bytes; guessed: below that the guards at its ends are most of it


def create_pool(
    path: Path, name: str, *, device: Path | None = None, force: bool = False, journal_size: int = JOURNAL_SIZE
) -> UUID:
    """Make a pool in directory ``path``, which is made too; its data lies there, or on ``device``. Nothing is served.

    ``force``: also on a device that carries something, which is lost then.
    Raises AlreadyExists, InUse (the device carries something), Invalid, Locked, Corrupt, OSError.
    """
    link = None if device is None else _device_path(device)
    made = not path.exists()
    directory = HostDirectory(path, create=True)
    try:
        if _holds_pool(directory):
            raise AlreadyExists(f"{path} holds a pool already")
        if link is None:
            _check_data_is_empty(directory)
        else:
            _take_device(directory, link, force)
        return create(directory, name, journal_size)
    except sqlite3.Error as error:
        raise opening_error(error) from error
    finally:
        directory.close()
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if it is still empty: refused before anything was made


def is_unborn(directory: Directory) -> bool:
    """Whether there is no pool, or only the beginnings of one that may be begun anew. Raises Corrupt."""
    if _holds_pool(directory):
        return False
    _check_data_is_empty(directory)
    return True


def create(directory: Directory, name: str, journal_size: int) -> UUID:
    """Make the files of an empty pool. A data file that is there (a device's, say) becomes the pool's. Raises Invalid,
    OSError."""
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
    return uuid


def _holds_pool(directory: Directory) -> bool:
    """The commit that makes ``meta.db`` whole is the birth."""
    if not directory.exists("meta.db"):
        return False
    directory.settle_database()  # before SQLite opens it, here as in recovery: closing makes it a part of meta.db
    database = MetaDb(directory.database())
    try:
        return database.exists
    finally:
        database.close()


def _check_data_is_empty(directory: Directory) -> None:
    if not directory.exists(DATA):
        return
    data = directory.open(DATA)
    try:
        if isinstance(data, DeviceFile):
            raise Corrupt(
                f"data leads to block device {data.name} but meta.db holds no pool: not overwritten; if its creation "
                "was interrupted, create it again, by force"
            )
        if data.size() > UNIT:
            raise Corrupt(f"data has {data.size()} bytes but meta.db holds no pool: not overwritten")
    finally:
        data.close()


def _device_path(device: Path) -> Path:
    path = stable_path(device)
    if not path.is_block_device():
        raise Invalid(f"{device} is no block device")
    return path


def _take_device(directory: HostDirectory, path: Path, force: bool) -> None:
    """Lead ``data`` to the device and make that empty, if it is, or by force."""
    if not directory.is_link(DATA):
        _check_data_is_empty(directory)
    directory.link(DATA, path)
    try:
        device = directory.open(DATA)
        try:
            assert isinstance(device, DeviceFile)
            if device.size() < _SMALLEST_DEVICE:
                raise Invalid(f"{path} has {device.size()} bytes; allowed are {_SMALLEST_DEVICE} and more")
            found = found_on(device)
            if found and not force:
                raise InUse(f"{path} carries {', '.join(found)}; that is lost only by force")
            wipe(device)
        finally:
            device.close()
    except BaseException:
        directory.remove(DATA)
        raise
