"""Tokens and the audit log as values: who may speak to the daemon over the network, and what was asked of it.

Invariant: a token's text is in ``CreatedToken`` alone, the answer to whoever made it; what is kept is its hash.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from blockyard.model import Value, names
from blockyard.model.attachments import Host

Project = Annotated[str, AfterValidator(names.project)]


class NewToken(Value):
    """Either an administrator's, or a host's in a project."""

    admin: bool = False
    host: Host | None = None
    project: Project | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.admin and (self.host or self.project):
            raise ValueError("an administrator's token has neither host nor project")
        if not self.admin and not (self.host and self.project):
            raise ValueError("a token is a host's, with --host and --project, or an administrator's, with --admin")
        return self


class Token(Value):
    id: int
    admin: bool
    host: str | None
    project: str | None
    created: float
    revoked: float | None
    """None: it is good."""


class CreatedToken(Value):
    token: Token
    text: str = Field(repr=False)
    """What is sent as ``Authorization: Bearer``; shown this once."""


class AuditEntry(Value):
    """One request that could change something, or that was refused for who sent it."""

    time: float
    who: str
    """``local`` (the Unix socket), ``token 3 (admin)``, ``token 4 (iqn...)`` or ``nobody``."""
    address: str
    """Where it came from; empty for the Unix socket."""
    action: str
    """Method, path and query, and what the route noted, such as a take-over."""
    status: int
    """What was answered, as HTTP says it."""
