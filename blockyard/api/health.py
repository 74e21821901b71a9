"""/v1/health: whether every pool serves, and where initiators connect."""

from __future__ import annotations

from fastapi import APIRouter

from blockyard.api.access import CallerOf
from blockyard.api.verbs import Verbs
from blockyard.model import Health

router = APIRouter(prefix="/health", tags=["health"])


@router.get("")
async def health(verbs: Verbs, caller: CallerOf) -> Health:
    """To a host without what the target is made of."""
    found = await verbs.health()
    return found if caller.admin else found.model_copy(update={"store": "", "pools": ()})
