"""Which blocks and nodes an image references: the sweep's marking, ``python -m blockstore.marking META.DB``.

It runs in a process of its own, because numpy and SQLite would take turns with the loop thread on one interpreter
lock. It reads ``meta.db`` in one read transaction, so it marks the image of one switch, whatever is committed
meanwhile. What of the unreferenced may be freed is ``reclaim``'s to say; this only finds it. Every leaf is read once
(once per 4 TiB of data file, to bound memory).

Between the processes: a line with the image's epoch; back come three counts and what was not available at that switch
(int64); then lines with how much is done, a line with two lengths, runs of blocks and ids of nodes (int64).
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from blockstore.checkpoint import MetaDb
from blockstore.device import read_only
from blockstore.layout import (
    BLOCK_MASK,
    ENTRY,
    LEAF_BYTES,
    LEAF_ENTRIES,
    NODE_ID,
    PAGE_NODE,
)
from blockstore.space import Unavailable

_RANGE = 1 << 30  # blocks (4 TiB) that are marked at a time: 1 GiB of memory
_LEAVES = 256  # read in one go
_PAGES = 32

Ints = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]
Report = Callable[[float], None]
"""Told how much is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """What nothing references."""

    runs: Ints
    """Of blocks: rows of (first, count)."""
    nodes: Ints
    """Ids of nodes that are stored and that no root reaches."""


class Marking:
    """One image of ``connection``, held by a read transaction until the connection is closed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("BEGIN")
        self._database = MetaDb(connection)
        self.epoch = self._database.superblock().ckpt_epoch

    def find(self, unavailable: Unavailable, report: Report = lambda done: None) -> Found:
        """Raises sqlite3.Error, FormatError."""
        pages = self._reached_pages()
        leaves = self._reached_leaves(pages)
        lost = [self._lost(0, leaves), self._lost(PAGE_NODE, pages)]
        runs = [np.zeros((0, 2), np.int64)]
        for first in range(0, unavailable.blocks, _RANGE):
            marks = np.zeros(min(_RANGE, unavailable.blocks - first), np.bool_)
            _mark_unavailable(marks, first, unavailable)
            for done in self._mark_blocks(marks, first, leaves):
                report((first + done * len(marks)) / unavailable.blocks)
            runs.append(runs_of_false(marks, first))
        return Found(np.concatenate(runs), np.concatenate(lost))

    def _reached_pages(self) -> Marks:
        """By page id."""
        reached = np.zeros(self._database.last_node(PAGE_NODE) + 1, np.bool_)
        for root in self._database.roots():
            reached[np.frombuffer(root.root, np.uint32)] = True
        return reached

    def _reached_leaves(self, pages: Marks) -> Marks:
        """By leaf id."""
        reached = np.zeros(self._database.last_node(0) + 1, np.bool_)
        for ids, bodies in self._database.bodies(PAGE_NODE, _PAGES):
            named = np.frombuffer(bodies, NODE_ID).reshape(len(ids), -1)
            reached[named[pages[ids]].ravel()] = True
        return reached

    def _mark_blocks(self, marks: Marks, first: int, leaves: Marks) -> Iterator[float]:
        """Mark those from ``first`` on; yields how much is done."""
        for ids, bodies in self._database.bodies(0, _LEAVES):
            rows = np.frombuffer(bodies, np.uint8).reshape(-1, LEAF_BYTES)[:, : LEAF_ENTRIES * ENTRY.itemsize]
            entries = np.ascontiguousarray(rows[leaves[ids]]).view(ENTRY).ravel()
            blocks = (entries & np.uint64(BLOCK_MASK)).astype(np.int64) - first
            marks[blocks[(blocks >= 0) & (blocks < len(marks))]] = True
            yield int(ids[-1]) / len(leaves)

    def _lost(self, base: int, reached: Marks) -> Ints:
        """Stored nodes of a kind that nothing reaches."""
        query = "SELECT id FROM node WHERE id >= ? AND id < ?"
        stored = self._connection.execute(query, (base, base + PAGE_NODE)).fetchall()
        ids = np.array(stored, np.int64).reshape(-1)
        return ids[~reached[ids - base]]


def _mark_unavailable(marks: Marks, first: int, unavailable: Unavailable) -> None:
    for start, count in np.concatenate(unavailable.runs).tolist():
        marks[max(0, start - first) : max(0, start + count - first)] = True
    for blocks in unavailable.single:
        here = blocks.astype(np.int64) - first
        marks[here[(here >= 0) & (here < len(marks))]] = True


def runs_of_false(marks: Marks, base: int) -> Ints:
    """Where nothing is marked, as rows of (first, count); ``base`` is the number of the first mark."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], marks, [True])).view(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    return np.stack((starts + base, ends - starts), axis=1)


# ------------------------------------------------------------------------------------------------ between processes


def pack(unavailable: Unavailable) -> bytes:
    single = np.concatenate([np.zeros(0, np.uint64), *unavailable.single]).astype(np.int64)
    runs = np.concatenate(unavailable.runs).reshape(-1)
    return np.concatenate(([unavailable.blocks, len(runs), len(single)], runs, single)).astype(np.int64).tobytes()


def unpack(data: bytes) -> Unavailable:
    """What ``pack`` made."""
    blocks, runs, single = np.frombuffer(data, np.int64, 3).tolist()
    rest = np.frombuffer(data, np.int64, runs + single, 24)
    return Unavailable(blocks, [rest[:runs].reshape(-1, 2)], [rest[runs:].astype(np.uint64)])


def send_found(found: Found, out: IO[bytes]) -> None:
    runs, nodes = found.runs.tobytes(), found.nodes.tobytes()
    out.write(b"%d %d\n" % (len(runs), len(nodes)) + runs + nodes)


def receive_found(source: IO[bytes], report: Report) -> Found:
    """Raises EOFError when the process ended early."""
    while line := source.readline():
        numbers = line.split()
        if len(numbers) == 1:
            report(float(numbers[0]))
            continue
        runs, nodes = (source.read(int(number)) for number in numbers)
        if (len(runs), len(nodes)) == (int(numbers[0]), int(numbers[1])):
            return Found(np.frombuffer(runs, np.int64).reshape(-1, 2), np.frombuffer(nodes, np.int64))
    raise EOFError("the marking process ended early")


def main() -> None:
    os.nice(10)  # the worker's I/O comes first
    marking = Marking(read_only(Path(sys.argv[1])))
    print(marking.epoch, flush=True)
    unavailable = unpack(sys.stdin.buffer.read())
    found = marking.find(unavailable, lambda done: print(f"{done:.3f}", flush=True))
    send_found(found, sys.stdout.buffer)


if __name__ == "__main__":
    main()
