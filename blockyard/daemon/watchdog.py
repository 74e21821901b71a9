"""The daemon's signs of life for a service manager: each is given only after every worker has answered.

A worker that hangs is killed by its own keeper (``pool_worker``) and is then not asked until it serves again; so the
manager ends the daemon only when its loop stands still, or when that keeping has failed. Not a cure: a proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from blockyard.daemon.pool_worker import PoolWorker
from blockyard.service import Notifier

SIGNS = 4  # in each period that the manager allows, so that a late one is no end


async def give_signs_of_life(notifier: Notifier, pools: Collection[PoolWorker]) -> None:
    """Until it is cancelled; returns at once when nobody wants any."""
    while notifier.watchdog is not None:
        if all(await asyncio.gather(*(pool.answers() for pool in pools))):
            notifier.alive()
        await asyncio.sleep(notifier.watchdog / SIGNS)
