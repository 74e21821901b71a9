"""/v1/pools: where groups live, how full they are, and giving back what nothing refers to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from blockyard.api.verbs import Verbs
from blockyard.model import Pool, Swept

router = APIRouter(prefix="/pools", tags=["pools"])


@router.get("")
async def list_pools(verbs: Verbs) -> tuple[Pool, ...]:
    return await verbs.list_pools()


@router.get("/{name}")
async def show_pool(name: str, verbs: Verbs) -> Pool:
    return await verbs.show_pool(name)


@router.post("/{name}:sweep")
async def sweep_pool(name: str, verbs: Verbs) -> Swept:
    return await verbs.sweep_pool(name)


@router.post("/{name}:scrub")
async def scrub_pool(name: str, verbs: Verbs, rate: Annotated[int | None, Query(ge=4096)] = None) -> StreamingResponse:
    """Progress, then the report, one JSON value a line. ``rate``: bytes a second."""
    return StreamingResponse(await verbs.scrub_pool(name, rate), media_type="application/x-ndjson")
