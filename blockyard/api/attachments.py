"""/v1/groups/{group}/attachments and /v1/attachments: which host has a group, and giving it to one."""

from __future__ import annotations

from fastapi import APIRouter, Request, status

from blockyard.api.access import NOTE, CallerOf
from blockyard.api.verbs import Verbs
from blockyard.model.attachments import Attached, Attachment, AttachRequest

router = APIRouter(tags=["attachments"])


@router.get("/attachments")
async def list_all_attachments(verbs: Verbs, caller: CallerOf, host: str | None = None) -> tuple[Attachment, ...]:
    """To a host its own."""
    found = await verbs.list_attachments(None, caller.own_host(host))
    if caller.admin:
        return found
    mine = {group.name for group in (await verbs.list_groups()).groups if caller.sees(group.labels)}
    return tuple(each for each in found if each.group in mine)


@router.get("/groups/{group}/attachments")
async def list_attachments(group: str, verbs: Verbs, host: str | None = None) -> tuple[Attachment, ...]:
    return await verbs.list_attachments(group, host)


@router.put("/groups/{group}/attachments/{host}")
async def attach(group: str, host: str, asked: AttachRequest, verbs: Verbs, request: Request) -> Attached:
    """The same host again: the same secret and generation. Another: 409, or with ``take_over`` it has lost the group
    when this is answered."""
    if asked.take_over:
        request.scope[NOTE] = "take over"
    return await verbs.attach(group, host, asked)


@router.delete("/groups/{group}/attachments/{host}", status_code=status.HTTP_204_NO_CONTENT)
async def release(group: str, host: str, verbs: Verbs) -> None:
    """Also when it is not attached."""
    await verbs.release(group, host)
