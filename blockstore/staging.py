"""What is not whole yet, as the catalogue keeps it: an unfinished receive, and a group on its way from another pool.

A *staged* receive is maps that no group shows, and how far they are filled; only the commit of ``receive`` turns them
into a snapshot. An *arrival* is a group whose snapshots come in one after another (``arrival``); it is no group before
its commit. Both survive cuts, kills and restarts. Values are JSON, as everything in the catalogue. Invariant: all
before ``position`` was verified and is in the maps, and became durable not later than this value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from blockstore.api import Corrupt, NotFound
from blockstore.catalog import Catalog
from blockstore.records import Delete, DeleteMap, Edit, Put
from blockstore.stream import Head, Position, head_from_json, head_to_json, pack_token

RECEIVE = "receive"
ARRIVAL = "arrival"


@dataclass(frozen=True, slots=True)
class Staged:
    """What is received for group ``name``."""

    name: str
    """Of an arriving group: ``Arrival.staging``."""
    iqn: str
    """Of the group that will be made; of no meaning when one is continued."""
    head: Head
    maps: Mapping[int, int]
    """By LUN."""
    position: Position
    received: int
    """Bytes of records, for progress."""

    @property
    def token(self) -> str:
        """What the sender needs to go on."""
        return pack_token(self.head.to.identity, self.position)

    def put(self) -> Put:
        value = {
            "iqn": self.iqn,
            "head": head_to_json(self.head),
            "maps": {str(lun): number for lun, number in self.maps.items()},
            "position": [self.position.lun, self.position.offset],
            "received": self.received,
        }
        return Put(RECEIVE, self.name, json.dumps(value, separators=(",", ":"), sort_keys=True).encode())

    def delete(self) -> Delete:
        return Delete(RECEIVE, self.name)

    def discard(self) -> tuple[Edit, ...]:
        """The edits that forget it all."""
        return (*(DeleteMap(number) for number in self.maps.values()), self.delete())


@dataclass(frozen=True, slots=True)
class Arrival:
    """A group that is moving here. Those of its snapshots that are whole are entries of the catalogue as any other."""

    group: UUID
    name: str
    iqn: str
    source: UUID
    """The pool that it comes from."""

    @property
    def staging(self) -> str:
        """What the snapshot that is coming in is staged under; no group can have that name."""
        return f"move/{self.group.hex}"

    def put(self) -> Put:
        value = {"name": self.name, "iqn": self.iqn, "source": self.source.hex}
        return Put(ARRIVAL, self.group.hex, json.dumps(value, separators=(",", ":"), sort_keys=True).encode())

    def delete(self) -> Delete:
        return Delete(ARRIVAL, self.group.hex)


def arrivals(catalog: Catalog) -> Iterator[Arrival]:
    """Raises Corrupt."""
    for (kind, key), value in list(catalog.raw.items()):
        if kind == ARRIVAL:
            yield _decode_arrival(key, value)


def find_arrival(catalog: Catalog, group: UUID) -> Arrival | None:
    value = catalog.raw.get((ARRIVAL, group.hex))
    return None if value is None else _decode_arrival(group.hex, value)


def require_arrival(catalog: Catalog, group: UUID) -> Arrival:
    """Raises NotFound."""
    arrival = find_arrival(catalog, group)
    if arrival is None:
        raise NotFound(f"no group {group} is moving here")
    return arrival


def _decode_arrival(key: str, raw: bytes) -> Arrival:
    try:
        value = json.loads(raw)
        return Arrival(UUID(key), value["name"], value["iqn"], UUID(value["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"catalogue: not an arrival: {error!r}") from error


def staged_receives(catalog: Catalog) -> Iterator[Staged]:
    """Raises Corrupt."""
    for (kind, key), value in list(catalog.raw.items()):
        if kind == RECEIVE:
            yield _decode(key, value)


def find_staged(catalog: Catalog, name: str) -> Staged | None:
    value = catalog.raw.get((RECEIVE, name))
    return None if value is None else _decode(name, value)


def require_staged(catalog: Catalog, name: str) -> Staged:
    """Raises NotFound."""
    staged = find_staged(catalog, name)
    if staged is None:
        raise NotFound(f"nothing is being received for group {name}")
    return staged


def _decode(name: str, raw: bytes) -> Staged:
    try:
        value = json.loads(raw)
        return Staged(
            name=name,
            iqn=value["iqn"],
            head=head_from_json(value["head"]),
            maps={int(lun): int(number) for lun, number in value["maps"].items()},
            position=Position(*map(int, value["position"])),
            received=int(value["received"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"catalogue: not a receive: {error!r}") from error
