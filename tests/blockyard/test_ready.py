"""What `serve` prints when it is ready."""

from __future__ import annotations

import json

from blockyard.config import ServeConfig
from blockyard.daemon.ready import ready_block
from blockyard.rpc.calls import OpenFailed
from tests.blockyard.support import MemoryYard, run


def config(**more: object) -> ServeConfig:
    basis = {"store": "/srv/store", "portals": ["127.0.0.1:3260", "[::1]:3260"], "api": "unix:/run/blockyard/api.sock"}
    return ServeConfig.model_validate_json(json.dumps(basis | more))


def test_the_ready_block_names_portals_api_and_the_next_step() -> None:
    async def scenario() -> None:
        async with MemoryYard() as yard:
            text = ready_block(config(), config().portals, list(yard.pools.values()), 0)
            assert "store    /srv/store (1 of 1 pool(s) serving, 0 group(s))" in text
            assert "portal   127.0.0.1:3260\n  portal   [::1]:3260" in text
            assert "next     blockyard group create demo --size 1G --client any" in text
            assert "export" not in text

    run(scenario())


def test_the_ready_block_tells_of_failed_pools_and_of_an_unusual_api() -> None:
    async def scenario() -> None:
        yard = MemoryYard("pool-0", "pool-1")
        yard.workers["pool-1"].failing = OpenFailed(reason="damaged", retry=False)
        async with yard:
            other = config(api="unix:/tmp/api.sock", advertise="10.0.2.2:3260")
            text = ready_block(other, other.portals, list(yard.pools.values()), 3)
            assert "FAILED   pool-1: damaged" in text
            assert "known as 10.0.2.2:3260" in text
            assert "next     export BLOCKYARD_API=unix:/tmp/api.sock\n           blockyard group ls" in text

    run(scenario())
