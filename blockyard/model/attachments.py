"""Attachments as values: which host has a group, how, and what it needs to log in.

What the target keeps of an attachment and how a host is fenced is ``target.node``'s and the store's; this is what RPC,
REST, command line and plugins say of it. Invariant: the secret is in ``Attached`` alone, the answer to the host (or the
administrator) that attaches, and in no listing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator

from blockyard.model import ChapCredentials, Value, Volume, names

Host = Annotated[str, AfterValidator(names.host)]


class AttachMode(StrEnum):
    SINGLE_WRITER = "single-writer"
    """One host, and no other."""
    MULTI_WRITER = "multi-writer"
    """Many hosts that keep their writes apart themselves (a cluster file system)."""
    READ_ONLY_MANY = "read-only-many"
    """Many hosts, none of which can write."""


class AttachRequest(Value):
    mode: AttachMode = AttachMode.SINGLE_WRITER
    take_over: bool = False
    """Fence whoever holds the group in a way that excludes this host, alive or not."""


class Attachment(Value):
    group: str
    host: str
    """The initiator's iSCSI name."""
    mode: AttachMode
    generation: int
    """Rises with each host that gets the group: of two attachments the greater one is the later."""
    target: str
    """The target's iSCSI name."""
    portals: tuple[str, ...] = ()
    """Where to log in, ``host:port``."""
    volumes: tuple[Volume, ...]
    created: float
    sessions: int
    alive: bool
    """It has a session that answers the target's pings, or none was opened yet within the first minute."""
    seen: float | None
    """When it answered last; None: not since the target was started."""
    chap_user: str


class Attached(Value):
    """What a host needs to log in: the only answer that holds the secret."""

    attachment: Attachment
    chap: ChapCredentials
