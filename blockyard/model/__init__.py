"""The nouns as values: what RPC, REST and the command line say to each other.

No behaviour beyond validation. Sizes are bytes, times are seconds since 1970. Invariant: secrets exist only in
what is asked (``ChapCredentials``), never in what is answered (``Client``); the one answer that holds a secret, because
the target made it, is ``attachments.Attached``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from blockyard.model import names

GroupName = Annotated[str, AfterValidator(names.group_name)]
PartName = Annotated[str, AfterValidator(names.part_name)]
TargetIqn = Annotated[str, AfterValidator(names.target_iqn)]
Initiator = Annotated[str, AfterValidator(names.initiator)]
AddressRange = Annotated[str, AfterValidator(names.address_range)]
VolumeSize = Annotated[int, AfterValidator(names.volume_size)]
ChapUser = Annotated[str, AfterValidator(names.chap_user)]
Secret = Annotated[str, AfterValidator(names.chap_secret)]
Labels = Annotated[dict[str, str], AfterValidator(names.labels)]


MAX_LUNS = 256  # in a group; LUN numbers of the peripheral addressing method end there (SAM-5)


class Value(BaseModel):
    """Base of all values: frozen, and unknown fields are refused (a misspelt one would be ignored silently)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cache(StrEnum):
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"


class Auth(StrEnum):
    NONE = "none"
    CHAP = "chap"
    MUTUAL = "mutual chap"


class PoolState(StrEnum):
    STARTING = "starting"
    """Its worker is opening it."""
    SERVING = "serving"
    FAIL_STOPPED = "fail-stopped"
    """Reads go on, writes are refused until the worker is restarted."""
    RESTARTING = "restarting"
    """Its worker died and is about to be started again."""
    FAILED = "failed"
    """It cannot be opened; the reason says why."""
    STOPPED = "stopped"


# --- what is asked -------------------------------------------------------------------------------------------------


class ChapCredentials(Value):
    user: ChapUser
    secret: Secret = Field(repr=False)


class ClientSpec(Value):
    """Who may log in to a group, from where, and what must be proved."""

    initiator: Initiator
    address: AddressRange | None = None
    chap: ChapCredentials | None = None
    mutual: ChapCredentials | None = None

    @model_validator(mode="after")
    def _mutual_needs_another_secret(self) -> Self:
        if self.mutual is not None:
            if self.chap is None:
                raise ValueError("mutual CHAP needs the initiator's own CHAP user and secret too")
            if self.mutual.secret == self.chap.secret:  # RFC 7143 9.2.1
                raise ValueError("the CHAP secrets of the two directions must differ")
        return self


class VolumeSpec(Value):
    size: VolumeSize
    name: PartName | None = None


def _volume_count(volumes: tuple[VolumeSpec, ...]) -> tuple[VolumeSpec, ...]:
    # Not Field(min_length=1): pydantic would complain of it, too, when the one volume is wrong.
    if not 1 <= len(volumes) <= MAX_LUNS:
        raise ValueError(f"a group of {len(volumes)} volumes is not allowed: 1 to {MAX_LUNS}")
    return volumes


class NewGroup(Value):
    name: GroupName
    volumes: Annotated[tuple[VolumeSpec, ...], AfterValidator(_volume_count)]
    clients: tuple[ClientSpec, ...] = ()
    cache: Cache = Cache.WRITEBACK
    iqn: TargetIqn | None = None
    """None: made from the pool's identity and the group's name."""
    labels: Labels = {}


class GroupChange(Value):
    """What is left out stays as it is."""

    cache: Cache | None = None
    labels: Labels | None = None
    """All of them: those that are not named go."""


class CloneRequest(Value):
    snapshot: PartName
    name: GroupName
    clients: tuple[ClientSpec, ...] | None = None
    """None: those of the group that is cloned."""
    iqn: TargetIqn | None = None
    labels: Labels = {}
    """Of the clone alone: those of the group that is cloned say what that one is."""


class RollbackRequest(Value):
    snapshot: str
    force: bool = False


class NewSnapshot(Value):
    name: PartName


class NewSize(Value):
    size: VolumeSize


# --- what is answered ----------------------------------------------------------------------------------------------


class Volume(Value):
    lun: int
    name: str
    uuid: UUID
    size: int
    mapped: int
    """Bytes that are mapped, whoever shares them."""
    created: float
    exclusive: int | None = None
    """Bytes that only the volume references: removing it would free so many. None: not counted."""
    reclaimable: int | None = None
    """Bytes that only its snapshots reference: deleting all of them would free so many. None: not counted."""


class SnapshotVolume(Value):
    lun: int
    name: str
    size: int


class Snapshot(Value):
    name: str
    uuid: UUID
    created: float
    volumes: tuple[SnapshotVolume, ...]
    mapped: int | None = None
    """Bytes that are mapped, whoever shares them; None where it is not asked for."""
    exclusive: int | None = None
    """Bytes that only this snapshot references: deleting it would free so many. None: not counted (yet)."""


class SnapshotPage(Value):
    """Part of a group's snapshots, oldest first."""

    snapshots: tuple[Snapshot, ...]
    next: str | None
    """Where the listing goes on; None: it is complete."""


class Client(Value):
    initiator: str
    address: str | None = None
    auth: Auth = Auth.NONE
    chap_user: str | None = None
    mutual_user: str | None = None


class Group(Value):
    name: str
    uuid: UUID
    iqn: str
    pool: str
    state: PoolState
    """That of its pool: only ``serving`` ones take logins."""
    created: float
    cache: Cache
    origin: str | None = None
    """``group@snapshot`` that it was cloned from."""
    volumes: tuple[Volume, ...]
    snapshots: tuple[Snapshot, ...]
    """The newest ones only, oldest first: there may be very many."""
    snapshot_count: int
    clients: tuple[Client, ...]
    sessions: int
    """How many are open."""
    portals: tuple[str, ...] = ()
    """Where initiators log in, ``host:port``."""
    labels: dict[str, str] = {}
    hosts: tuple[str, ...] = ()
    """That have it attached; while there are any, only they may log in."""
    exclusive: int | None = None
    """Bytes that only this group references: deleting it would free so many. None: not counted."""
    reclaimable: int | None = None
    """Bytes that only its snapshots reference: deleting all of them would free so many. None: not counted."""
    usage_taken: float | None = None
    """When exclusive and reclaimable bytes were counted."""


class Created(Value):
    """A group that was made now, or was there with the same properties."""

    group: Group
    created: bool


class Session(Value):
    group: str
    target: str
    initiator: str
    initiator_alias: str
    isid: str
    tsih: int
    address: str
    connected: float
    auth: str
    digests: str
    commands: int
    read_bytes: int
    write_bytes: int


class Pool(Value):
    name: str
    uuid: UUID | None
    state: PoolState
    reason: str | None
    size: int | None
    used: int | None
    pending_free: int | None
    groups: int
    sessions: int | None
    worker: int | None
    """Process id."""
    restarts: int
    counters: dict[str, int] = {}


class Groups(Value):
    groups: tuple[Group, ...]
    unavailable: tuple[str, ...] = ()
    """One sentence for each pool whose groups are not known, or known only from before its worker died."""


class Swept(Value):
    freed: int
    """Bytes."""


class Health(Value):
    status: str
    """``ok`` when every pool is serving, else ``degraded``."""
    version: str
    store: str
    portals: tuple[str, ...]
    pools: tuple[Pool, ...]


class PoolCheck(Value):
    """What the offline check found in one pool."""

    pool: str
    path: str
    clean: bool
    findings: tuple[str, ...] = ()
    error: str | None = None
    """Why it could not be checked; then nothing is known about it."""
    error_code: str | None = None
    figures: dict[str, int] = {}


class CheckReport(Value):
    store: str
    deep: bool
    pools: tuple[PoolCheck, ...]
