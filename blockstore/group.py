"""Volume groups: every control verb as one set of edits, hence one journal batch, hence atomic over the volumes.

Each verb is planned against the catalogue at the moment its batch is cut (``Engine.control``), so two verbs called in
one tick see each other. This module knows names, LUNs and maps; it knows neither blocks nor journals, and serves the
embedded pool and the memory pool alike.

Invariants: a map number is used once; a LUN number is used once per group; an identity (UUID) belongs to one volume.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar
from uuid import UUID, uuid4

from blockstore.api import (
    GRAIN,
    MAX_LUN,
    MAX_VOLUME_SIZE,
    AlreadyExists,
    AttachmentRecord,
    CachePolicy,
    ClientRecord,
    Group,
    GroupRecord,
    Invalid,
    NewVolume,
    NotFound,
    SnapshotRecord,
    Volume,
    VolumeRecord,
)
from blockstore.catalog import GROUP, Catalog, GroupEntry, SnapshotEntry
from blockstore.hold import refuse_held
from blockstore.records import (
    CloneMap,
    CreateMap,
    Delete,
    DeleteMap,
    Edit,
    Put,
    ResizeMap,
    RollbackMap,
    SnapMap,
)
from blockstore.steps import Steps, run

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # what is safe in paths, tables, GROUP@SNAPSHOT
_EDITS_AT_ONCE = 512  # of a group's deletion: about 2 ms; with a snapshot of 256 volumes on top it fits any journal
_MAX_IQN = 223  # bytes; RFC 7143 4.2.7.1


@dataclass(frozen=True, slots=True)
class Plan(Generic[T]):
    """What a verb changes, and what it answers once that is committed."""

    edits: tuple[Edit, ...]
    result: Callable[[], T]


class OpenVolume(Volume, Protocol):
    """A volume as the engine makes it; its group tells it what changes around it."""

    def set_write_through(self, write_through: bool) -> None: ...

    def detach(self) -> None:
        """The volume was removed: refuse all I/O from now on."""


class Engine(Protocol):
    """What a pool does for its groups."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def next_map(self) -> int:
        """Greater than every map number ever used."""

    def control(self, prepare: Callable[[], Plan[T]]) -> Future[T]:
        """Commit what is pending, then the plan's edits in a batch of their own, make it durable, answer.
        What ``prepare`` raises goes to the future."""

    def open_volume(self, uuid: UUID, map_number: int) -> OpenVolume: ...

    def mapped_bytes(self, map_number: int) -> int: ...


class _Records(Mapping[str, SnapshotRecord]):
    """A group's snapshots by name, oldest first, as they are now: a view, because there may be very many."""

    def __init__(self, entries: Mapping[str, SnapshotEntry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> SnapshotRecord:
        return self._entries[name].record

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


class StoreGroup:
    """api.Group over an engine. Holds no state of its own but its Volume objects."""

    def __init__(self, engine: Engine, entry: GroupEntry) -> None:
        self._engine = engine
        self._uuid = entry.record.uuid
        self._entry = entry
        self._volumes: dict[int, OpenVolume] = {}
        self.refresh(entry)

    def refresh(self, entry: GroupEntry) -> None:
        """Follow the catalogue: open what is new, detach what is gone."""
        self._entry = entry
        wanted = {volume.lun: volume for volume in entry.record.volumes}
        for lun in [lun for lun in self._volumes if lun not in wanted]:
            self._volumes.pop(lun).detach()
        for lun, record in wanted.items():
            if lun not in self._volumes:
                self._volumes[lun] = self._engine.open_volume(record.uuid, entry.maps[lun])
            self._volumes[lun].set_write_through(entry.record.cache is CachePolicy.WRITETHROUGH)

    def detach(self) -> None:
        for volume in self._volumes.values():
            volume.detach()

    @property
    def record(self) -> GroupRecord:
        return self._entry.record

    @property
    def volumes(self) -> Mapping[int, Volume]:
        return self._volumes

    @property
    def snapshots(self) -> Mapping[str, SnapshotRecord]:
        return _Records(self._engine.catalog.snapshots.get(self._uuid, {}))

    def snapshot(self, name: str) -> Future[SnapshotRecord]:
        def prepare() -> Plan[SnapshotRecord]:
            _check_name("snapshot", name)
            entry, edits = self._plan_snapshot(name, self._engine.next_map)
            return Plan(edits, lambda: entry.record)

        return self._engine.control(prepare)

    def delete_snapshot(self, name: str) -> Future[None]:
        def prepare() -> Plan[None]:
            entry = self._snapshot_entry(name)
            refuse_held(self._engine.catalog, entry)
            maps = tuple(DeleteMap(number) for number in entry.maps.values())
            return Plan((*maps, entry.delete()), lambda: None)

        return self._engine.control(prepare)

    def rollback(self, name: str) -> Future[SnapshotRecord]:
        def prepare() -> Plan[SnapshotRecord]:
            target = self._snapshot_entry(name)
            before, edits = self._plan_snapshot(self._rollback_name(), self._engine.next_map)
            next_map = self._engine.next_map + len(before.maps)
            return Plan((*edits, *_plan_rollback(self._current(), target, next_map)), lambda: before.record)

        return self._engine.control(prepare)

    def add_volume(self, new: NewVolume) -> Future[VolumeRecord]:
        def prepare() -> Plan[VolumeRecord]:
            entry = self._current()
            added, edits = _plan_volumes(entry, (new,), self._engine.next_map)
            return Plan((*edits, added.put()), lambda: added.record.volumes[-1])

        return self._engine.control(prepare)

    def resize(self, lun: int, size: int) -> Future[VolumeRecord]:
        def prepare() -> Plan[VolumeRecord]:
            entry = self._current()
            volume = _volume(entry, lun)
            _check_size(size)
            if size < volume.size:
                raise Invalid(f"size {size} of LUN {lun} is less than its {volume.size} bytes: volumes only grow")
            grown = replace(volume, size=size)
            return Plan((ResizeMap(entry.maps[lun], size), _with_volume(entry, grown).put()), lambda: grown)

        return self._engine.control(prepare)

    def remove_volume(self, lun: int) -> Future[None]:
        def prepare() -> Plan[None]:
            entry = self._current()
            _volume(entry, lun)
            left = tuple(volume for volume in entry.record.volumes if volume.lun != lun)
            maps = {other: number for other, number in entry.maps.items() if other != lun}
            changed = GroupEntry(replace(entry.record, volumes=left), maps)
            return Plan((DeleteMap(entry.maps[lun]), changed.put()), lambda: None)

        return self._engine.control(prepare)

    def update(
        self,
        *,
        clients: Sequence[ClientRecord] | None = None,
        cache: CachePolicy | None = None,
        labels: Mapping[str, str] | None = None,
        attachments: Sequence[AttachmentRecord] | None = None,
    ) -> Future[GroupRecord]:
        def prepare() -> Plan[GroupRecord]:
            entry = self._current()
            record = entry.record
            if clients is not None:
                record = replace(record, clients=tuple(clients))
            if cache is not None:
                record = replace(record, cache=cache)
            if labels is not None:
                record = replace(record, labels=dict(labels))
            if attachments is not None:
                record = _with_attachments(record, tuple(attachments))
            return Plan((GroupEntry(record, entry.maps).put(),), lambda: record)

        return self._engine.control(prepare)

    def mapped_bytes(self, lun: int) -> int:
        _volume(self._entry, lun)
        return self._engine.mapped_bytes(self._entry.maps[lun])

    def snapshot_bytes(self, name: str) -> int:
        maps = self._snapshot_entry(name).maps
        return sum(self._engine.mapped_bytes(number) for number in maps.values())

    def _current(self) -> GroupEntry:
        """The entry as committed by now; NotFound once the group is deleted."""
        entry = self._engine.catalog.groups.get(self._entry.record.name)
        if entry is None or entry.record.uuid != self._uuid:
            raise NotFound(f"group {self._entry.record.name} was deleted")
        return entry

    def _snapshot_entry(self, name: str) -> SnapshotEntry:
        self._current()
        entry = self._engine.catalog.snapshots.get(self._uuid, {}).get(name)
        if entry is None:
            raise NotFound(f"group {self._entry.record.name} has no snapshot {name!r}")
        return entry

    def _plan_snapshot(self, name: str, next_map: int) -> tuple[SnapshotEntry, tuple[Edit, ...]]:
        group = self._current()
        if name in self._engine.catalog.snapshots.get(self._uuid, {}):
            raise AlreadyExists(f"group {group.record.name} has a snapshot {name!r} already")
        maps = {volume.lun: next_map + i for i, volume in enumerate(group.record.volumes)}
        record = SnapshotRecord(name, uuid4(), time.time(), group.record.volumes)
        entry = SnapshotEntry(self._uuid, record, maps)
        return entry, (*(SnapMap(maps[lun], group.maps[lun]) for lun in maps), entry.put())

    def _rollback_name(self) -> str:
        taken = self._engine.catalog.snapshots.get(self._uuid, {})
        name = time.strftime("before-rollback-%Y%m%dT%H%M%SZ", time.gmtime())
        numbered = (f"{name}-{i}" for i in range(2, len(taken) + 3))
        return name if name not in taken else next(other for other in numbered if other not in taken)


class GroupTable:
    """api.Pool's part about groups: the table by name, and the verbs that make and end groups."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.groups: dict[str, StoreGroup] = {}
        self._names: dict[str, str] = {}  # group uuid (hex) -> name, to find what a Delete edit ends
        for entry in engine.catalog.groups.values():
            self._open(entry)

    def follow(self, edits: Iterable[Edit]) -> None:
        """Bring the table up to date after ``edits`` were applied to maps and catalogue."""
        for edit in edits:
            if isinstance(edit, Delete) and edit.kind == GROUP:
                self.groups.pop(self._names.pop(edit.key)).detach()
            elif isinstance(edit, Put) and edit.kind == GROUP:
                self._refresh(self._engine.catalog.group(edit.key))

    def _refresh(self, entry: GroupEntry) -> None:
        group = self.groups.get(entry.record.name)
        if group is None:
            self._open(entry)
        else:
            group.refresh(entry)

    def create(
        self,
        name: str,
        *,
        iqn: str,
        volumes: Sequence[NewVolume],
        clients: Sequence[ClientRecord],
        cache: CachePolicy,
        labels: Mapping[str, str],
    ) -> Future[StoreGroup]:
        def prepare() -> Plan[StoreGroup]:
            self._check_new_group(name, iqn)
            record = GroupRecord(
                name, uuid4(), iqn, time.time(), cache, tuple(clients), (), next_lun=0, labels=dict(labels)
            )
            entry, edits = _plan_volumes(GroupEntry(record, {}), volumes, self._engine.next_map)
            return Plan((*edits, entry.put()), lambda: self.groups[name])

        return self._engine.control(prepare)

    def clone(
        self,
        group: str,
        snapshot: str,
        name: str,
        *,
        iqn: str,
        clients: Sequence[ClientRecord],
        labels: Mapping[str, str],
    ) -> Future[StoreGroup]:
        def prepare() -> Plan[StoreGroup]:
            self._check_new_group(name, iqn)
            source = self._engine.catalog.groups.get(group)
            if source is None:
                raise NotFound(f"no group {group!r}")
            entry = self._engine.catalog.snapshots.get(source.record.uuid, {}).get(snapshot)
            if entry is None:
                raise NotFound(f"group {group} has no snapshot {snapshot!r}")
            cloned, edits = _plan_clone(source, entry, self._engine.next_map, name, iqn, tuple(clients))
            labelled = GroupEntry(replace(cloned.record, labels=dict(labels)), cloned.maps)
            return Plan((*edits, labelled.put()), lambda: self.groups[name])

        return self._engine.control(prepare)

    def delete(self, name: str) -> Future[None]:
        """Its snapshots go first, oldest first, in batches: a crash between leaves the group with the rest of them,
        and deleting it again goes on. Up to one batch everything goes at once."""
        return run(self._delete(name))

    def _delete(self, name: str) -> Steps[None]:
        while not (yield self._engine.control(lambda: self._plan_deletion(name))):
            pass  # the next batch

    def _plan_deletion(self, name: str) -> Plan[bool]:
        """The answer: whether it is complete."""
        entry = self._engine.catalog.groups.get(name)
        if entry is None:
            raise NotFound(f"no group {name!r}")
        snapshots = self._engine.catalog.snapshots.get(entry.record.uuid, {})
        if self._engine.catalog.held:
            for each in snapshots.values():  # all of them, before any goes
                refuse_held(self._engine.catalog, each)
        edits: list[Edit] = []
        left = iter(snapshots.values())
        while len(edits) < _EDITS_AT_ONCE and (snapshot := next(left, None)) is not None:
            edits += (DeleteMap(number) for number in snapshot.maps.values())
            edits.append(snapshot.delete())
        complete = len(edits) < _EDITS_AT_ONCE
        if complete:
            edits += (DeleteMap(number) for number in entry.maps.values())
            edits.append(Delete(GROUP, entry.record.uuid.hex))
        return Plan(tuple(edits), lambda: complete)

    def _open(self, entry: GroupEntry) -> None:
        self.groups[entry.record.name] = StoreGroup(self._engine, entry)
        self._names[entry.record.uuid.hex] = entry.record.name

    def _check_new_group(self, name: str, iqn: str) -> None:
        _check_name("group", name)
        if not iqn or len(iqn.encode()) > _MAX_IQN:
            raise Invalid(f"IQN {iqn!r}: allowed are 1 to {_MAX_IQN} bytes")
        for other in self._engine.catalog.groups.values():
            if other.record.name == name:
                raise AlreadyExists(f"group {name} exists already")
            if other.record.iqn == iqn:
                raise AlreadyExists(f"IQN {iqn} belongs to group {other.record.name}")


def widen(future: Future[StoreGroup]) -> Future[Group]:
    """The same future under the contract's type (``Future`` is invariant; every StoreGroup is a Group)."""
    return future  # type: ignore[return-value]


def _plan_volumes(
    entry: GroupEntry, new: Sequence[NewVolume], next_map: int
) -> tuple[GroupEntry, tuple[CreateMap, ...]]:
    """``entry`` with the new volumes appended at the next LUNs."""
    record, maps = entry.record, dict(entry.maps)
    edits = []
    for i, wish in enumerate(new):
        lun = record.next_lun
        if lun > MAX_LUN:
            raise Invalid(f"group {record.name} has used its LUNs 0 to {MAX_LUN}: numbers are never used again")
        _check_size(wish.size)
        name = wish.name if wish.name is not None else f"vol{lun}"
        _check_name("volume", name)
        if any(volume.name == name for volume in record.volumes):
            raise AlreadyExists(f"group {record.name} has a volume {name!r} already")
        volume = VolumeRecord(lun, name, uuid4(), wish.size, time.time())
        record = replace(record, volumes=(*record.volumes, volume), next_lun=lun + 1)
        maps[lun] = next_map + i
        edits.append(CreateMap(maps[lun], wish.size))
    return GroupEntry(record, maps), tuple(edits)


def _plan_clone(
    source: GroupEntry,
    snapshot: SnapshotEntry,
    next_map: int,
    name: str,
    iqn: str,
    clients: tuple[ClientRecord, ...],
) -> tuple[GroupEntry, tuple[CloneMap, ...]]:
    now = time.time()
    volumes = tuple(replace(volume, uuid=uuid4(), created=now) for volume in snapshot.record.volumes)
    maps = {volume.lun: next_map + i for i, volume in enumerate(volumes)}
    record = GroupRecord(
        name=name,
        uuid=uuid4(),
        iqn=iqn,
        created=now,
        cache=source.record.cache,
        clients=clients,
        volumes=volumes,
        next_lun=max((volume.lun + 1 for volume in volumes), default=0),
        origin=f"{source.record.name}@{snapshot.record.name}",
    )
    return GroupEntry(record, maps), tuple(CloneMap(maps[lun], snapshot.maps[lun]) for lun in maps)


def _plan_rollback(group: GroupEntry, target: SnapshotEntry, next_map: int) -> tuple[Edit, ...]:
    """Edits that give ``group`` the volumes of ``target``: rolled back, brought back, or removed."""
    edits: list[Edit] = []
    maps: dict[int, int] = {}
    for volume in target.record.volumes:
        if volume.lun in group.maps:  # a LUN number is never used twice: this is the same volume
            maps[volume.lun] = group.maps[volume.lun]
            edits.append(RollbackMap(maps[volume.lun], target.maps[volume.lun]))
        else:
            maps[volume.lun] = next_map
            edits.append(CloneMap(next_map, target.maps[volume.lun]))
            next_map += 1
    edits += (DeleteMap(number) for lun, number in group.maps.items() if lun not in maps)
    edits.append(GroupEntry(replace(group.record, volumes=target.record.volumes), maps).put())
    return tuple(edits)


def _with_attachments(record: GroupRecord, attachments: tuple[AttachmentRecord, ...]) -> GroupRecord:
    """Raises Invalid when one of them is new and its generation is not."""
    for each in attachments:
        if each not in record.attachments and each.generation <= record.attach_generation:
            raise Invalid(f"group {record.name}: generation {each.generation} was used; allowed are those above "
                          f"{record.attach_generation}")  # fmt: skip
    generation = max((each.generation for each in attachments), default=0)
    return replace(record, attachments=attachments, attach_generation=max(record.attach_generation, generation))


def _with_volume(entry: GroupEntry, changed: VolumeRecord) -> GroupEntry:
    volumes = tuple(changed if volume.lun == changed.lun else volume for volume in entry.record.volumes)
    return GroupEntry(replace(entry.record, volumes=volumes), entry.maps)


def _volume(entry: GroupEntry, lun: int) -> VolumeRecord:
    for volume in entry.record.volumes:
        if volume.lun == lun:
            return volume
    raise NotFound(f"group {entry.record.name} has no LUN {lun}")


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(f"{what} name {name!r}: allowed are 1 to 63 letters, digits, '.', '_' and '-', not leading")


def _check_size(size: int) -> None:
    if size <= 0 or size % GRAIN or size > MAX_VOLUME_SIZE:
        raise Invalid(f"volume size {size}: allowed are multiples of {GRAIN} bytes from {GRAIN} to {MAX_VOLUME_SIZE}")
