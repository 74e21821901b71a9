"""/v1/groups/{group}/clients: who may log in. Secrets go in and never come out."""

from __future__ import annotations

from fastapi import APIRouter, status

from blockyard.api.verbs import Verbs
from blockyard.errors import Invalid
from blockyard.model import Client, ClientSpec

router = APIRouter(prefix="/groups/{group}/clients", tags=["clients"])


@router.get("")
async def list_clients(group: str, verbs: Verbs) -> tuple[Client, ...]:
    return await verbs.list_clients(group)


@router.put("/{initiator}")
async def allow_client(group: str, initiator: str, asked: ClientSpec, verbs: Verbs) -> Client:
    """Adds the client, or replaces all that was said of it before."""
    if asked.initiator != initiator:
        raise Invalid(f"the path names client {initiator}, the body {asked.initiator}: they must be the same")
    return await verbs.allow_client(group, asked)


@router.delete("/{initiator}", status_code=status.HTTP_204_NO_CONTENT)
async def deny_client(group: str, initiator: str, verbs: Verbs) -> None:
    await verbs.deny_client(group, initiator)
