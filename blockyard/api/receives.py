"""/v1/groups/{group}/receive: a snapshot that comes in as a stream, how far it is, and forgetting it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, status
from starlette.requests import ClientDisconnect

from blockyard.api.verbs import Verbs
from blockyard.model import Snapshot
from blockyard.model.transfers import Receive

router = APIRouter(prefix="/groups/{group}/receive", tags=["receives"])


@router.post("", status_code=status.HTTP_201_CREATED)
async def receive_snapshot(group: str, verbs: Verbs, request: Request, pool: str | None = None) -> Snapshot:
    """The body is what ``snapshots/{name}/stream`` gives; a group is made, or continued."""
    return await verbs.receive_snapshot(group, _body(request), pool=pool)


@router.get("")
async def show_receive(group: str, verbs: Verbs) -> Receive:
    """How far the unfinished one is."""
    return await verbs.show_receive(group)


@router.delete("", status_code=status.HTTP_204_NO_CONTENT)
async def abort_receive(group: str, verbs: Verbs) -> None:
    await verbs.abort_receive(group)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """A client that goes away is a stream that was cut: the worker notes how far it came."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        return
