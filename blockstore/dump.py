"""``dump``: a closed pool's superblock, maps, catalogue and journal as text, for people who must look inside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from blockstore.checkpoint import MetaDb
from blockstore.device import Directory, HostDirectory
from blockstore.journal import NAMES, JournalImage
from blockstore.layout import FormatError, parse_records
from blockstore.recovery import open_files


def dump_pool(path: Path) -> Iterator[str]:
    """Lines about the pool in directory ``path``, under its lock. Raises Locked, Corrupt, OSError."""
    directory = HostDirectory(path)
    try:
        database, data = open_files(directory)
        try:
            yield from _dump(directory, database, data.size())
        finally:
            data.close()
            database.close()
    finally:
        directory.close()


def _dump(directory: Directory, database: MetaDb, data_size: int) -> Iterator[str]:
    superblock = database.superblock()
    for field in fields(superblock):
        yield f"{field.name}: {getattr(superblock, field.name)}"
    yield f"data: {data_size} bytes"
    for one in database.roots():
        yield f"map {one.number}: {one.size} bytes, generation {one.generation}, {one.mapped} grains mapped"
    for kind, key, value in database.catalog():
        yield f"{kind} {key}: {_without_secrets(value)}"
    journals = JournalImage.read(directory, superblock.uuid)
    for batch in journals.batches(superblock.ckpt_epoch, superblock.next_seq, superblock.chain_seed):
        header = batch.header
        try:
            kinds = Counter(type(record).__name__ for record in parse_records(batch.records))
            content = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "empty"
        except FormatError as error:
            content = f"unreadable: {error}"
        where = f"{NAMES[batch.file]} at {batch.offset}"
        yield f"batch {header.seq}: {where}, {header.length} bytes, synced up to {header.synced_seq}: {content}"


def _without_secrets(value: bytes) -> str:
    """A dump is sent to people; CHAP secrets are not."""
    content = json.loads(value)
    for client in content.get("clients", ()):
        client["chap"] = client["mutual"] = None
    for attachment in content.get("attachments", ()):
        attachment["chap"] = None
    return json.dumps(content, sort_keys=True)
