"""A bound on what one request may send: whoever can open the API socket shall not fill the daemon's memory by mistake.

A plain ASGI coat around the application; it looks at no content.
"""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20  # bytes; a group of 256 volumes and some thousand clients has less
_STREAM = re.compile(r"/v1/groups/[^/]+/receive")  # is passed on as it comes and never held whole


class BodyLimit:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _STREAM.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        size = 0

        async def receive_bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"the body has more than {MAX_BODY} bytes")
            return message

        await self._app(scope, receive_bounded, send)
