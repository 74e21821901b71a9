"""Receiving a snapshot: records go into staged maps that nobody sees; one batch at the end makes the snapshot.

A full stream makes a group; one that starts from a snapshot continues the group that has it, which must not have been
written since: its volumes follow to the new snapshot in the same batch. What was cut goes on from ``Staged.position``.

Invariants: nothing of a piece is written before its checksums matched; nothing of a group changes before the tail
proved that no piece is missing; the snapshot, the group's volumes and the end of the staging are one journal batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from uuid import uuid4

from blockstore.api import (
    AlreadyExists,
    Buffer,
    CachePolicy,
    Corrupt,
    Done,
    GroupRecord,
    InUse,
    Invalid,
    NotFound,
    SnapshotRecord,
    StandingPermit,
    VolumeRecord,
)
from blockstore.catalog import Catalog, GroupEntry, SnapshotEntry
from blockstore.export_diff import Begin, Data, End, RbdRecord, Zero, parse_rbd
from blockstore.group import OpenVolume, Plan, refuse_taken
from blockstore.hold import Hold
from blockstore.pool import EnginePool
from blockstore.records import CloneMap, CreateMap, DeleteMap, Edit, ResizeMap, RollbackMap
from blockstore.staging import Staged, find_staged, require_staged
from blockstore.steps import Steps, all_answered, in_thread, run
from blockstore.stream import START, Head, Piece, Position, StreamDecoder, Tail, unpack

_SAVE_EVERY = 64 << 20  # bytes between two notes of the position: what a kill makes to be sent again, at most
_RECORDS_AT_ONCE = 512  # a piece of senders of ours has half as many; a tick is about 2 ms
_PERMIT = StandingPermit()


class Receiver:
    """A stream into the pool, for group ``name``. ``feed`` what comes, ``end`` when no more comes, ``commit`` when
    ``complete``; ``close`` always."""

    def __init__(self, pool: EnginePool, name: str, *, iqn: str) -> None:
        """``iqn``: of the group, if the stream makes one. Raises InUse while another stream is received for it."""
        if name in pool.catalog.receiving:
            raise InUse(f"another stream is being received for group {name}")
        pool.catalog.receiving.add(name)
        self._pool = pool
        self._name = name
        self._iqn = iqn
        self._decoder = StreamDecoder()
        self._hold: Hold | None = None
        self._base: SnapshotEntry | None = None
        self._staged: Staged | None = None
        self._volumes: dict[int, OpenVolume] = {}
        self._current: int | None = None  # LUN of the volume whose records come now
        self._begun: list[int] = []  # LUNs, in order, of which this stream brought the beginning
        self._start = START
        self._unsaved = 0
        self.complete = False

    def close(self) -> None:
        """Another stream may be received for the group. What was staged stays, and nothing that is still under way
        here writes to it any more."""
        for volume in self._volumes.values():
            volume.detach()
        self._pool.catalog.receiving.discard(self._name)
        if self._hold is not None:
            self._hold.release()

    @property
    def staged(self) -> Staged:
        """What there is so far. Raises Corrupt before the head has come."""
        if self._staged is None:
            raise Corrupt("stream: it ended before its head")
        return self._staged

    # ------------------------------------------------------------------------------------------------ bytes come

    def feed(self, data: Buffer) -> Future[None]:
        """Take the next bytes of the stream; answered when they are dealt with, so that whoever feeds is held back.
        After an error nothing more may be fed. Raises Corrupt, and what the pool refuses."""
        return run(self._take(data))

    def _take(self, data: Buffer) -> Steps[None]:
        self._decoder.feed(data)
        while (value := self._decoder.next()) is not None:
            match value:
                case Head():
                    yield from self._begin(value)
                case Piece():
                    yield from self._apply(value)
                case Tail():
                    self._check_whole()
                    self.complete = True

    def save(self) -> Future[None]:
        """Note how far it is, so that a receive that is given up here goes on from here."""
        return run(self._save())

    def end(self) -> Future[None]:
        """The input ended. Raises Corrupt when that was before the stream's end; what came stays staged."""
        return run(self._end())

    def _end(self) -> Steps[None]:
        yield from self._save()
        if not self.complete:
            staged = self.staged
            raise Corrupt(
                f"stream: cut at LUN {staged.position.lun}, byte {staged.position.offset}; "
                f"go on with `snapshot send ... --resume {staged.token}`"
            )

    # ------------------------------------------------------------------------------------------------ the head

    def _begin(self, head: Head) -> Steps[None]:
        staged = find_staged(self._pool.catalog, self._name)
        if staged is None:
            if head.start != START:
                raise Invalid(f"the stream goes on at {_place(head.start)}, but its beginning was never received")
            staged = yield self._pool.control(lambda: self._plan_staging(head))
        elif not staged.head.same_transfer(head):
            raise InUse(
                f"{staged.head.to.name} is half received for group {self._name}: finish it with --resume, or forget "
                "it with `blockyard snapshot receive --abort`"
            )
        elif head.start > staged.position:
            raise Invalid(f"the stream goes on at {_place(head.start)}, but only {_place(staged.position)} is reached")
        self._staged, self._start = replace(staged, position=head.start), head.start
        self._base = self._keep_base(head)
        self._volumes = {lun: self._pool.open_volume(uuid4(), number) for lun, number in staged.maps.items()}

    def _plan_staging(self, head: Head) -> Plan[Staged]:
        next_map = self._pool.next_map
        maps = {volume.lun: next_map + i for i, volume in enumerate(head.volumes)}
        staged = Staged(self._name, self._iqn, head, maps, START, 0)
        old: dict[int, tuple[int, int]] = {}  # map and size by LUN
        base = self._accept(head)
        if base is not None:
            old = {volume.lun: (base.maps[volume.lun], volume.size) for volume in base.record.volumes}
        edits: list[Edit] = []
        for volume in head.volumes:
            if volume.lun not in old:
                edits.append(CreateMap(maps[volume.lun], volume.size))
                continue
            source, size = old[volume.lun]
            if volume.size < size:
                raise Invalid(f"LUN {volume.lun} has {size} bytes here, {volume.size} in the stream: it would shrink")
            edits.append(CloneMap(maps[volume.lun], source))
            if volume.size > size:
                edits.append(ResizeMap(maps[volume.lun], volume.size))
        return Plan((*edits, staged.put()), lambda: staged)

    def _accept(self, head: Head) -> SnapshotEntry | None:
        """The base of a stream that may come in now, None if it has none. Raises what refuses it."""
        if head.base is None:
            self._refuse_existing()
            return None
        group, base = _find_base(self._pool.catalog, self._name, head)
        self._refuse_written(group, base, head)
        return base

    def _keep_base(self, head: Head) -> SnapshotEntry | None:
        """The base, which nobody deletes until ``close``."""
        if head.base is None:
            return None
        _, base = _find_base(self._pool.catalog, self._name, head)
        self._hold = Hold(self._pool.catalog, self._name, base.record.name)
        return base

    def _refuse_existing(self) -> None:
        if self._name in self._pool.catalog.groups:
            raise AlreadyExists(f"group {self._name} exists: a stream of everything makes a new group")
        refuse_taken(self._pool.catalog, self._name, self._iqn)

    def _refuse_written(self, group: GroupEntry, base: SnapshotEntry, head: Head) -> None:
        """The group's volumes must be exactly the base's: their writes since would be lost without a word."""
        if group.record.leaving is not None:
            raise InUse(f"group {self._name} is leaving this pool: it does not change here any more")
        if head.to.name in self._pool.catalog.snapshots.get(group.record.uuid, {}):
            raise AlreadyExists(f"group {self._name} has a snapshot {head.to.name!r} already")
        maps = self._pool.blockmap.maps
        same = group.maps.keys() == base.maps.keys() and all(
            # Maps share nodes only by copy-on-write: the first write into either gives it a page of its own.
            (maps[number].root, maps[number].size) == (maps[base.maps[lun]].root, maps[base.maps[lun]].size)
            for lun, number in group.maps.items()
        )
        if not same:
            raise InUse(
                f"group {self._name} was written since its snapshot {base.record.name}: roll it back to that first, "
                f"or receive into another group"
            )

    # ------------------------------------------------------------------------------------------------ the pieces

    def _apply(self, piece: Piece) -> Steps[None]:
        if piece.lun not in self.staged.maps:
            raise Corrupt(f"stream: piece {piece.number} is of LUN {piece.lun}, which its head does not name")
        content: bytes = yield in_thread(self._pool.runner, lambda: unpack(piece))
        starts: list[Callable[[Done], None]] = []
        volume = self._volumes[piece.lun]
        for record in parse_rbd(content):
            self._follow(piece, record)
            if isinstance(record, Data):
                starts.append(partial(volume.write, record.offset, record.data, _PERMIT))
            elif isinstance(record, Zero):
                starts.append(partial(volume.discard, record.offset, record.length, _PERMIT))
        for at in range(0, len(starts), _RECORDS_AT_ONCE):  # so many share a batch, which costs as much as one of them
            yield all_answered(starts[at : at + _RECORDS_AT_ONCE])
        staged = self.staged
        reached = Position(piece.lun, piece.position)
        if reached < staged.position:
            raise Corrupt(f"stream: piece {piece.number} leads back to {_place(reached)}")
        self._staged = replace(staged, position=reached, received=staged.received + piece.length)
        self._pool.counters.received_bytes += piece.length
        self._unsaved += piece.length
        if self._unsaved >= _SAVE_EVERY:
            yield from self._save()

    def _follow(self, piece: Piece, record: RbdRecord) -> None:
        """Records of a volume come between its begin and its end, within its size. Raises Corrupt."""
        head = self.staged.head
        size = next(volume.size for volume in head.volumes if volume.lun == piece.lun)
        if isinstance(record, Begin):
            known = head.base.name if head.base and self._base and piece.lun in self._base.maps else None
            if self._current is not None or record.to != head.to.name or record.base != known:
                raise Corrupt(f"stream: LUN {piece.lun} begins as {record.to!r} from {record.base!r}")
            if record.size != size:
                raise Corrupt(f"stream: LUN {piece.lun} begins with {record.size} bytes; its head says {size}")
            self._current = piece.lun
            self._begun.append(piece.lun)
        elif self._current != piece.lun:
            raise Corrupt(f"stream: a record of LUN {piece.lun} comes before its beginning or after its end")
        elif isinstance(record, End):
            self._current = None
        else:
            length = record.length if isinstance(record, Zero) else len(record.data)
            if record.offset + length > size:
                raise Corrupt(f"stream: {length} bytes at {record.offset} of LUN {piece.lun}, which has {size}")

    def _check_whole(self) -> None:
        """The tail came: every volume from the start on was brought to its end."""
        staged = self.staged
        wanted = [lun for lun in sorted(staged.maps) if lun >= self._start.lun]
        if self._current is not None or self._begun != wanted:
            raise Corrupt(f"stream: it ends with LUNs {self._begun}; {wanted} were announced")

    def _save(self) -> Steps[None]:
        """Note durably how far it is; before the head has come there is nothing to note."""
        staged, self._unsaved = self._staged, 0
        if staged is not None and find_staged(self._pool.catalog, self._name) is not None:
            yield self._pool.control(lambda: Plan((staged.put(),), lambda: None))

    # ------------------------------------------------------------------------------------------------ the end

    def commit(self) -> Future[SnapshotRecord]:
        """Make the snapshot, and the group or its volumes' new content, visible at once. Only when ``complete``.
        Raises AlreadyExists, InUse, NotFound when the group changed meanwhile; what was staged stays then."""
        assert self.complete
        return self._pool.control(self._plan_commit)

    def _plan_commit(self) -> Plan[SnapshotRecord]:
        staged = require_staged(self._pool.catalog, self._name)
        if staged.head.base is None:
            self._refuse_existing()
            group, edits = self._plan_new_group(staged)
        else:
            there, base = _find_base(self._pool.catalog, self._name, staged.head)
            self._refuse_written(there, base, staged.head)
            group, edits = self._plan_follow(staged, there)
        head = staged.head
        record = SnapshotRecord(head.to.name, uuid4(), head.created, group.record.volumes, origin=head.to.identity)
        snapshot = SnapshotEntry(group.record.uuid, record, staged.maps)
        return Plan((*edits, group.put(), snapshot.put(), staged.delete()), lambda: record)

    def _plan_new_group(self, staged: Staged) -> tuple[GroupEntry, list[Edit]]:
        now, next_map = time.time(), self._pool.next_map
        volumes = tuple(VolumeRecord(v.lun, v.name, uuid4(), v.size, now) for v in staged.head.volumes)
        maps = {volume.lun: next_map + i for i, volume in enumerate(volumes)}
        next_lun = max((volume.lun + 1 for volume in volumes), default=0)
        record = GroupRecord(
            self._name, uuid4(), staged.iqn, now, CachePolicy.WRITEBACK, (), volumes, next_lun=next_lun
        )
        return GroupEntry(record, maps), [CloneMap(maps[lun], staged.maps[lun]) for lun in maps]

    def _plan_follow(self, staged: Staged, group: GroupEntry) -> tuple[GroupEntry, list[Edit]]:
        """The group's volumes get the new content, and keep their identities."""
        now, next_map = time.time(), self._pool.next_map
        known = {volume.lun: volume for volume in group.record.volumes}
        volumes: list[VolumeRecord] = []
        maps: dict[int, int] = {}
        edits: list[Edit] = []
        for volume in staged.head.volumes:
            lun, source = volume.lun, staged.maps[volume.lun]
            if lun in known:
                volumes.append(replace(known[lun], name=volume.name, size=volume.size))
                maps[lun] = group.maps[lun]
                edits.append(RollbackMap(maps[lun], source))
            else:
                volumes.append(VolumeRecord(lun, volume.name, uuid4(), volume.size, now))
                maps[lun] = next_map
                edits.append(CloneMap(next_map, source))
                next_map += 1
        edits += (DeleteMap(number) for lun, number in group.maps.items() if lun not in maps)
        next_lun = max([group.record.next_lun, *(volume.lun + 1 for volume in volumes)])
        return GroupEntry(replace(group.record, volumes=tuple(volumes), next_lun=next_lun), maps), edits


def abort_receive(pool: EnginePool, name: str) -> Future[None]:
    """Forget what is half received for ``name``. Raises NotFound, InUse while a stream comes in."""

    def prepare() -> Plan[None]:
        if name in pool.catalog.receiving:
            raise InUse(f"a stream is being received for group {name}: end that first")
        return Plan(require_staged(pool.catalog, name).discard(), lambda: None)

    return pool.control(prepare)


def _find_base(catalog: Catalog, name: str, head: Head) -> tuple[GroupEntry, SnapshotEntry]:
    """The group that the stream continues, and its snapshot with the identity of the stream's base."""
    assert head.base is not None
    group = catalog.groups.get(name)
    if group is None:
        raise NotFound(f"no group {name!r}, and the stream has only what changed since {head.base.name}")
    for entry in catalog.snapshots.get(group.record.uuid, {}).values():
        if entry.record.identity == head.base.identity:
            return group, entry
    raise NotFound(
        f"group {name} has no snapshot with the identity of the stream's base {head.base.name} ({head.base.identity})"
    )


def _place(position: Position) -> str:
    return f"LUN {position.lun}, byte {position.offset}"
