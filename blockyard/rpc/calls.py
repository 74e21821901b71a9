"""What daemon and worker say to each other: calls (answered), and notices (not).

Declarations only; ``channel`` moves them. Each call names its reply's type: ``CreateGroup(Call[Created])``.
Invariant: the class name is the name on the wire, and daemon and worker are always of one version.
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast
from uuid import UUID

from pydantic import ConfigDict

from blockyard.model import (
    Client,
    ClientSpec,
    Created,
    Group,
    GroupChange,
    NewGroup,
    Pool,
    Session,
    Snapshot,
    SnapshotPage,
    Swept,
    Value,
    Volume,
    VolumeSpec,
)
from blockyard.model.attachments import Attached, Attachment, AttachRequest
from blockyard.model.transfers import Receive

R = TypeVar("R", bound=Value)


class Nothing(Value):
    """The reply of a call that has nothing to tell."""


class Sessions(Value):
    sessions: tuple[Session, ...]


class Attachments(Value):
    attachments: tuple[Attachment, ...]


class Call(Value, Generic[R]):
    """A request that is answered with an ``R`` or with an error."""

    @classmethod
    def reply_type(cls) -> type[R]:
        for base in cls.__mro__:
            metadata = getattr(base, "__pydantic_generic_metadata__", None)
            if metadata and metadata["origin"] is Call:
                return cast("type[R]", metadata["args"][0])
        raise TypeError(f"{cls.__name__} does not name its reply")


class Notice(Value):
    """Said without waiting for an answer."""


# --- daemon → worker -----------------------------------------------------------------------------------------------


class CreateGroup(Call[Created]):
    group: NewGroup
    iqn: str


class CloneGroup(Call[Created]):
    group: str
    snapshot: str
    name: str
    iqn: str | None
    """As asked; None accepts whatever the clone already has."""
    default_iqn: str
    clients: tuple[ClientSpec, ...] | None
    labels: dict[str, str]


class DeleteGroup(Call[Nothing]):
    group: str
    force: bool


class ShowGroup(Call[Group]):
    group: str
    usage: bool = False
    """Whether to count exclusive and reclaimable bytes too, which may take a moment."""


class SetGroup(Call[Group]):
    group: str
    change: GroupChange


class RollbackGroup(Call[Snapshot]):
    """The reply is the automatic snapshot that was taken first."""

    group: str
    snapshot: str
    force: bool


class AddVolume(Call[Volume]):
    group: str
    volume: VolumeSpec


class ResizeVolume(Call[Volume]):
    group: str
    lun: int
    size: int


class RemoveVolume(Call[Nothing]):
    group: str
    lun: int
    force: bool


class CreateSnapshot(Call[Snapshot]):
    group: str
    name: str


class ListSnapshots(Call[SnapshotPage]):
    """With what each uses; the count is made for the first page, and serves the others."""

    group: str
    after: str | None = None
    """``next`` of the page before."""


class DeleteSnapshot(Call[Nothing]):
    group: str
    name: str


class AllowClient(Call[Client]):
    group: str
    client: ClientSpec


class DenyClient(Call[Nothing]):
    group: str
    initiator: str


class Attach(Call[Attached]):
    """The portals are left empty: the daemon knows them."""

    group: str
    host: str
    asked: AttachRequest


class Release(Call[Nothing]):
    group: str
    host: str


class ListAttachments(Call[Attachments]):
    group: str | None
    """None: of all groups."""


class ListSessions(Call[Sessions]):
    pass


class ShowPool(Call[Pool]):
    pass


class SweepPool(Call[Swept]):
    pass


class DiffSnapshots(Call[Nothing]):
    """Lines of what changed go into the pipe (as those of the other calls with a pipe: ``model.transfers.Line``)."""

    pipe: int
    group: str
    old: str
    new: str | None
    """None: the group as it is now."""


class SendSnapshot(Call[Nothing]):
    """The stream goes into the pipe."""

    pipe: int
    group: str
    snapshot: str
    base: str | None
    resume: str | None


class ReceiveSnapshot(Call[Snapshot]):
    """The stream comes out of the pipe."""

    pipe: int
    group: str
    iqn: str
    """Of the group, if the stream makes one."""


class VerifySnapshot(Call[Nothing]):
    pipe: int
    group: str
    snapshot: str


class ScrubPool(Call[Nothing]):
    pipe: int
    rate: int | None
    """Bytes a second; None: as fast as it goes."""


class ShowReceive(Call[Receive]):
    group: str


class AbortReceive(Call[Nothing]):
    group: str


class Stop(Call[Nothing]):
    """Take no new commands, commit, close the pool; the worker ends after answering."""


class Adopt(Notice):
    """Goes with one socket: a connection whose first Login Request named ``iqn``."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    iqn: str
    received: bytes
    """All bytes that came from the initiator."""
    replied: int
    """How many bytes it has been sent."""


class PipeEnd(Notice):
    """Goes with one socket: the worker's end of the pipe that the call after it names."""

    pipe: int


# --- worker → daemon -----------------------------------------------------------------------------------------------


class Opened(Notice):
    """The pool is recovered and its targets stand."""

    uuid: UUID
    groups: tuple[Group, ...]


class OpenFailed(Notice):
    reason: str
    retry: bool
    """Whether opening it again may end better without anybody's help."""


class GroupChanged(Notice):
    group: Group


class GroupRemoved(Notice):
    name: str


CALLS: dict[str, type[Call[Value]]] = {
    call.__name__: cast("type[Call[Value]]", call)
    for call in (
        CreateGroup,
        CloneGroup,
        DeleteGroup,
        ShowGroup,
        SetGroup,
        RollbackGroup,
        AddVolume,
        ResizeVolume,
        RemoveVolume,
        CreateSnapshot,
        ListSnapshots,
        DeleteSnapshot,
        AllowClient,
        DenyClient,
        Attach,
        Release,
        ListAttachments,
        ListSessions,
        ShowPool,
        SweepPool,
        DiffSnapshots,
        SendSnapshot,
        ReceiveSnapshot,
        VerifySnapshot,
        ScrubPool,
        ShowReceive,
        AbortReceive,
        Stop,
    )
}

NOTICES: dict[str, type[Notice]] = {
    notice.__name__: notice for notice in (Adopt, PipeEnd, Opened, OpenFailed, GroupChanged, GroupRemoved)
}
