"""An unfinished receive as the catalogue keeps it: maps that no group shows yet, and how far they are filled.

It survives cuts, kills and restarts, so that a receive goes on where it was; only the commit of ``receive`` turns its
maps into a snapshot. One a name. Values are JSON, as everything in the catalogue. Invariant: all before ``position``
was verified and is in the maps, and became durable not later than this value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockstore.api import Corrupt, NotFound
from blockstore.catalog import Catalog
from blockstore.records import Delete, DeleteMap, Edit, Put
from blockstore.stream import Head, Position, head_from_json, head_to_json, pack_token

RECEIVE = "receive"


@dataclass(frozen=True, slots=True)
class Staged:
    """What is received for group ``name``."""

    name: str
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
