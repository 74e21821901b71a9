"""/v1/openapi.json: the API's own description, generated from its routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

router = APIRouter(prefix="/openapi.json", tags=["openapi"])


@router.get("")
async def openapi(request: Request) -> dict[str, Any]:
    """This document."""
    described: dict[str, Any] = request.app.openapi()
    return described
