"""/v1/groups: create, show, change, delete, clone, roll back."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from blockyard.api.verbs import Verbs
from blockyard.model import CloneRequest, Group, GroupChange, Groups, NewGroup, RollbackRequest, Snapshot

router = APIRouter(prefix="/groups", tags=["groups"])


@router.get("")
async def list_groups(verbs: Verbs) -> Groups:
    return await verbs.list_groups()


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_group(asked: NewGroup, verbs: Verbs, response: Response) -> Group:
    """201 when it was made, 200 when it was there with the same properties."""
    created = await verbs.create_group(asked)
    if not created.created:
        response.status_code = status.HTTP_200_OK
    return created.group


@router.get("/{name}")
async def show_group(name: str, verbs: Verbs, usage: bool = False) -> Group:
    return await verbs.show_group(name, usage=usage)


@router.patch("/{name}")
async def set_group(name: str, change: GroupChange, verbs: Verbs) -> Group:
    return await verbs.set_group(name, change)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_group(name: str, verbs: Verbs, force: bool = False) -> None:
    await verbs.delete_group(name, force=force)


@router.post("/{name}:clone", status_code=status.HTTP_201_CREATED)
async def clone_group(name: str, asked: CloneRequest, verbs: Verbs, response: Response) -> Group:
    """201 when it was made, 200 when that clone was there."""
    created = await verbs.clone_group(name, asked)
    if not created.created:
        response.status_code = status.HTTP_200_OK
    return created.group


@router.post("/{name}:rollback")
async def rollback_group(name: str, asked: RollbackRequest, verbs: Verbs) -> Snapshot:
    """The answer is the automatic snapshot of what was there before."""
    return await verbs.rollback_group(name, asked)
