"""/v1/groups/{group}/volumes: the logical units of a group, by LUN."""

from __future__ import annotations

from fastapi import APIRouter, status

from blockyard.api.access import FORCE, CallerOf
from blockyard.api.verbs import Verbs
from blockyard.model import NewSize, Volume, VolumeSpec

router = APIRouter(prefix="/groups/{group}/volumes", tags=["volumes"])


@router.get("")
async def list_volumes(group: str, verbs: Verbs) -> tuple[Volume, ...]:
    return await verbs.list_volumes(group)


@router.post("", status_code=status.HTTP_201_CREATED)
async def add_volume(group: str, asked: VolumeSpec, verbs: Verbs) -> Volume:
    return await verbs.add_volume(group, asked)


@router.patch("/{lun}")
async def resize_volume(group: str, lun: int, asked: NewSize, verbs: Verbs) -> Volume:
    return await verbs.resize_volume(group, lun, asked.size)


@router.delete("/{lun}", status_code=status.HTTP_204_NO_CONTENT)
async def remove_volume(group: str, lun: int, verbs: Verbs, caller: CallerOf, force: bool = False) -> None:
    if force:
        caller.refuse(FORCE)
    await verbs.remove_volume(group, lun, force=force)
