"""/v1/groups: create, show, change, delete, clone, roll back, move."""

from __future__ import annotations

from fastapi import APIRouter, Response, status
from fastapi.responses import StreamingResponse

from blockyard.api.access import FORCE, CallerOf, check_name
from blockyard.api.verbs import Verbs
from blockyard.model import (
    CloneRequest,
    Group,
    GroupChange,
    Groups,
    MoveRequest,
    NewGroup,
    RollbackRequest,
    Snapshot,
)

router = APIRouter(prefix="/groups", tags=["groups"])

CHOOSING = "choosing the IQN"  # of the whole yard's: whose it is already is nothing for a host to hear


@router.get("")
async def list_groups(verbs: Verbs, caller: CallerOf) -> Groups:
    """To a host those of its project."""
    found = await verbs.list_groups()
    if caller.admin:
        return found
    unavailable = ("some groups are not known at the moment: a pool is not served",) if found.unavailable else ()
    return Groups(groups=tuple(each for each in found.groups if caller.sees(each.labels)), unavailable=unavailable)


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_group(asked: NewGroup, verbs: Verbs, caller: CallerOf, response: Response) -> Group:
    """201 when it was made, 200 when it was there with the same properties. A host's is in the host's project, and
    reached by attaching it."""
    await check_name(verbs, caller, asked.name)
    if asked.clients:
        caller.refuse("letting clients log in")
    if asked.iqn is not None:
        caller.refuse(CHOOSING)
    created = await verbs.create_group(asked.model_copy(update={"labels": caller.own_labels(asked.labels)}))
    if not created.created:
        response.status_code = status.HTTP_200_OK
    return created.group


@router.get("/{name}")
async def show_group(name: str, verbs: Verbs, usage: bool = False) -> Group:
    return await verbs.show_group(name, usage=usage)


@router.patch("/{name}")
async def set_group(name: str, change: GroupChange, verbs: Verbs, caller: CallerOf) -> Group:
    if change.labels is not None:
        change = change.model_copy(update={"labels": caller.own_labels(change.labels)})
    return await verbs.set_group(name, change)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_group(name: str, verbs: Verbs, caller: CallerOf, force: bool = False) -> None:
    if force:
        caller.refuse(FORCE)
    await verbs.delete_group(name, force=force)


@router.post("/{name}:clone", status_code=status.HTTP_201_CREATED)
async def clone_group(name: str, asked: CloneRequest, verbs: Verbs, caller: CallerOf, response: Response) -> Group:
    """201 when it was made, 200 when that clone was there. A host's is in the host's project, and has no clients."""
    await check_name(verbs, caller, asked.name)
    if asked.clients:
        caller.refuse("letting clients log in")
    if asked.iqn is not None:
        caller.refuse(CHOOSING)
    if not caller.admin:
        asked = asked.model_copy(update={"clients": (), "labels": caller.own_labels(asked.labels)})
    created = await verbs.clone_group(name, asked)
    if not created.created:
        response.status_code = status.HTTP_200_OK
    return created.group


@router.post("/{name}:rollback")
async def rollback_group(name: str, asked: RollbackRequest, verbs: Verbs, caller: CallerOf) -> Snapshot:
    """The answer is the automatic snapshot of what was there before."""
    if asked.force:
        caller.refuse(FORCE)
    return await verbs.rollback_group(name, asked)


@router.post("/{name}:move")
async def move_group(name: str, asked: MoveRequest, verbs: Verbs) -> StreamingResponse:
    """To another pool, while it is served. How far it is, then the report, one JSON value a line; a failure after the
    first line is the last one. Whoever goes away before the cut-over gives the move up."""
    return StreamingResponse(await verbs.move_group(name, asked), media_type="application/x-ndjson")


@router.delete("/{name}/move", status_code=status.HTTP_204_NO_CONTENT)
async def abort_move(name: str, verbs: Verbs) -> None:
    """Give up a move that has not come to its cut-over, and forget what it copied."""
    await verbs.abort_move(name)
