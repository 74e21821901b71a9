"""/v1/groups/{group}/snapshots: frozen images of a whole group."""

from __future__ import annotations

from fastapi import APIRouter, Response, status
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from blockyard.api.verbs import Verbs
from blockyard.model import NewSnapshot, Snapshot

_SNAPSHOTS = TypeAdapter(tuple[Snapshot, ...])
router = APIRouter(prefix="/groups/{group}/snapshots", tags=["snapshots"])


@router.get("", response_model=tuple[Snapshot, ...])
async def list_snapshots(group: str, verbs: Verbs) -> Response:
    snapshots = await verbs.list_snapshots(group)
    # Written here, once: FastAPI would validate every one of perhaps 10,000 again.
    return Response(_SNAPSHOTS.dump_json(snapshots), media_type="application/json")


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_snapshot(group: str, asked: NewSnapshot, verbs: Verbs) -> Snapshot:
    return await verbs.create_snapshot(group, asked.name)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_snapshot(group: str, name: str, verbs: Verbs) -> None:
    await verbs.delete_snapshot(group, name)


@router.get("/{name}/stream")
async def send_snapshot(
    group: str, name: str, verbs: Verbs, base: str | None = None, resume: str | None = None
) -> StreamingResponse:
    """The snapshot, or what it has that ``base`` has not, as a stream for ``receive``."""
    stream = await verbs.send_snapshot(group, name, base=base, resume=resume)
    return StreamingResponse(stream, media_type="application/octet-stream")


@router.get("/{name}:diff")
async def diff_snapshots(group: str, name: str, verbs: Verbs, new: str | None = None) -> StreamingResponse:
    """What ``new`` (default: the group now) has that the snapshot has not, one JSON value a line."""
    return StreamingResponse(await verbs.diff_snapshots(group, name, new), media_type="application/x-ndjson")


@router.post("/{name}:verify")
async def verify_snapshot(group: str, name: str, verbs: Verbs) -> StreamingResponse:
    """Progress, then the fingerprint, one JSON value a line."""
    return StreamingResponse(await verbs.verify_snapshot(group, name), media_type="application/x-ndjson")
