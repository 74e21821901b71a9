"""Who uses how much, as the faces show it: figures that may be a little old, and snapshots a page at a time.

Counting is the store's (``api.Pool.usage``); here is how long a listing waits for it. Invariants: a page is small
enough for the channel and made in a few milliseconds, however many snapshots there are; a listing without figures is
better than none.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping

from blockstore import api
from blockyard.errors import Invalid
from blockyard.model import Snapshot, SnapshotPage
from blockyard.worker.records import snapshot_model

PATIENCE = 1.0  # seconds that a listing waits for a count; one of 50 GiB takes about so long
GLANCE = 0.05  # seconds that it waits when the last count took longer than that: for an answer that is there
PAGE = 250  # snapshots: 80 KiB of JSON, made in about 5 ms
NAMED = 10  # names in a message that says what there is


class UsageFigures:
    """The pool's last count, and how long it took."""

    def __init__(self, pool: api.Pool) -> None:
        self._pool = pool
        self._slow = False
        self.latest: api.PoolUsage | None = None

    async def refresh(self) -> api.PoolUsage | None:
        """The newest figures to be had in ``PATIENCE``; None if there never were any. A count that takes longer goes
        on, and serves a later call; where the last one did, nobody waits for the next."""
        counting = asyncio.wrap_future(self._pool.usage())
        counting.add_done_callback(self._take)
        await asyncio.wait([counting], timeout=GLANCE if self._slow and self.latest else PATIENCE)
        self._slow = not counting.done()
        return self.latest

    def _take(self, counted: asyncio.Future[api.PoolUsage]) -> None:
        if not counted.cancelled() and counted.exception() is None:
            self.latest = counted.result()


def snapshot_page(group: api.Group, after: str | None, usage: api.PoolUsage | None) -> SnapshotPage:
    """The snapshots behind the place ``after``, oldest first. What was deleted or taken meanwhile shifts nothing."""
    names = list(group.snapshots)
    first = 0 if after is None else place_behind(group, names, after)
    own = usage.groups.get(group.record.uuid) if usage else None
    shown = tuple(_snapshot(group, name, own) for name in names[first : first + PAGE])
    complete = first + PAGE >= len(names)
    return SnapshotPage(snapshots=shown, next=None if complete else place_of(group, shown[-1].name))


def _snapshot(group: api.Group, name: str, usage: api.GroupUsage | None) -> Snapshot:
    record = group.snapshots[name]
    own = usage.snapshots.get(record.uuid) if usage else None
    return snapshot_model(record, mapped=group.snapshot_bytes(name), exclusive=own.exclusive if own else None)


def place_of(group: api.Group, name: str) -> str:
    """The place of a snapshot in listings."""
    return f"{group.snapshots[name].created!r}/{name}"


def place_behind(group: api.Group, names: list[str], after: str) -> int:
    """Where in ``names`` the place ``created/name`` ends: behind that snapshot, or where it was."""
    text, _, name = after.partition("/")
    try:
        created = float(text)
    except ValueError:
        raise Invalid(f"{after!r} is no place in a listing: it comes from the page before") from None
    there = group.snapshots.get(name)
    if there is not None and there.created == created:
        return names.index(name) + 1
    return bisect_right(names, created, key=lambda other: group.snapshots[other].created)


def some_names(names: Mapping[str, object]) -> str:
    """The last few, and how many more there are; for messages."""
    newest = list(names)[-NAMED:]
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(newest) + more if newest else "none"
