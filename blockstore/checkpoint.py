"""``meta.db``: the checkpointed maps, the catalogue, and the one row that says where replay begins.

Only SQL and blobs live here; when an image is made and of what is ``saver``'s. One transaction writes an image, and its
commit is the pool's only commit point: ``ckpt_epoch`` is the superblock. Every blob carries its own crc32c.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from uuid import UUID

import numpy as np
import numpy.typing as npt

from blockstore.api import Corrupt
from blockstore.blockmap import BlockMap, Map, pages_for
from blockstore.catalog import Catalog
from blockstore.layout import (
    LEAF_BYTES,
    PAGE_BYTES,
    PAGE_NODE,
    VERSION,
    FormatError,
    pack_node,
    parse_node,
)

_SCHEMA = """
CREATE TABLE pool (
    uuid TEXT NOT NULL, version INTEGER NOT NULL, features INTEGER NOT NULL, name TEXT NOT NULL,
    journal_size INTEGER NOT NULL, ckpt_epoch INTEGER NOT NULL, chain_seed INTEGER NOT NULL,
    next_seq INTEGER NOT NULL, generation INTEGER NOT NULL, next_map INTEGER NOT NULL,
    high_water INTEGER NOT NULL, boot_id TEXT NOT NULL);
CREATE TABLE node (id INTEGER PRIMARY KEY, born INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE root (map INTEGER PRIMARY KEY, size INTEGER NOT NULL, generation INTEGER NOT NULL,
    mapped INTEGER NOT NULL, pages BLOB NOT NULL);
CREATE INDEX node_born ON node (born);
CREATE TABLE catalog (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key));
"""
_ROWS = 256  # read by one statement
_WAL_LIMIT = 64 << 20  # bytes that the log keeps after a large checkpoint; guessed


@dataclass(frozen=True, slots=True)
class Superblock:
    """The row of table ``pool``: an image is complete up to batch ``next_seq`` - 1."""

    uuid: UUID
    name: str
    journal_size: int
    ckpt_epoch: int
    """Replay begins in the journal of this epoch, at batch ``next_seq``..."""
    chain_seed: int
    """...which carries this as ``prev_crc``."""
    next_seq: int
    generation: int
    next_map: int
    high_water: int
    boot_id: str


_COLUMNS = [column.name for column in fields(Superblock)]
_REST_TYPES = [str if column.name in ("name", "boot_id") else int for column in fields(Superblock)[1:]]

NodeRow = tuple[int, int, bytes]
"""(node id, born, body)."""
Row = tuple[int, int, memoryview]
"""(node id, born, body) as it was read."""
RootRow = tuple[int, int, int, int, bytes]
"""(map, size, generation, mapped, page ids)."""
CatalogRow = tuple[str, str, bytes]


def root_row(one: Map) -> RootRow:
    return one.number, one.size, one.generation, one.mapped, one.root.tobytes()


def read_rows(connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[list[Row], dict[int, str]]:
    """(those of these nodes that the last image has, what is wrong with the others by id). Raises sqlite3.Error."""
    rows: list[Row] = []
    problems: dict[int, str] = {}
    for at in range(0, len(ids), _ROWS):
        some = ids[at : at + _ROWS]
        query = f"SELECT id, born, data FROM node WHERE id IN ({','.join('?' * len(some))})"
        for node, born, data in connection.execute(query, some):
            try:
                rows.append((node, born, parse_node(data, PAGE_BYTES if node >= PAGE_NODE else LEAF_BYTES)))
            except FormatError as error:
                problems[node] = f"node {node}: {error}"
    return rows, problems


def take_in_rows(
    blockmap: BlockMap, wanted: Sequence[int], rows: list[Row], problems: Mapping[int, str]
) -> dict[int, str]:
    """Take in what ``read_rows`` found of ``wanted``; why some of them are still absent."""
    found = dict(problems)
    for stored, born, body in rows:
        if not blockmap.take_in(stored, born, body):
            found[stored] = f"page {stored - PAGE_NODE} names a leaf that is not there"
    still = [stored for stored in wanted if blockmap.is_absent(stored)]
    return {stored: found.get(stored, f"node {stored} is not there") for stored in still}


class MetaDb:
    """The database. Used by one thread at a time; the loop thread only before serving. Raises sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT}")
        path = str(self._db.execute("PRAGMA database_list").fetchone()[2])
        self.path = path if os.path.isfile(path) else ""
        """The file, for those who read it in a process of their own; empty for a database in memory."""
        if self.path:
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # a commit would do it: ``copy_log``, when nobody waits

    def log_bytes(self) -> int:
        """Length of SQLite's log."""
        try:
            return os.stat(self.path + "-wal").st_size
        except FileNotFoundError:
            return 0

    def sync_log(self) -> None:
        """Let what the transaction wrote so far reach the disk, so that its commit has little left to wait for. Raises
        OSError when it cannot, as the commit's own sync will then."""
        try:
            log = os.open(self.path + "-wal", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return  # there is none, or no descriptor for it: the commit takes longer
        try:
            os.fdatasync(log)
        finally:
            os.close(log)

    def copy_log(self) -> None:
        """Copy the log into the database, as far as no reader needs it: the next transaction begins it anew."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def create(self, superblock: Superblock) -> None:
        """Tables and the first superblock, in one transaction: a crash leaves an empty database or a whole one."""
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";")[:-1]:
            self._db.execute(statement)
        self._put_superblock(superblock)
        self._db.execute("COMMIT")

    @property
    def exists(self) -> bool:
        """Whether ``create`` was committed."""
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name='pool'").fetchone() is not None

    def superblock(self) -> Superblock:
        """Raises Corrupt when it is missing or of an unknown version."""
        row = self._db.execute(f"SELECT version, features, {', '.join(_COLUMNS)} FROM pool").fetchone()
        if row is None:
            raise Corrupt("meta.db: table pool is empty")
        version, features, uuid, *rest = row
        if version != VERSION or features != 0:
            raise Corrupt(
                f"meta.db: version {version!r}, features {features!r}; known is version {VERSION}, features 0"
            )
        if not isinstance(uuid, str) or [type(value) for value in rest] != _REST_TYPES:
            raise Corrupt(f"meta.db: table pool holds {row}, which is no superblock")
        try:
            return Superblock(UUID(uuid), *rest)
        except ValueError as error:
            raise Corrupt(f"meta.db: pool uuid {uuid!r}: {error}") from error

    def load(self, blockmap: BlockMap, catalog: Catalog, *, rows: bool) -> None:
        """Fill empty maps and catalogue from the image. ``rows``: with the contents of all nodes, and a proof that
        each of them is there; else only pages that roots name must exist. Raises Corrupt."""
        for stored, born in self._db.execute("SELECT id, born FROM node"):
            nodes, node = blockmap.kind_of(stored)
            nodes.note(node, born)
        blockmap.leaves.finish_loading()
        blockmap.pages.finish_loading()
        try:
            for root in self.roots():
                blockmap.maps[root.number] = root
            if rows:
                for stored, born, body in self.nodes():
                    if not blockmap.take_in(stored, born, body):
                        raise Corrupt(f"meta.db: page {stored - PAGE_NODE} names a leaf that is not there")
        except FormatError as error:
            raise Corrupt(f"meta.db: {error}") from error
        for problem in blockmap.missing_pages():
            raise Corrupt(f"meta.db: {problem}")
        for kind, key, value in self.catalog():
            catalog.load(kind, key, value)
        catalog.finish_loading()

    def fill(self, blockmap: BlockMap, of: Map, grain: int, count: int) -> None:
        """Take in what these grains need. Raises Corrupt."""
        while wanted := blockmap.absent_nodes(of, grain, count):
            rows, problems = read_rows(self._db, wanted)
            for problem in take_in_rows(blockmap, wanted, rows, problems).values():
                raise Corrupt(f"meta.db: {problem}")

    def nodes(self) -> Iterator[tuple[int, int, memoryview]]:
        """(node id, born, body). Raises FormatError."""
        for node, born, data in self._db.execute("SELECT id, born, data FROM node ORDER BY id"):
            yield node, born, parse_node(data, PAGE_BYTES if node >= PAGE_NODE else LEAF_BYTES)

    def last_node(self, base: int) -> int:
        """The greatest id among the stored nodes of a kind (``base``: 0 for leaves, PAGE_NODE for pages), or 0."""
        query = "SELECT max(id) FROM node WHERE id >= ? AND id < ?"
        return int(self._db.execute(query, (base, base + PAGE_NODE)).fetchone()[0] or base) - base

    def bodies(self, base: int, at_once: int) -> Iterator[tuple[npt.NDArray[np.int64], bytes]]:
        """Nodes of a kind in bulk: (ids among their kind, rising; bodies behind each other). Raises FormatError."""
        length = PAGE_BYTES if base == PAGE_NODE else LEAF_BYTES
        query = "SELECT id, data FROM node WHERE id >= ? AND id < ? ORDER BY id"
        cursor = self._db.execute(query, (base, base + PAGE_NODE))
        while rows := cursor.fetchmany(at_once):
            bodies = b"".join([parse_node(data, length) for _, data in rows])
            yield np.array([node - base for node, _ in rows], np.int64), bodies

    def roots(self) -> Iterator[Map]:
        """Raises FormatError."""
        for number, size, generation, mapped, data in self._db.execute("SELECT * FROM root ORDER BY map"):
            root = array("I")
            root.frombytes(parse_node(data, 4 * pages_for(size)))
            yield Map(number, size, generation, root, mapped)

    def catalog(self) -> Iterator[CatalogRow]:
        """Raises Corrupt."""
        for kind, key, data in self._db.execute("SELECT kind, key, value FROM catalog ORDER BY kind, key"):
            try:
                yield kind, key, bytes(parse_node(data, len(data) - 4))
            except FormatError as error:
                raise Corrupt(f"meta.db: catalogue value {kind} {key}: {error}") from error

    def integrity_errors(self) -> list[str]:
        """What SQLite finds wrong with its own file."""
        rows = [row[0] for row in self._db.execute("PRAGMA integrity_check")]
        return [] if rows == ["ok"] else rows

    # --------------------------------------------------------------------------------------------- one image

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def put_nodes(self, rows: Iterable[NodeRow]) -> None:
        self._db.executemany(
            "REPLACE INTO node VALUES (?, ?, ?)", ((node, born, pack_node(body)) for node, born, body in rows)
        )

    def delete_nodes(self, ids: Iterable[int]) -> None:
        self._db.executemany("DELETE FROM node WHERE id = ?", ((node,) for node in ids))

    def put_roots(self, rows: Iterable[RootRow], deleted: Iterable[int]) -> None:
        self._db.executemany("DELETE FROM root WHERE map = ?", ((number,) for number in deleted))
        self._db.executemany(
            "REPLACE INTO root VALUES (?, ?, ?, ?, ?)",
            ((number, size, generation, mapped, pack_node(pages)) for number, size, generation, mapped, pages in rows),
        )

    def put_catalog(self, rows: Iterable[tuple[str, str, bytes | None]]) -> None:
        """None as value: the row goes."""
        for kind, key, value in rows:
            if value is None:
                self._db.execute("DELETE FROM catalog WHERE kind = ? AND key = ?", (kind, key))
            else:
                self._db.execute("REPLACE INTO catalog VALUES (?, ?, ?)", (kind, key, pack_node(value)))

    def commit(self, superblock: Superblock) -> None:
        self._put_superblock(superblock)
        self._db.execute("COMMIT")

    def roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        self._db.close()

    def _put_superblock(self, superblock: Superblock) -> None:
        self._db.execute("DELETE FROM pool")
        values = [superblock.uuid.hex, *(getattr(superblock, name) for name in _COLUMNS[1:])]
        self._db.execute(
            f"INSERT INTO pool (version, features, {', '.join(_COLUMNS)}) VALUES (?, 0{', ?' * len(_COLUMNS)})",
            (VERSION, *values),
        )
