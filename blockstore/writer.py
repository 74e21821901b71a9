"""The batch: writes and trims of one tick, made into one write of data, one of journal, and one change of the maps.

The order is the whole point: data, then permits, then journal, then map, then acknowledgement. Nothing is visible in a
map before both writes succeeded; nothing is acknowledged before the append. What cannot be committed now because the
journal is full waits here in order, as does what needs parts of the map that are not in memory; what finds no space
waits in ``space``.

Invariant: a volume's pending index holds exactly its members that are joined and not committed.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from blockstore.allocator import Run
from blockstore.api import (
    Buffer,
    Done,
    MediumError,
    OutOfSpace,
    Permit,
    Revoked,
    Runner,
    StandingPermit,
    StoreError,
    Undecided,
)
from blockstore.blockmap import BlockMap, Map
from blockstore.device import File
from blockstore.flush import FlushRounds
from blockstore.journal import Journal
from blockstore.layout import LEAF_SHIFT, PAGE_SHIFT, UNIT_SHIFT, WRITE_KIND, pack_one_write, pack_trim, pack_write
from blockstore.records import Crcs

if TYPE_CHECKING:
    from blockstore.residency import Residency
    from blockstore.space import Space
    from blockstore.volume import EngineVolume

BATCH_GRAINS = 1024  # 4 MiB of data a tick: nothing may hold the loop longer than about 10 ms
_RECORD_BYTES = 36  # of a record of one grain, its checksum included; that of a trim is smaller
_SLOW_FROM = 0.5  # of journal or unsynced cap: from here on acknowledgements are delayed...
_SLOWEST = 0.1  # ...up to this many seconds when full. Guessed: stops a queue of 128 x 4 KiB at 5 MB/s

Member = tuple["EngineVolume", int, int, "Buffer | None", "int | Crcs", Permit, Done, bool]
"""(volume, first grain, grains, data or None for a trim, checksum or checksums, permit, done, sync). A tuple: the hot
path makes one per write, and nothing is cheaper."""
Piece = tuple[Map, int, int, int, "int | Crcs"]
"""(map, first grain, grains, first block or 0 for a trim, checksum or checksums)."""


class BatchWriter:
    """``unsynced_cap``: bytes of data that a power cut may lose at most before writers are slowed and synced."""

    def __init__(
        self,
        runner: Runner,
        data: File,
        journal: Journal,
        blockmap: BlockMap,
        rounds: FlushRounds,
        *,
        unsynced_cap: int,
        fail_stop: Callable[[str], None],
        need_checkpoint: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._data = data
        self._journal = journal
        self._blockmap = blockmap
        self._rounds = rounds
        self._unsynced_cap = unsynced_cap
        self._fail_stop = fail_stop
        self._need_checkpoint = need_checkpoint
        self.space: Space
        self.residency: Residency
        self._members: list[Member] = []
        self._due = False
        self._waiting: list[Callable[[], None]] = []  # run once the members before them are committed
        self.refusal: StoreError | None = None  # why nothing may join any more
        self._parked: dict[int, Member] = {}  # their nodes are being loaded; by ticket, oldest first
        self._next_ticket = 0
        self._afterwards: deque[tuple[int, Callable[[], None]]] = deque()  # run when all before this ticket are gone
        self._held: deque[list[Done]] = deque()  # committed; their acknowledgements are delayed
        self._undecided: list[Member] = []  # their append failed: their grains are neither old nor new
        self._undecided_verb = False  # a verb's append failed: it is neither done nor not done
        self.writes = self.write_bytes = self.trims = self.batches = self.delayed = 0

    @property
    def undecided(self) -> bool:
        return self._undecided_verb or bool(self._undecided)

    def leave_verb_undecided(self, changed: Iterable[EngineVolume]) -> None:
        """The append of a verb failed. Every grain of the volumes whose content it would have changed is neither old
        nor new."""
        self._undecided_verb = True
        for volume in changed:
            grains = volume.size >> UNIT_SHIFT
            self._undecided.append((volume, 0, grains, None, 0, StandingPermit(), lambda error: None, False))
            volume.index_pending(0, grains)

    def join(self, member: Member) -> None:
        """Take part in this tick's batch. The volume has put the grains into its pending index."""
        self._members.append(member)
        if not self._due:
            self._due = True
            self._runner.call_soon(self._end_of_tick)

    def cut(self) -> bool:
        """Commit everything that joined. False if some had to stay: the journal is full, or the pool stopped."""
        while self._members and self.refusal is None and self._commit():
            pass
        return not self._members

    def after_commit(self, action: Callable[[], None]) -> None:
        """Commit what joined, then run ``action``; later, if the journal has no room now."""
        if (self.cut() or self.refusal is not None) and not self._waiting:
            action()
        else:
            self._waiting.append(action)

    def after_waiting(self, action: Callable[[], None]) -> None:
        """Run ``action`` when the writes that wait for nodes or space now have joined again, or were refused."""
        if self._parked:
            self._afterwards.append((self._next_ticket, action))
        else:
            self.space.after_waiting(action)

    def wait_for_room(self, action: Callable[[], None]) -> None:
        """Run ``action``, the first of all that wait, when the journal has room again."""
        self._waiting.insert(0, action)

    def resume(self) -> None:
        """The journal has room again, or the pool stopped: go on with what waited."""
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            self.after_commit(action)
        self.cut()

    def refuse_all(self, error: StoreError) -> None:
        """The pool stopped: nothing that has not been appended ever will be."""
        self.refusal = error
        members, self._members, self._parked = [*self._members, *self._parked.values()], [], {}
        self._unindex(members)
        while self._held:  # committed, whatever stopped the pool, and nobody may run timers after a close
            self._let_go()
        for member in members:
            member[6](error)
        self._go_on()
        self.resume()

    def drop(self, members: list[Member], error: StoreError) -> None:
        """Members that ``space`` gave up on: nothing of them is stored."""
        self._unindex(members)
        for member in members:
            member[6](error)

    def _end_of_tick(self) -> None:
        self._due = False
        if self._members and self.refusal is None and self._commit() and self._members:
            self._due = True
            self._runner.call_soon(self._end_of_tick)

    # --------------------------------------------------------------------------------------------- one batch

    def _commit(self) -> bool:
        """Commit up to ``BATCH_GRAINS``. False if nothing can be committed now."""
        members = self._take()
        if True in [member[5].revoked for member in members]:
            self._drop_revoked(members)
            return True
        if self._blockmap.absent and self._park_absent(members):
            return True
        need = sum([member[2] for member in members if member[3] is not None])
        # As if free space were in single blocks and every grain needed a record of its own: it may be so.
        if not self._journal.fits(_RECORD_BYTES * (len(members) + need)):
            self._members = members + self._members
            self._need_checkpoint()
            return False
        runs = self.space.allocate(need) if need else []
        if (need and not runs) or not self._nodes_suffice(members, need, len(runs)):
            self._turn_away(members, runs)
            return True
        # Permits were read above and nothing can revoke one between there and the append: no callback runs between.
        pieces, writes = _place(members, runs)
        error = self._write_data(writes, members) or self._append(pieces, members)
        if error is None:
            self._apply(pieces)
        self._unindex(members)
        self._answer(members, error, need)
        return True

    def _nodes_suffice(self, members: list[Member], grains: int, runs: int) -> bool:
        """Whether the map can take this batch, so that applying it cannot fail. A loose bound first, then a count."""
        pieces = len(members) + runs
        if self._blockmap.can_take(2 * pieces + (grains >> LEAF_SHIFT), 2 * pieces, healing=not grains):
            return True
        leaves = {
            (member[0].map.number, leaf)
            for member in members
            for leaf in range(member[1] >> LEAF_SHIFT, ((member[1] + member[2] - 1) >> LEAF_SHIFT) + 1)
        }
        pages = {(number, leaf >> PAGE_SHIFT) for number, leaf in leaves}
        return self._blockmap.can_take(len(leaves), len(pages), healing=not grains)

    def _take(self) -> list[Member]:
        """What one batch may hold: so many grains of data, or trims that cost the loop and the journal as much."""
        members = self._members
        grains = 0
        for i, member in enumerate(members):
            grains += member[2] if member[3] is not None else 1 + (member[2] >> LEAF_SHIFT)
            if grains > BATCH_GRAINS and i:
                self._members = members[i:]
                return members[:i]
        self._members = []
        return members

    def _drop_revoked(self, members: list[Member]) -> None:
        """Put back what is still permitted; the rest never happened. The batch is formed again after the answers."""
        self._members = [member for member in members if not member[5].revoked] + self._members
        dropped = [member for member in members if member[5].revoked]
        self._unindex(members)
        for member in dropped:
            member[6](Revoked("the write's permit was revoked"))

    def _park_absent(self, members: list[Member]) -> bool:
        """Put those aside whose nodes are not in memory. False if there are none; else the batch is formed again."""
        absent = {
            id(member): nodes
            for member in members
            if (nodes := self._blockmap.absent_nodes(member[0].map, member[1], member[2]))
        }
        if not absent:
            return False
        self._members = [member for member in members if id(member) not in absent] + self._members
        for member in members:
            if id(member) in absent:
                ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
                self._parked[ticket] = member
                self.residency.load(absent[id(member)], partial(self._unpark, ticket))
        return True

    def needed_nodes(self) -> set[int]:
        """Those, by stored id, of the grains of all that wait for their batch or for parts of the map."""
        waiting = [*self._members, *self._parked.values()]
        return {node for m in waiting for node in self._blockmap.nodes_under(m[0].map, m[1], m[2])}

    def _unpark(self, ticket: int, error: StoreError | None) -> None:
        if self.refusal is not None:
            return  # it was answered when the pool stopped
        member = self._parked.pop(ticket)
        refusal = error or member[0].refusal(member[1], member[2])  # removed, or smaller, while this waited
        if refusal is None:
            self.join(member)
        else:
            self.drop([member], refusal)
        self._go_on()

    def _go_on(self) -> None:
        oldest = next(iter(self._parked), self._next_ticket)
        while self._afterwards and self._afterwards[0][0] <= oldest:
            self.space.after_waiting(self._afterwards.popleft()[1])

    def _turn_away(self, members: list[Member], runs: list[Run]) -> None:
        """No room for this batch. Trims need no blocks and stay; writes wait for space, or are refused."""
        for start, count in runs:
            self.space.allocator.release(start, count)
        writes = [member for member in members if member[3] is not None]
        if writes:
            self._members = [member for member in members if member[3] is None] + self._members
        self._unindex(members)
        if writes and not runs:
            self.space.wait(writes)
        else:
            for member in writes or members:
                nodes = f"{self._blockmap.leaves.available} leaves and {self._blockmap.pages.available} pages"
                member[6](OutOfSpace(f"map memory: {nodes} are left"))

    def _write_data(self, writes: list[tuple[int, list[Buffer]]], members: list[Member]) -> StoreError | None:
        try:
            for block, buffers in writes:
                self._data.write(block << UNIT_SHIFT, buffers)
        except OSError as error:
            # The blocks are abandoned: nothing names them, so the next sweep brings them back.
            self._blockmap.dropped += sum(member[2] for member in members if member[3] is not None)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return OutOfSpace(f"the host file system is full: {error}")
            return members[0][0].damaged(MediumError(f"data write failed: {error}", members[0][1] << UNIT_SHIFT))
        return None

    def _append(self, pieces: list[Piece], members: list[Member]) -> StoreError | None:
        try:
            self._journal.append([_record(piece) for piece in pieces])
        except OSError as error:
            self._undecided = members
            self._fail_stop(f"journal append failed: {error}")
            return Undecided(f"journal append failed: {error}")
        self.batches += 1
        return None

    def _apply(self, pieces: list[Piece]) -> None:
        blockmap = self._blockmap
        for to, grain, count, block, crcs in pieces:
            if isinstance(crcs, int):
                if block:
                    blockmap.write_one(to, grain, block, crcs)
                else:
                    blockmap.trim(to, grain, count)
            else:
                blockmap.write(to, grain, block, crcs)

    def _unindex(self, members: list[Member]) -> None:
        """Take ``members`` out of the pending index; what stays joined, or is undecided, is put in again."""
        for volume in {member[0] for member in members}:
            volume.forget_pending()
        waiting = (self._members, self._parked.values(), self._undecided, self.space.waiting_members())
        for member in chain.from_iterable(waiting):
            member[0].index_pending(member[1], member[2])

    def _answer(self, members: list[Member], error: StoreError | None, grains: int) -> None:
        self._rounds.unsynced_bytes += grains << UNIT_SHIFT
        if error is not None:
            for member in members:
                member[6](_of_member(error, member))
            return
        self.writes += len(members)
        self.write_bytes += grains << UNIT_SHIFT
        delay = self._delay()
        plain = [member[6] for member in members if not member[7]]
        if len(plain) < len(members):
            for member in members:
                if member[7]:
                    self._rounds.join(member[6])
        if delay and plain:
            self.delayed += len(plain)
            self._held.append(plain)
            self._runner.call_later(delay, self._let_go)
        else:
            _call_all(plain, None)

    def _let_go(self) -> None:
        """Acknowledge the batch that was held back longest, one for each timer."""
        if self._held:
            _call_all(self._held.popleft(), None)

    def _delay(self) -> float:
        """Seconds to hold acknowledgements: rises from the mark in proportion, so that nobody is ever stopped."""
        journal, rounds = self._journal, self._rounds
        fill = journal.position / journal.size
        if fill > _SLOW_FROM:
            self._need_checkpoint()
        if not journal.previous_live:
            fill = 0.0  # the switch that was just asked for empties it at once
        if self.residency.pressure > _SLOW_FROM:
            self._need_checkpoint()
            fill = max(fill, min(1.0, self.residency.pressure))
        unsynced = rounds.unsynced_bytes / self._unsynced_cap
        if unsynced > _SLOW_FROM:
            rounds.start_in_background()
            fill = max(fill, unsynced)
        return 0.0 if fill <= _SLOW_FROM else _SLOWEST * (fill - _SLOW_FROM) / (1 - _SLOW_FROM)


def _of_member(error: StoreError, member: Member) -> StoreError:
    """What failed for the whole batch, as one member sees it: at an offset of its own volume."""
    return MediumError(str(error), member[1] << UNIT_SHIFT) if isinstance(error, MediumError) else error


def _call_all(answers: list[Done], error: StoreError | None) -> None:
    for done in answers:
        done(error)


def _record(piece: Piece) -> bytes:
    to, grain, count, block, crcs = piece
    if not isinstance(crcs, int):
        return pack_write(to.number, grain, block, crcs)
    return pack_one_write(WRITE_KIND, to.number, 1, grain, block, crcs) if block else pack_trim(to.number, grain, count)


def _place(members: list[Member], runs: list[Run]) -> tuple[list[Piece], list[tuple[int, list[Buffer]]]]:
    """Give every grain its block: (pieces in the members' order, data as (first block, buffers))."""
    pieces: list[Piece] = []
    writes: list[tuple[int, list[Buffer]]] = []
    left = iter(runs)
    block = room = 0
    for volume, grain, count, data, crcs, _permit, _done, _sync in members:
        if data is None:
            pieces.append((volume.map, grain, count, 0, 0))
            continue
        if room < count:  # the slow way: the member is cut where the run ends
            block, room = _place_in_pieces((volume.map, grain, count, data, crcs), left, block, room, pieces, writes)
            continue
        pieces.append((volume.map, grain, count, block, crcs))
        writes[-1][1].append(data)
        block += count
        room -= count
    return pieces, writes


def _place_in_pieces(
    member: tuple[Map, int, int, Buffer, int | Crcs],
    runs: Iterator[Run],
    block: int,
    room: int,
    pieces: list[Piece],
    writes: list[tuple[int, list[Buffer]]],
) -> tuple[int, int]:
    to, grain, count, data, crcs = member
    view = memoryview(data)
    done = 0
    while done < count:
        if room == 0:
            block, room = next(runs)
            writes.append((block, []))
        piece = min(room, count - done)
        part = crcs if isinstance(crcs, int) else crcs[done : done + piece]
        pieces.append((to, grain + done, piece, block, part))
        writes[-1][1].append(view[done << UNIT_SHIFT : (done + piece) << UNIT_SHIFT])
        block, room, done = block + piece, room - piece, done + piece
    return block, room
