"""Making a checkpoint: switch the journal, copy what changed in slices, commit it off the loop thread.

The image is exactly the switch point: small things (roots, catalogue, superblock) are copied at the switch; nodes are
copied by the loop in slices, and one that is about to change before its turn is copied aside first. Helper threads see
only bytes. Invariants: the commit starts only after the data and the journal up to the switch are synced, and frees
made before the switch are released only after the commit returned. No second switch before that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from blockstore.api import Done, FailStopped, OutOfSpace, Runner, StoreError
from blockstore.blockmap import BlockMap
from blockstore.catalog import Catalog
from blockstore.checkpoint import MetaDb, NodeRow, RootRow, Superblock, root_row
from blockstore.device import File, SyncGate, is_full
from blockstore.journal import Journal
from blockstore.layout import PAGE_NODE
from blockstore.nodes import DIRTY, SAVED, TO_SAVE, Nodes

_SLICE = 256  # nodes copied in one go: 1.5 MiB, about 1 ms
_RECYCLED = 1 << 15  # node ids given back in one go: about 3 ms
_LONG_LOG = 4 << 20  # bytes of SQLite's log from which on it is copied into the database: SQLite's own default
_RETRY = 1.0  # seconds after the host file system was full; guessed


@dataclass(slots=True)
class _Image:
    """What one checkpoint saves, as of its switch."""

    superblock: Superblock
    roots: list[RootRow]
    deleted_maps: list[int]
    gone: list[int]
    catalog: list[tuple[str, str, bytes | None]]
    leaves: npt.NDArray[np.uint32]
    pages: npt.NDArray[np.uint32]
    copied: int = 0
    """How many of leaves and pages, in this order, had their turn."""
    aside: list[NodeRow] = field(default_factory=list)
    """Nodes that changed before their turn, as they were."""


class Checkpointer:
    """``cut``: commit what joined; ``seal``, ``release``: told that frees so far belong to the image of this epoch, and
    that it is committed; ``make_room``: release the reserve file, False if it was gone already."""

    def __init__(
        self,
        runner: Runner,
        gate: SyncGate,
        database: MetaDb,
        data: File,
        journal: Journal,
        blockmap: BlockMap,
        catalog: Catalog,
        superblock: Superblock,
        *,
        cut: Callable[[], object],
        seal: Callable[[int], int],
        release: Callable[[], None],
        make_room: Callable[[], bool],
        fail_stop: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._gate = gate
        self._database = database
        self._data = data
        self._journal = journal
        self._blockmap = blockmap
        self._catalog = catalog
        self._superblock = superblock
        self._cut = cut
        self._seal = seal
        self._release = release
        self._make_room = make_room
        self._fail_stop = fail_stop
        self._image: _Image | None = None
        self._waiters: list[Done] = []
        self._next_waiters: list[Done] = []
        self._cancel_retry: Callable[[], None] | None = None
        self._copying = False  # the database's log, after a commit
        self.stopped = False
        self.checkpoints = 0
        self.nodes_saved = 0

    @property
    def running(self) -> bool:
        """Whether one is being made, or will be soon: it waits for the last one's log, or the host was full."""
        return self._image is not None or self._cancel_retry is not None or bool(self._waiters)

    def start(self, done: Done) -> None:
        """``done`` after a checkpoint whose switch comes after this call has committed."""
        if self.stopped:
            done(FailStopped("no checkpoint is made any more"))
        elif self._image is not None:
            self._next_waiters.append(done)
        else:
            self._waiters.append(done)
            if not self._copying:
                self._begin()

    def stop(self) -> None:
        self.stopped = True
        if self._cancel_retry is not None:
            self._cancel_retry()
            self._cancel_retry = None

    # ------------------------------------------------------------------------------------------------ the switch

    def _begin(self) -> None:
        if self._cancel_retry is not None:
            self._cancel_retry()
            self._cancel_retry = None
        self._cut()
        if self.stopped:
            self._answer(FailStopped("the pool stopped before the checkpoint began"))
            return
        # After a failed attempt the older journal is still needed: then the image begins within the current one.
        if not self._journal.previous_live:
            self._journal.switch()
        self._image = self._take_image()
        self._blockmap.copy_aside = self._copy_aside
        image = self._image

        def work() -> None:
            self._database.begin()
            self._database.put_roots(image.roots, image.deleted_maps)
            self._database.put_catalog(image.catalog)
            self._database.delete_nodes(image.gone)

        self._in_thread(work, self._next_slice)

    def _take_image(self) -> _Image:
        blockmap, catalog, journal = self._blockmap, self._catalog, self._journal
        self._superblock = replace(
            self._superblock,
            ckpt_epoch=journal.epoch,
            chain_seed=journal.chain,
            next_seq=journal.next_seq,
            generation=blockmap.generation,
            next_map=blockmap.next_map,
            high_water=self._seal(journal.epoch),
        )
        image = _Image(
            superblock=self._superblock,
            roots=[root_row(blockmap.maps[number]) for number in sorted(blockmap.dirty_maps)],
            deleted_maps=blockmap.deleted_maps,
            gone=blockmap.gone,
            catalog=[(kind, key, catalog.raw.get((kind, key))) for kind, key in sorted(catalog.dirty)],
            leaves=blockmap.switch(blockmap.leaves),
            pages=blockmap.switch(blockmap.pages),
        )
        blockmap.dirty_maps, blockmap.deleted_maps, blockmap.gone = set(), [], []
        catalog.dirty = set()
        return image

    # ------------------------------------------------------------------------------------------------ the copy

    def _copy_aside(self, node: int, born: int, body: bytes) -> None:
        assert self._image is not None
        self._image.aside.append((node, born, body))

    def _next_slice(self) -> None:
        image = self._image
        assert image is not None
        rows, image.aside = image.aside, []
        end = image.copied + _SLICE
        rows += self._copy(self._blockmap.leaves, 0, image.leaves[image.copied : end])
        first = max(0, image.copied - len(image.leaves))
        rows += self._copy(self._blockmap.pages, PAGE_NODE, image.pages[first : max(0, end - len(image.leaves))])
        image.copied = min(end, len(image.leaves) + len(image.pages))
        if rows or image.copied < len(image.leaves) + len(image.pages):
            self.nodes_saved += len(rows)
            self._in_thread(lambda: self._database.put_nodes(rows), self._next_slice)
        else:
            self._commit(image)

    def _copy(self, nodes: Nodes, base: int, ids: npt.NDArray[np.uint32]) -> list[NodeRow]:
        rows = []
        for node in ids.tolist():
            if nodes.state[node] == TO_SAVE:  # else it was copied aside when it changed
                rows.append((base + node, nodes.born[node], nodes.blob(node)))
                nodes.state[node] = SAVED
        return rows

    # ------------------------------------------------------------------------------------------------ the commit

    def _commit(self, image: _Image) -> None:
        files = [self._data, *self._journal.files_to_sync()]

        def work() -> None:
            self._database.sync_log()  # flushes wait for the commit, so it must be short
            self._gate.sync(files)
            self._gate.run(lambda: self._database.commit(image.superblock))

        self._in_thread(work, lambda: self._finish(image))

    def _finish(self, image: _Image) -> None:
        self._image = None
        self.checkpoints += 1
        self._journal.recycle()
        self._blockmap.committed(self._blockmap.leaves, image.leaves)
        self._blockmap.committed(self._blockmap.pages, image.pages)
        self._recycle(image.gone)
        waiters, self._waiters, self._next_waiters = self._waiters, self._next_waiters, []
        self._release()
        self._copy_log()
        for done in waiters:
            done(None)
        if self._waiters and self._image is None and not self._copying:
            self._begin()

    def _copy_log(self) -> None:
        """Outside of the gate: it takes as long as the image was large, and concerns no file that others sync."""
        if self._database.log_bytes() >= _LONG_LOG and not self.stopped:
            self._copying = True
            self._runner.in_thread(self._database.copy_log, self._copied)

    def _copied(self, error: BaseException | None) -> None:
        self._copying = False
        if error is not None and not is_full(error):
            self._gate.latch(error)
            self._fail_stop(f"meta.db: {error}")
        if self._waiters and self._image is None:
            if self.stopped:
                self._answer(FailStopped("no checkpoint is made any more"))
            else:
                self._begin()

    def _recycle(self, gone: list[int], at: int = 0) -> None:
        """Let the ids of deleted nodes be used again: soon, for they may be half a million after a large delete."""
        self._blockmap.recycle(gone[at : at + _RECYCLED])
        if at + _RECYCLED < len(gone) and not self.stopped:
            self._runner.call_soon(lambda: self._recycle(gone, at + _RECYCLED))

    def _in_thread(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except (OSError, sqlite3.Error) as error:
                self._database.roll_back()
                if not is_full(error):
                    self._gate.latch(error)
                raise

        def continued(error: BaseException | None) -> None:
            if self.stopped or self._gate.failure is not None or error is not None:
                self._give_up(error)
            else:
                then()

        self._runner.in_thread(guarded, continued)

    def _give_up(self, error: BaseException | None) -> None:
        """Nothing was committed. If the host is only full, everything is dirty again and a later attempt saves it."""
        image, self._image = self._image, None
        assert image is not None
        if is_full(error) and not self.stopped:
            self._take_back(image)
            delay = 0.0 if self._make_room() else _RETRY
            self._cancel_retry = self._runner.call_later(delay, self._retry)
            self._answer(OutOfSpace(f"the checkpoint found no room in the host file system: {error}"))
            return
        self._fail_stop(f"checkpoint failed: {error or self._gate.failure}")
        self._answer(FailStopped(f"checkpoint failed: {error or self._gate.failure}"))

    def _retry(self) -> None:
        self._cancel_retry = None
        if self._image is None and not self.stopped:
            self._begin()

    def _take_back(self, image: _Image) -> None:
        blockmap = self._blockmap
        for nodes, ids in ((blockmap.leaves, image.leaves), (blockmap.pages, image.pages)):
            for node in ids.tolist():
                if nodes.state[node] in (SAVED, TO_SAVE):
                    nodes.state[node] = DIRTY
                    nodes.dirty.append(node)
        blockmap.dirty_maps |= {row[0] for row in image.roots if row[0] in blockmap.maps}
        blockmap.deleted_maps += image.deleted_maps
        blockmap.gone += image.gone
        self._catalog.dirty |= {(kind, key) for kind, key, _ in image.catalog}

    def _answer(self, error: StoreError) -> None:
        waiters, self._waiters, self._next_waiters = self._waiters + self._next_waiters, [], []
        for done in waiters:
            done(error)
