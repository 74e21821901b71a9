"""Which nodes are in memory: reading absent ones from ``meta.db``, and giving memory back above the budget.

A helper thread reads rows over a connection of its own; the loop takes them in if their nodes are still absent. What is
evicted is chosen by a clock: a node that was looked at since the hand passed stays for another turn. Only nodes of a
committed image go, so what is read later is what was there; none goes while a row of it is on its way, or an old row
could be believed after it was changed, saved and evicted again. Nobody who waits for a batch loses the nodes it needs,
and the last ones that were loaded stay, so that whoever waited for them gets on, however small the budget is.

Invariant: a caller of ``load`` finds the nodes in memory when it is answered; afterwards it has to look again.
"""

from __future__ import annotations

import mmap
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from blockstore.api import Done, MediumError, Runner, StoreError
from blockstore.blockmap import BlockMap
from blockstore.checkpoint import Row, read_rows, take_in_rows
from blockstore.futures import new_future
from blockstore.layout import LEAF_BYTES, UNIT
from blockstore.nodes import Ids, Nodes

_AT_ONCE = 512  # rows read in one go: 4 ms of a helper thread
_WINDOW = 8192  # ids that the clock's hand passes in one slice...
_MOST_EVICTED = 512  # ...and rows given back in it: 4 ms where none is next to another, two calls of the kernel each
_PAGE_SHARE = 4  # pages may have one of so many parts of the budget: 1 GiB for the leaves of 8 TiB needs 1 MiB of them
_RECENT = 16  # at least so many nodes that were loaded last stay; guessed
_ROOM = 16  # once evicting, one of so many parts of the budget is made free, so that it is rarely begun
_CHECKPOINT_AT = 0.5  # of the budget: dirty rows above it are to be saved now


class Residency:
    """``budget``: bytes that rows may take, as long as they can be given back; ``needed``: nodes of writes that are not
    committed; ``need_checkpoint``: so much is dirty that too little can be evicted."""

    def __init__(
        self,
        runner: Runner,
        blockmap: BlockMap,
        connect: Callable[[], sqlite3.Connection],
        *,
        budget: int,
        needed: Callable[[], Collection[int]],
        need_checkpoint: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._blockmap = blockmap
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self.budget = budget
        self._needed = needed
        self._need_checkpoint = need_checkpoint
        self._wanted: dict[int, list[_Request]] = {}
        self._reading: list[int] = []  # nodes whose rows are on their way
        self._evicting = False
        self._recent: deque[int] = deque(maxlen=max(_RECENT, budget // (_ROOM * LEAF_BYTES)))  # loaded last
        self._hands = {"leaf": 1, "page": 1}
        self.loaded = self.evicted = 0  # rows
        self.stopped = False

    # ------------------------------------------------------------------------------------------------ loading

    def load(self, nodes: Sequence[int], done: Done) -> None:
        """Bring these nodes, by their ids in ``meta.db``, into memory. MediumError when one cannot be read."""
        request = _Request(done, len(nodes))
        for node in nodes:
            self._wanted.setdefault(node, []).append(request)
        self._read()

    def fetch(self, nodes: Sequence[int]) -> Future[None]:
        """``load`` as a future."""
        future: Future[None] = new_future()

        def done(error: StoreError | None) -> None:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.load(nodes, done)
        return future

    def _read(self) -> None:
        if self._reading or not self._wanted:
            return
        wanted = self._reading = list(self._wanted)[:_AT_ONCE]
        found: list[tuple[list[Row], dict[int, str]]] = []

        def work() -> None:
            if self._connection is None:
                self._connection = self._connect()
            found.append(read_rows(self._connection, wanted))

        def landed(error: BaseException | None) -> None:
            self._reading = []
            if error is None:
                problems = take_in_rows(self._blockmap, wanted, *found[0])
            else:
                problems = dict.fromkeys(wanted, str(error))
            self.loaded += len(wanted) - len(problems)
            self._recent.extend(wanted)
            self._answer(wanted, problems)
            self._read()
            self.relieve()

        self._runner.in_thread(work, landed)

    def _answer(self, nodes: list[int], problems: Mapping[int, str]) -> None:
        requests = [(node, self._wanted.pop(node)) for node in nodes]
        for node, waiting in requests:
            error = MediumError(f"the map cannot be read: {problems[node]}", 0) if node in problems else None
            for request in waiting:
                request.arrived(error)

    # ------------------------------------------------------------------------------------------------ evicting

    @property
    def pressure(self) -> float:
        """How much of the budget is dirty: 1 and more, if nothing can be evicted before a checkpoint."""
        return self._blockmap.dirty_bytes / self.budget

    def relieve(self) -> None:
        """Give memory back, soon, if more than the budget is used."""
        if self._blockmap.held_bytes <= self.budget or self._evicting or self.stopped or mmap.PAGESIZE > UNIT:
            return  # where the kernel's pages are larger, rows cannot be given back one by one
        if self.pressure > _CHECKPOINT_AT:
            self._need_checkpoint()
        self._evicting = True
        self._runner.call_soon(lambda: self._evict(max(self._blockmap.leaves.top, self._blockmap.pages.top)))

    def _evict(self, left: int) -> None:
        """One slice; ``left``: ids that the hand may still pass before the next occasion."""
        excess = self._blockmap.held_bytes - self.budget + self.budget // _ROOM
        if excess <= 0 or left <= 0 or self.stopped:
            self._evicting = False
            return
        kept = np.array([*self._reading, *self._recent, *self._needed()], np.int64)
        pages = self._blockmap.pages
        if pages.held * pages.row_bytes > self.budget // _PAGE_SHARE:
            self._pass(pages, excess, kept)
        self._pass(self._blockmap.leaves, excess, kept)
        self._runner.call_soon(lambda: self._evict(left - _WINDOW))

    def _pass(self, nodes: Nodes, excess: int, kept: Ids) -> None:
        hand = self._hands[nodes.what]
        most = min(_MOST_EVICTED, -(-excess // nodes.row_bytes))
        victims, hand = nodes.victims(hand if hand < nodes.top else 1, _WINDOW, most)
        self._hands[nodes.what] = hand
        victims = victims[~np.isin(victims + nodes.first_stored, kept)]
        nodes.evict(victims)
        self.evicted += len(victims)

    def close(self) -> None:
        """When no helper works any more."""
        if self._connection is not None:
            self._connection.close()


class _Request:
    """Somebody who waits for several nodes."""

    __slots__ = ("_done", "_error", "_left")

    def __init__(self, done: Done, count: int) -> None:
        self._done = done
        self._left = count
        self._error: StoreError | None = None

    def arrived(self, error: StoreError | None) -> None:
        """One of them."""
        self._error = self._error or error
        self._left -= 1
        if not self._left:
            self._done(self._error)
