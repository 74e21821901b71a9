"""Who a group's record lets in, and how: its attachments while there are any, its clients otherwise.

Values and one function; finding the one that a connection falls under is ``access``'s. Invariant: while a group is
attached nobody but the hosts that have it may log in, or a host that was fenced could come back as a client.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockstore.api import AttachmentRecord, AttachMode, ChapSecret, ClientRecord, GroupRecord


@dataclass(frozen=True, slots=True)
class Admitted:
    """One who may log in. Two of the same values are the same right; a session ends with the right that it has."""

    initiator: str
    """An iSCSI name, or ``any``."""
    address: str | None = None
    chap: ChapSecret | None = None
    mutual: ChapSecret | None = None
    read_only: bool = False
    """Its logical units are write protected."""
    generation: int = 0
    """Of the attachment; 0: a client."""


def admitted(record: GroupRecord) -> tuple[Admitted, ...]:
    """All who may log in to the group."""
    if record.attachments:
        return tuple(_attached(attachment) for attachment in record.attachments)
    return tuple(_client(client) for client in record.clients)


def _attached(attachment: AttachmentRecord) -> Admitted:
    return Admitted(
        attachment.host,
        chap=attachment.chap,
        read_only=attachment.mode is AttachMode.READ_ONLY_MANY,
        generation=attachment.generation,
    )


def _client(client: ClientRecord) -> Admitted:
    return Admitted(client.initiator, client.address, client.chap, client.mutual)
