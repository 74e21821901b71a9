"""/v1/groups/{group}/snapshots: frozen images of a whole group."""

from __future__ import annotations

from fastapi import APIRouter, status

from blockyard.api.verbs import Verbs
from blockyard.model import NewSnapshot, Snapshot

router = APIRouter(prefix="/groups/{group}/snapshots", tags=["snapshots"])


@router.get("")
async def list_snapshots(group: str, verbs: Verbs) -> tuple[Snapshot, ...]:
    return await verbs.list_snapshots(group)


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_snapshot(group: str, asked: NewSnapshot, verbs: Verbs) -> Snapshot:
    return await verbs.create_snapshot(group, asked.name)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_snapshot(group: str, name: str, verbs: Verbs) -> None:
    await verbs.delete_snapshot(group, name)
