"""A group that moves here from another pool: its snapshots come in one after another, its commit makes it a group.

The snapshots keep their identities and are entries of the catalogue like any other, of a group that is not there yet;
no group shows them, no name finds them, and whoever counts or frees blocks sees maps like any other. The last of them
holds what the volumes are when the other pool stops serving (``Group.leave``); at the commit its maps *become* the
volumes. Who may serve is not decided here: that is the generation in the record (``blockyard.moves``).

Invariants: of one UUID there is a group or an arrival, never both; the commit is one journal batch; the bytes are
verified as those of every stream (``receive``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from uuid import UUID

from blockstore.api import AlreadyExists, Corrupt, GroupRecord, InUse, Invalid, NotFound, SnapshotRecord
from blockstore.catalog import Catalog, GroupEntry, SnapshotEntry
from blockstore.group import Plan, refuse_taken
from blockstore.pool import EnginePool
from blockstore.receive import Receiver
from blockstore.records import DeleteMap, Edit, SnapMap
from blockstore.staging import Arrival, Staged, find_arrival, find_staged, require_arrival, require_staged
from blockstore.steps import Steps, run
from blockstore.stream import Head

_EDITS_AT_ONCE = 512  # of forgetting: as of a group's deletion


class ArrivalReceiver(Receiver):
    """The stream of ``record``, a snapshot of a group that is arriving. The base, if there is one, came before it."""

    def __init__(self, pool: EnginePool, group: UUID, record: SnapshotRecord) -> None:
        """Raises NotFound, InUse while another snapshot of the group comes in."""
        arrival = require_arrival(pool.catalog, group)
        super().__init__(pool, arrival.staging, iqn=arrival.iqn)
        self._arrival = arrival
        self._record = record

    def _begin(self, head: Head) -> Steps[None]:
        """What is half there of another snapshot, or from another base, is forgotten."""
        staged = find_staged(self._pool.catalog, self._name)
        if staged is not None and not staged.head.same_transfer(head):
            edits = staged.discard()
            yield self._pool.control(lambda: Plan(edits, lambda: None))
        yield from super()._begin(head)

    def _accept(self, head: Head) -> SnapshotEntry | None:
        require_arrival(self._pool.catalog, self._arrival.group)
        self._check_announced(head)
        snapshots = self._pool.catalog.snapshots.get(self._arrival.group, {})
        if any(entry.record.uuid == self._record.uuid for entry in snapshots.values()):
            raise AlreadyExists(f"snapshot {self._record.name} of group {self._arrival.name} is here already")
        return self._keep_base(head)

    def _keep_base(self, head: Head) -> SnapshotEntry | None:
        """Nobody but the move knows it, and the move deletes nothing while something comes in: no hold is needed."""
        if head.base is None:
            return None
        for entry in self._pool.catalog.snapshots.get(self._arrival.group, {}).values():
            if entry.record.identity == head.base.identity:
                return entry
        raise NotFound(f"the base {head.base.name} of {head.to.name} has not come here")

    def _check_announced(self, head: Head) -> None:
        """The stream must be of the snapshot whose record came with it."""
        record = self._record
        volumes = sorted((volume.lun, volume.name, volume.size) for volume in record.volumes)
        if head.to.identity != record.identity or volumes != [(v.lun, v.name, v.size) for v in head.volumes]:
            raise Corrupt(f"stream: it brings {head.to.name}, announced was {record.name}")

    def _plan_commit(self) -> Plan[SnapshotRecord]:
        staged = require_staged(self._pool.catalog, self._name)
        self._accept(staged.head)
        edits, maps = _freeze(staged, self._pool.next_map)
        entry = SnapshotEntry(self._arrival.group, self._record, maps)
        return Plan((*edits, entry.put(), staged.delete()), lambda: self._record)


def _freeze(staged: Staged, next_map: int) -> tuple[list[Edit], dict[int, int]]:
    """The edits that make frozen maps of the staged ones, and those maps by LUN."""
    maps = {lun: next_map + i for i, lun in enumerate(staged.maps)}
    edits: list[Edit] = [SnapMap(maps[lun], number) for lun, number in staged.maps.items()]
    return [*edits, *(DeleteMap(number) for number in staged.maps.values())], maps


def arrived_snapshots(pool: EnginePool, group: UUID) -> tuple[UUID, ...]:
    """Those that are whole. Raises NotFound when the group is not arriving."""
    require_arrival(pool.catalog, group)
    return tuple(entry.record.uuid for entry in pool.catalog.snapshots.get(group, {}).values())


def begin_arrival(pool: EnginePool, arrival: Arrival) -> Future[Arrival]:
    """Let the group's snapshots come; nothing happens when they may already. Raises AlreadyExists."""

    def prepare() -> Plan[Arrival]:
        _refuse_present(pool.catalog, arrival.group)
        there = find_arrival(pool.catalog, arrival.group)
        if there == arrival:
            return Plan((), lambda: arrival)
        refuse_taken(pool.catalog, arrival.name, arrival.iqn)
        return Plan((arrival.put(),), lambda: arrival)

    return pool.control(prepare)


def _refuse_present(catalog: Catalog, group: UUID) -> None:
    for entry in catalog.groups.values():
        if entry.record.uuid == group:
            raise AlreadyExists(f"group {entry.record.name} is in this pool already")


def prune_arrival(pool: EnginePool, group: UUID, snapshots: Collection[UUID]) -> Future[None]:
    """Forget these snapshots of it: the group has them no more. Raises NotFound, InUse while one comes in."""
    return run(_prune(pool, group, frozenset(snapshots)))


def _prune(pool: EnginePool, group: UUID, snapshots: frozenset[UUID]) -> Steps[None]:
    while (yield pool.control(lambda: _plan_pruning(pool, group, snapshots))):
        pass  # the next batch


def _plan_pruning(pool: EnginePool, group: UUID, snapshots: frozenset[UUID]) -> Plan[bool]:
    """The answer: whether there may be more."""
    _refuse_incoming(pool, require_arrival(pool.catalog, group))
    entries = list(pool.catalog.snapshots.get(group, {}).values())
    edits, more = _forget_some([entry for entry in entries if entry.record.uuid in snapshots])
    return Plan(tuple(edits), lambda: more)


def commit_arrival(pool: EnginePool, record: GroupRecord, last: UUID, drop: Collection[UUID]) -> Future[GroupRecord]:
    """Make the group of ``record``, serving, with the content of the snapshot ``last``, which ceases to be one, and
    without those in ``drop``. ``record.generation`` must be above that of every copy. Once it is there, doing it again
    changes nothing. Raises NotFound, Invalid, AlreadyExists."""

    def prepare() -> Plan[GroupRecord]:
        there = pool.catalog.groups.get(record.name)
        if there is not None and (there.record.uuid, there.record.generation) == (record.uuid, record.generation):
            return Plan((), lambda: there.record)
        arrival = require_arrival(pool.catalog, record.uuid)
        _refuse_incoming(pool, arrival)
        refuse_taken(pool.catalog, record.name, record.iqn)
        entries = {entry.record.uuid: entry for entry in pool.catalog.snapshots.get(record.uuid, {}).values()}
        if last not in entries:
            raise NotFound(f"the last snapshot of group {record.name} has not come here")
        final = entries[last]
        if final.record.volumes != record.volumes:
            raise Invalid(f"the last snapshot of group {record.name} has other volumes than the group")
        group = GroupEntry(replace(record, leaving=None), final.maps)
        edits = [edit for each in drop if each in entries and each != last for edit in _forget(entries[each])]
        half = find_staged(pool.catalog, arrival.staging)
        return Plan(
            (*edits, *(half.discard() if half else ()), final.delete(), group.put(), arrival.delete()),
            lambda: group.record,
        )

    return pool.control(prepare)


def abort_arrival(pool: EnginePool, group: UUID) -> Future[None]:
    """Forget all of it, in batches: a crash between leaves the rest, and doing it again goes on. Nothing happens when
    there is nothing. Raises InUse while a snapshot comes in."""
    return run(_abort(pool, group))


def _abort(pool: EnginePool, group: UUID) -> Steps[None]:
    while (yield pool.control(lambda: _plan_abort(pool, group))):
        pass  # the next batch


def _plan_abort(pool: EnginePool, group: UUID) -> Plan[bool]:
    """The answer: whether there is more."""
    arrival = find_arrival(pool.catalog, group)
    if arrival is None:
        return Plan((), lambda: False)
    _refuse_incoming(pool, arrival)
    half = find_staged(pool.catalog, arrival.staging)
    edits, more = _forget_some(list(pool.catalog.snapshots.get(group, {}).values()))
    return Plan(
        (*(half.discard() if half else ()), *edits, *(() if more else (arrival.delete(),))),
        lambda: more,
    )


def _forget_some(entries: Sequence[SnapshotEntry]) -> tuple[list[Edit], bool]:
    """The edits of one batch, and whether something is left after it."""
    edits: list[Edit] = []
    for entry in entries:
        if len(edits) >= _EDITS_AT_ONCE:
            return edits, True
        edits += _forget(entry)
    return edits, False


def _forget(entry: SnapshotEntry) -> tuple[Edit, ...]:
    return (*(DeleteMap(number) for number in entry.maps.values()), entry.delete())


def _refuse_incoming(pool: EnginePool, arrival: Arrival) -> None:
    if arrival.staging in pool.catalog.receiving:
        raise InUse(f"a snapshot of group {arrival.name} is coming in: end that first")
