"""Who uses how much, as the faces show it: figures that may be a little old, and snapshots a page at a time.

Counting is the store's (``api.Pool.usage``); here is how long a listing waits for it. Invariants: a page is small
enough for the channel and made in a few milliseconds, however many snapshots there are; a listing without figures is
better than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from blockstore import api
from blockyard.errors import Invalid
from blockyard.model import Snapshot, SnapshotPage
from blockyard.worker.records import snapshot_model

PATIENCE = 1.5  # seconds that a listing waits for a count; a count of 100 GiB takes about so long
PAGE = 500  # snapshots: 150 KiB of JSON
NAMED = 10  # names in a message that says what there is


class UsageFigures:
    """The pool's last count, and the one that runs."""

    def __init__(self, pool: api.Pool) -> None:
        self._pool = pool
        self.latest: api.PoolUsage | None = None

    async def refresh(self) -> api.PoolUsage | None:
        """The newest figures to be had in ``PATIENCE``; None if there never were any. A count that takes longer goes
        on, and serves a later call."""
        counting = asyncio.wrap_future(self._pool.usage())
        counting.add_done_callback(self._take)
        await asyncio.wait([counting], timeout=PATIENCE)
        return self.latest

    def _take(self, counted: asyncio.Future[api.PoolUsage]) -> None:
        if not counted.cancelled() and counted.exception() is None:
            self.latest = counted.result()


def snapshot_page(group: api.Group, after: str | None, usage: api.PoolUsage | None) -> SnapshotPage:
    """The snapshots behind the place ``after``, oldest first. What was deleted or taken meanwhile shifts nothing."""
    beginning = (0.0, "") if after is None else _place(after)
    places = sorted(
        place for place in ((each.created, each.name) for each in group.snapshots.values()) if place > beginning
    )
    own = usage.groups.get(group.record.uuid) if usage else None
    shown = tuple(_snapshot(group, name, own) for _, name in places[:PAGE])
    complete = len(places) <= PAGE
    return SnapshotPage(snapshots=shown, next=None if complete else f"{shown[-1].created!r}/{shown[-1].name}")


def _snapshot(group: api.Group, name: str, usage: api.GroupUsage | None) -> Snapshot:
    record = group.snapshots[name]
    own = usage.snapshots.get(record.uuid) if usage else None
    return snapshot_model(record).model_copy(
        update={"mapped": group.snapshot_bytes(name), "exclusive": own.exclusive if own else None}
    )


def _place(after: str) -> tuple[float, str]:
    created, _, name = after.partition("/")
    try:
        return float(created), name
    except ValueError:
        raise Invalid(f"{after!r} is no place in a listing: it comes from the page before") from None


def some_names(names: Mapping[str, object]) -> str:
    """The last few, and how many more there are; for messages."""
    newest = list(names)[-NAMED:]
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(newest) + more if newest else "none"
