"""/v1/sessions: who is logged in."""

from __future__ import annotations

from fastapi import APIRouter

from blockyard.api.verbs import Verbs
from blockyard.model import Session

router = APIRouter(prefix="/sessions", tags=["sessions"])


@router.get("")
async def list_sessions(verbs: Verbs, group: str | None = None) -> tuple[Session, ...]:
    return await verbs.list_sessions(group)
