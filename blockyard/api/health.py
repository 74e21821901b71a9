"""/v1/health: whether every pool serves, and where initiators connect."""

from __future__ import annotations

from fastapi import APIRouter

from blockyard.api.verbs import Verbs
from blockyard.model import Health

router = APIRouter(prefix="/health", tags=["health"])


@router.get("")
async def health(verbs: Verbs) -> Health:
    return await verbs.health()
