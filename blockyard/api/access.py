"""Who calls, and what a route demands of a caller. The table of routes is ``levels``; finding out who calls ``door``.

Administrators may do everything. A host's token is good for the groups of its project (label ``blockyard.project``),
which it may make, change and delete, and attach as itself. A group of somebody else's is to a host as if it were not
there. Invariant: a request that came through no door has no caller and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, cast

from fastapi import Depends, Request

from blockyard.errors import AlreadyExists, Forbidden, Invalid, NotFound, Unauthenticated
from blockyard.model.names import PROJECT
from blockyard.model.names import labels as checked_labels
from blockyard.operations import Operations

FORCE = "--force, which ends other hosts' sessions,"
CALLER = "blockyard.caller"
"""Where in an ASGI scope the door puts who calls."""


NOTE = "blockyard.note"
"""Where a route puts what the audit log shall say beside method and path."""


class Level(Enum):
    """What a route demands."""

    ADMIN = "admin"
    ANY = "any"
    """Any token; the route itself shows a host only what is its own."""
    GROUP = "group"
    """The path's group belongs to the host's project."""
    SELF = "self"
    """That, and the path's host is the host itself."""


@dataclass(frozen=True, slots=True)
class Caller:
    """``project`` and ``host`` None: an administrator."""

    name: str
    """As the audit log says it."""
    host: str | None = None
    project: str | None = None

    @property
    def admin(self) -> bool:
        return self.host is None

    def sees(self, labels: Mapping[str, str]) -> bool:
        """Whether a group with these labels is there for the caller."""
        return self.admin or labels.get(PROJECT) == self.project

    def own_labels(self, labels: dict[str, str]) -> dict[str, str]:
        """The labels of a group that the caller makes or changes: a host's stays in its project."""
        if self.project is None:
            return labels
        if labels.get(PROJECT, self.project) != self.project:
            raise Forbidden(f"the token is for project {self.project}, not for {labels[PROJECT]}")
        try:
            return checked_labels({**labels, PROJECT: self.project})  # one more than was asked for may be one too many
        except ValueError as error:
            raise Invalid(f"labels: {error}") from None

    def own_host(self, host: str | None) -> str | None:
        """Whose attachments to list: a host's own."""
        if self.host is None:
            return host
        if host is not None and host.lower() != self.host.lower():
            raise Forbidden(f"the token is that of {self.host}, not of {host}")
        return self.host

    def refuse(self, what: str) -> None:
        """Something that only administrators may ask for, inside a request that hosts may make."""
        if not self.admin:
            raise Forbidden(f"{what} needs an administrator's token")


LOCAL = Caller("local")
"""Whoever can open the Unix socket."""


def caller_of(request: Request) -> Caller:
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Caller):
        raise Unauthenticated("the request has no token")
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]


async def authorize(request: Request) -> None:
    """Before every route. Raises Unauthenticated, Forbidden, NotFound."""
    caller = caller_of(request)
    if caller.admin:
        return
    level = request.app.state.levels.get(request.scope["endpoint"], Level.ADMIN)
    if level is Level.ADMIN:
        raise Forbidden(f"{request.method} {request.url.path} needs an administrator's token")
    if level is Level.ANY:
        return
    parameters = request.path_params
    group = str(parameters["group"] if "group" in parameters else parameters["name"])
    operations = cast("Operations", request.app.state.operations)
    if not caller.sees(await operations.labels_of(group)):
        raise NotFound(operations.no_group(group))
    if level is Level.SELF:
        caller.own_host(str(parameters["host"]))


async def check_name(operations: Operations, caller: Caller, name: str) -> None:
    """A host that makes a group learns nothing of one that it does not see, but that the name is taken."""
    try:
        labels = await operations.labels_of(name)
    except NotFound:
        return
    if not caller.sees(labels):
        raise AlreadyExists(f"the name {name} is taken")
