"""How a route gets at the verbs: the one dependency that all routers share."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from blockyard.operations import Operations


def _operations(request: Request) -> Operations:
    return cast("Operations", request.app.state.operations)


Verbs = Annotated[Operations, Depends(_operations)]
