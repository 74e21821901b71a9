"""The catalogue: which groups, volumes and snapshots a pool holds, and which block map stands behind each.

It lives in memory and changes only by ``apply`` of edits that came out of a committed batch, so that replaying the
journal gives the same catalogue. It is not the planner of changes (``group``) and keeps no blocks. Values are JSON.

Invariant: ``raw`` holds exactly what a checkpoint must store; ``groups`` and ``snapshots`` are its decoded form.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from blockstore.api import (
    AttachmentRecord,
    AttachMode,
    CachePolicy,
    ChapSecret,
    ClientRecord,
    Corrupt,
    GroupRecord,
    SnapshotRecord,
    VolumeRecord,
)
from blockstore.records import CatalogEdit, Delete, Put

GROUP = "group"
SNAPSHOT = "snapshot"

_GARBAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What building a record from arbitrary JSON raises."""

Json = dict[str, Any]  # what json.loads gives of a value: its shape is checked by building the record


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A group and the map behind each of its volumes, by LUN."""

    record: GroupRecord
    maps: Mapping[int, int]

    def put(self) -> Put:
        return Put(GROUP, self.record.uuid.hex, _dump(_group_to_json(self)))


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """A snapshot of ``group`` and the frozen map behind each of its volumes, by LUN."""

    group: UUID
    record: SnapshotRecord
    maps: Mapping[int, int]

    @property
    def age(self) -> tuple[float, int]:
        """What snapshots are ordered by. Clocks go back now and then; map numbers never do."""
        return self.record.created, min(self.maps.values(), default=0)

    def put(self) -> Put:
        return Put(SNAPSHOT, self.record.uuid.hex, _dump(_snapshot_to_json(self)))

    def delete(self) -> Delete:
        return Delete(SNAPSHOT, self.record.uuid.hex)


class Catalog:
    """All that serving the pool's groups needs, by name."""

    def __init__(self) -> None:
        self.raw: dict[tuple[str, str], bytes] = {}
        self.groups: dict[str, GroupEntry] = {}
        self.snapshots: dict[UUID, dict[str, SnapshotEntry]] = {}  # by group, then name
        self.dirty: set[tuple[str, str]] = set()  # changed since the last checkpoint's switch
        self._entries: dict[tuple[str, str], GroupEntry | SnapshotEntry] = {}  # what ``raw`` says, to forget by
        self.held: Counter[UUID] = Counter()  # readers of each snapshot (``hold``); lives as long as the process
        self.receiving: set[str] = set()  # groups that a stream is coming in for now (``receive``)

    def apply(self, edit: CatalogEdit) -> None:
        """Carry out a committed edit. Kinds unknown here are kept as they are: a newer version wrote them."""
        place = (edit.kind, edit.key)
        self._forget(place)
        self.dirty.add(place)
        if isinstance(edit, Put):
            self._learn(place, edit.value)

    def load(self, kind: str, key: str, value: bytes) -> None:
        """Take a value from a checkpoint; afterwards ``finish_loading``. Raises Corrupt."""
        self._learn((kind, key), value)

    def finish_loading(self) -> None:
        """Put snapshots into the order of their taking, in which ``apply`` keeps them."""
        for group, of_group in self.snapshots.items():
            self.snapshots[group] = dict(sorted(of_group.items(), key=lambda item: item[1].age))

    def group(self, key: str) -> GroupEntry:
        """The group that was put under ``key``."""
        entry = self._entries[GROUP, key]
        assert isinstance(entry, GroupEntry)
        return entry

    def _learn(self, place: tuple[str, str], value: bytes) -> None:
        self.raw[place] = value
        if place[0] == GROUP:
            group = self._entries[place] = decode_group(value)
            self.groups[group.record.name] = group
        elif place[0] == SNAPSHOT:
            snapshot = self._entries[place] = decode_snapshot(value)
            self.snapshots.setdefault(snapshot.group, {})[snapshot.record.name] = snapshot

    def _forget(self, place: tuple[str, str]) -> None:
        self.raw.pop(place, None)
        entry = self._entries.pop(place, None)
        if isinstance(entry, GroupEntry):
            self.groups.pop(entry.record.name, None)
        elif isinstance(entry, SnapshotEntry):
            of_group = self.snapshots[entry.group]
            of_group.pop(entry.record.name, None)
            if not of_group:
                del self.snapshots[entry.group]


def decode_group(value: bytes) -> GroupEntry:
    """Raises Corrupt when ``value`` is no group."""
    try:
        return _group_from_json(json.loads(value))
    except _GARBAGE as error:
        raise Corrupt(f"catalogue: not a group: {error!r}") from error


def decode_snapshot(value: bytes) -> SnapshotEntry:
    """Raises Corrupt when ``value`` is no snapshot."""
    try:
        return _snapshot_from_json(json.loads(value))
    except _GARBAGE as error:
        raise Corrupt(f"catalogue: not a snapshot: {error!r}") from error


def _dump(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _group_to_json(entry: GroupEntry) -> Json:
    record = entry.record
    return {
        "name": record.name,
        "uuid": record.uuid.hex,
        "iqn": record.iqn,
        "created": record.created,
        "cache": record.cache.value,
        "clients": [_client_to_json(client) for client in record.clients],
        "volumes": [_volume_to_json(volume, entry.maps) for volume in record.volumes],
        "next_lun": record.next_lun,
        "origin": record.origin,
        **({"labels": dict(record.labels)} if record.labels else {}),
        **({"attach_generation": record.attach_generation} if record.attach_generation else {}),
        **({"attachments": [_attachment_to_json(each) for each in record.attachments]} if record.attachments else {}),
    }


def _group_from_json(value: Json) -> GroupEntry:
    volumes = tuple(_volume_from_json(volume) for volume in value["volumes"])
    record = GroupRecord(
        name=_text(value["name"]),
        uuid=UUID(value["uuid"]),
        iqn=_text(value["iqn"]),
        created=float(value["created"]),
        cache=CachePolicy(value["cache"]),
        clients=tuple(_client_from_json(client) for client in value["clients"]),
        volumes=volumes,
        next_lun=int(value["next_lun"]),
        origin=value["origin"],
        labels={_text(key): _text(label) for key, label in value.get("labels", {}).items()},
        attachments=tuple(_attachment_from_json(each) for each in value.get("attachments", ())),
        attach_generation=int(value.get("attach_generation", 0)),
    )
    return GroupEntry(record, _maps_from_json(value["volumes"]))


def _snapshot_to_json(entry: SnapshotEntry) -> Json:
    record = entry.record
    return {
        "name": record.name,
        "uuid": record.uuid.hex,
        "group": entry.group.hex,
        "created": record.created,
        "volumes": [_volume_to_json(volume, entry.maps) for volume in record.volumes],
        **({"origin": record.origin.hex} if record.origin is not None else {}),
    }


def _snapshot_from_json(value: Json) -> SnapshotEntry:
    record = SnapshotRecord(
        name=_text(value["name"]),
        uuid=UUID(value["uuid"]),
        created=float(value["created"]),
        volumes=tuple(_volume_from_json(volume) for volume in value["volumes"]),
        origin=UUID(value["origin"]) if "origin" in value else None,
    )
    return SnapshotEntry(UUID(value["group"]), record, _maps_from_json(value["volumes"]))


def _volume_to_json(volume: VolumeRecord, maps: Mapping[int, int]) -> Json:
    return {
        "lun": volume.lun,
        "name": volume.name,
        "uuid": volume.uuid.hex,
        "size": volume.size,
        "created": volume.created,
        "map": maps[volume.lun],
    }


def _volume_from_json(value: Json) -> VolumeRecord:
    return VolumeRecord(
        lun=int(value["lun"]),
        name=_text(value["name"]),
        uuid=UUID(value["uuid"]),
        size=int(value["size"]),
        created=float(value["created"]),
    )


def _maps_from_json(volumes: list[Json]) -> dict[int, int]:
    return {int(volume["lun"]): int(volume["map"]) for volume in volumes}


def _client_to_json(client: ClientRecord) -> Json:
    return {
        "initiator": client.initiator,
        "address": client.address,
        "chap": _secret_to_json(client.chap),
        "mutual": _secret_to_json(client.mutual),
    }


def _client_from_json(value: Json) -> ClientRecord:
    return ClientRecord(
        initiator=_text(value["initiator"]),
        address=value["address"],
        chap=_secret_from_json(value["chap"]),
        mutual=_secret_from_json(value["mutual"]),
    )


def _attachment_to_json(attachment: AttachmentRecord) -> Json:
    return {
        "host": attachment.host,
        "mode": attachment.mode.value,
        "generation": attachment.generation,
        "created": attachment.created,
        "chap": _secret_to_json(attachment.chap),
    }


def _attachment_from_json(value: Json) -> AttachmentRecord:
    return AttachmentRecord(
        host=_text(value["host"]),
        mode=AttachMode(value["mode"]),
        generation=int(value["generation"]),
        created=float(value["created"]),
        chap=ChapSecret(*map(_text, value["chap"])),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _secret_to_json(secret: ChapSecret | None) -> list[str] | None:
    return None if secret is None else [secret.user, secret.secret]


def _secret_from_json(value: list[str] | None) -> ChapSecret | None:
    return None if value is None else ChapSecret(*value)
