"""Docker's volume plugin protocol, version 1, over HTTP on a Unix socket (docker/docs: Docker volume plugins).

Thin over ``driver``. Requests are read loosely, for Docker's clients differ: any content type, an empty body. Failures
are answered with HTTP 200 and ``Err``, which all of them show. Invariant: what is answered from memory is answered on
the loop, so a mount that waits delays no list.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from blockyard.docker.driver import Driver
from blockyard.errors import Invalid, ProductError
from blockyard.hosts.errors import HostError

log = logging.getLogger("blockyard.docker")

MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"

Body = dict[str, Any]
Verb = Callable[[Body], Awaitable[Body]]


def make_app(driver: Driver) -> Starlette:
    async def activate(body: Body) -> Body:
        return {"Implements": ["VolumeDriver"]}

    async def capabilities(body: Body) -> Body:
        # global: a name means the same volume on every host.
        return {"Capabilities": {"Scope": "global"}}

    async def create(body: Body) -> Body:
        await run_in_threadpool(driver.create, _text(body, "Name"), _options(body))
        return {}

    async def remove(body: Body) -> Body:
        await run_in_threadpool(driver.remove, _text(body, "Name"))
        return {}

    async def mount(body: Body) -> Body:
        return {"Mountpoint": await run_in_threadpool(driver.mount, _text(body, "Name"), _text(body, "ID"))}

    async def unmount(body: Body) -> Body:
        await run_in_threadpool(driver.unmount, _text(body, "Name"), _text(body, "ID"))
        return {}

    async def path(body: Body) -> Body:
        return {"Mountpoint": driver.path(_text(body, "Name"))}

    async def get(body: Body) -> Body:
        name = _text(body, "Name")
        # Of a volume that is not known the target is asked, which may take a moment.
        shown = driver.get(name) if driver.knows(name) else await run_in_threadpool(driver.get, name)
        return {"Volume": shown}

    async def list_(body: Body) -> Body:
        return {"Volumes": driver.list()}

    verbs: dict[str, Verb] = {
        "/Plugin.Activate": activate,
        "/VolumeDriver.Capabilities": capabilities,
        "/VolumeDriver.Create": create,
        "/VolumeDriver.Remove": remove,
        "/VolumeDriver.Mount": mount,
        "/VolumeDriver.Unmount": unmount,
        "/VolumeDriver.Path": path,
        "/VolumeDriver.Get": get,
        "/VolumeDriver.List": list_,
    }
    return Starlette(routes=[Route(place, _endpoint(verb), methods=["POST"]) for place, verb in verbs.items()])


def _endpoint(verb: Verb) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def answer(request: Request) -> JSONResponse:
        try:
            said = {**await verb(_parse(await request.body())), "Err": ""}
        except (ProductError, HostError) as error:
            log.warning("%s: %s", request.url.path, error)
            said = {"Err": str(error)}
        except Exception:
            # Docker shows Err to whoever waits; the log has the details.
            log.exception("%s failed", request.url.path)
            said = {"Err": f"{request.url.path} failed: the log of the Blockyard plugin has the details"}
        return JSONResponse(said, media_type=MEDIA_TYPE)

    return answer


def _parse(content: bytes) -> Body:
    if not content.strip():
        return {}
    try:
        body = json.loads(content)
    except ValueError as error:
        raise Invalid(f"the request is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Invalid(f"the request is {type(body).__name__}, allowed is an object")
    return body


def _text(body: Body, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise Invalid(f"the request has {key}={value!r}, allowed is some text")
    return value


def _options(body: Body) -> dict[str, str]:
    options = body.get("Opts") or {}
    if not isinstance(options, dict):
        raise Invalid(f"the request has Opts={options!r}, allowed is an object")
    return {str(key): str(value) for key, value in options.items()}
