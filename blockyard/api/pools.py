"""/v1/pools: where groups live, how full they are, and giving back what nothing refers to."""

from __future__ import annotations

from fastapi import APIRouter

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
