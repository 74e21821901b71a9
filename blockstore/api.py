"""The contracts of the block store: what pools, groups and volumes promise to everything above them.

The only file of this package that ``target`` may import. Nothing here knows of leaves, journals or files, so
another engine (the memory pool of the tests, later Ceph RBD) can stand behind it. Rules that every engine keeps:

* One thread, the *loop thread*, owns all state and makes every call; results come back on that thread.
* The data path takes ``done`` callbacks and makes no object per call; control verbs return ``Future``.
* A write that is not yet committed is invisible; ``done(None)`` of a write means that it survives the death of
  the process, ``done(None)`` of a flush or a ``sync`` write that it survives power loss.
* ``offset`` and ``length`` are bytes everywhere in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol
from uuid import UUID

Buffer = bytes | bytearray | memoryview

LOGICAL_BLOCK = 512  # bytes; what initiators address
GRAIN = 4096  # bytes; what the store maps: the physical block that initiators are told of
MAX_VOLUME_SIZE = 256 << 40  # bytes; the map's format ends here (STORE format: two-level directory)
MAX_LUN = 255  # peripheral addressing; flat addressing comes with the conformance work


class StoreError(Exception):
    """Any refusal of the store. Subclasses are named by what the receiver does about them."""


class OutOfRange(StoreError):
    """Offset and length leave the volume, or are not multiples of 512 bytes."""


class OutOfSpace(StoreError):
    """No block is left and none will come back by waiting: free some (UNMAP, delete snapshots) first."""


class Busy(StoreError):
    """Cannot be done now, but will be soon (space is being counted after start-up): try again."""


class MediumError(StoreError):
    """Stored bytes cannot be proved intact. ``offset`` is the first such byte of the volume."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class FailStopped(StoreError):
    """A sync failed: the pool takes no more writes until it is restarted; reads go on."""


class Undecided(StoreError):
    """The journal append failed: whether the write happened is known only after recovery. Never answer it."""


class Revoked(StoreError):
    """The write's permit was revoked before it was committed: nothing of it is stored. Never answer it."""


class Closed(StoreError):
    """The pool is closing or closed."""


class NotFound(StoreError):
    """No group, volume or snapshot has that name."""


class AlreadyExists(StoreError):
    """The name, IQN or LUN is taken, by something with other properties."""


class InUse(StoreError):
    """Refused because something depends on it."""


class Invalid(StoreError):
    """An argument is outside what is allowed; the message says what was seen and what is allowed."""


class Corrupt(StoreError):
    """Files of the store contradict each other in a way that a crash cannot cause: not opened, nothing changed."""


class Locked(StoreError):
    """Another process has the pool open."""


Done = Callable[[StoreError | None], None]
"""Called exactly once, on the loop thread, possibly before the call that took it returns."""


class Permit(Protocol):
    """The right of one task to write. Whoever owns the task sets ``revoked``; the store reads it when it forms a
    batch, and drops what was revoked (``Revoked`` goes to its ``done``)."""

    revoked: bool


class StandingPermit:
    """A permit that nobody revokes: the store's own writes, and tests."""

    __slots__ = ("revoked",)

    def __init__(self) -> None:
        self.revoked = False


class Runner(Protocol):
    """How an engine waits without knowing of an event loop: the worker gives the real one, tests step one by hand."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run ``function`` on the loop thread after everything that is already due (the end of this tick)."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Run ``function`` on the loop thread after ``seconds``; returns the function that cancels it."""

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        """Run ``work`` in a helper thread, then ``then(error or None)`` on the loop thread. Used for work that
        releases the GIL (fdatasync, cold reads, SQLite); work keeps to bytes handed to it."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""


class CachePolicy(Enum):
    WRITEBACK = "writeback"
    """Acknowledged when journalled, durable at flush or FUA: survives the process, not a power cut."""
    WRITETHROUGH = "writethrough"
    """Acknowledged after the shared flush round: no acknowledged write is ever lost."""


@dataclass(frozen=True, slots=True)
class ChapSecret:
    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """Who may log in to a group. ``initiator`` is an IQN, or ``any``."""

    initiator: str
    address: str | None = None
    """CIDR range that the connection must come from; None: anywhere."""
    chap: ChapSecret | None = None
    """What the initiator must prove; None: no authentication."""
    mutual: ChapSecret | None = None
    """What the target proves to the initiator."""


class AttachMode(Enum):
    """How a host has a group. The modes of a group's attachments are one and the same."""

    SINGLE_WRITER = "single-writer"
    """It has the group alone."""
    MULTI_WRITER = "multi-writer"
    READ_ONLY_MANY = "read-only-many"
    """Nothing that its sessions send is written."""


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """A host that was given the group, and what it must prove."""

    host: str
    """The initiator's iSCSI name."""
    mode: AttachMode
    generation: int
    """Greater than that of every attachment of the group before it, ended ones included."""
    created: float
    """Seconds since 1970."""
    chap: ChapSecret


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    lun: int
    name: str
    uuid: UUID
    """The volume's identity for ever: its NAA and serial number come from it."""
    size: int
    created: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    name: str
    uuid: UUID
    created: float
    volumes: tuple[VolumeRecord, ...]
    """The group's volumes at that moment."""
    origin: UUID | None = None
    """The snapshot that it was received from, when it was: both have the same content."""

    @property
    def identity(self) -> UUID:
        """The same for a snapshot and everything that was received from it."""
        return self.origin or self.uuid


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What the catalogue holds of a group: all that serving it needs."""

    name: str
    uuid: UUID
    iqn: str
    created: float
    cache: CachePolicy
    clients: tuple[ClientRecord, ...]
    volumes: tuple[VolumeRecord, ...]
    next_lun: int
    """Invariant: greater than every LUN number ever used in this group (numbers are never used again)."""
    origin: str | None = None
    """``group@snapshot`` that it was cloned from."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What people and programs noted about it; the store gives them no meaning."""
    attachments: tuple[AttachmentRecord, ...] = ()
    attach_generation: int = 0
    """Invariant: not less than the generation of any attachment, now or ever (numbers are never used again)."""


@dataclass(frozen=True, slots=True)
class NewVolume:
    size: int
    name: str | None = None
    """None: ``vol<lun>``."""


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """Bytes that a volume references."""

    mapped: int
    exclusive: int
    """What only the volume references, no snapshot and no clone: removing it would free so much."""
    reclaimable: int
    """What only its snapshots reference: deleting all of them would free so much."""

    @property
    def shared(self) -> int:
        return self.mapped - self.exclusive


@dataclass(frozen=True, slots=True)
class SnapshotUsage:
    """Bytes that a snapshot references, over all its volumes."""

    mapped: int
    exclusive: int
    """What only it references: deleting it would free so much."""

    @property
    def shared(self) -> int:
        return self.mapped - self.exclusive


@dataclass(frozen=True, slots=True)
class GroupUsage:
    exclusive: int
    """What only this group references: deleting it with its snapshots would free so much."""
    reclaimable: int
    """What only its snapshots reference: deleting all of them would free so much."""
    volumes: Mapping[int, VolumeUsage]
    """By LUN."""
    snapshots: Mapping[UUID, SnapshotUsage]


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Who uses how much, at one moment between two batches."""

    taken: float
    """When it was asked for, in seconds since 1970: everything acknowledged before is counted. The moment itself is the
    next checkpoint's switch; nothing after it is counted."""
    groups: Mapping[UUID, GroupUsage]


class Volume(Protocol):
    """One logical unit's blocks. Every method is called on the loop thread."""

    @property
    def uuid(self) -> UUID: ...

    @property
    def size(self) -> int:
        """Bytes, a multiple of 4096."""

    @property
    def write_through(self) -> bool:
        """Whether every acknowledged write is durable (the group's cache policy)."""

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fill ``into`` from ``offset``; False if it would block (nothing is promised about ``into`` then).
        Raises OutOfRange, MediumError, Undecided. Unmapped grains read as zeros."""

    def read(self, offset: int, into: memoryview, done: Done) -> None:
        """As ``read_now``, but waits in a helper thread. ``into`` belongs to the store until ``done``."""

    def write(self, offset: int, data: Buffer, permit: Permit, done: Done, *, sync: bool = False) -> None:
        """Join the pool's batch of this tick. ``data`` must not change until ``done``; it is not kept after.
        ``sync``: ``done`` waits for the next shared flush round (FUA). Raises nothing: refusals go to ``done``."""

    def discard(self, offset: int, length: int, permit: Permit, done: Done, *, sync: bool = False) -> None:
        """Unmap the whole grains in the range; ragged edges are written as zeros. The range reads as zeros after."""

    def flush(self, done: Done) -> None:
        """Make every write acknowledged before this call durable (SYNCHRONIZE CACHE)."""

    def unmapped_run(self, offset: int) -> tuple[bool, int]:
        """(mapped, length in bytes of the run of grains from ``offset`` in the same state, at most 8 MiB)."""


class Group(Protocol):
    """A volume group: the unit of snapshot, clone, rollback, access and policy."""

    @property
    def record(self) -> GroupRecord: ...

    @property
    def volumes(self) -> Mapping[int, Volume]:
        """By LUN. The same Volume object stays through resize and rollback."""

    @property
    def snapshots(self) -> Mapping[str, SnapshotRecord]: ...

    def snapshot(self, name: str) -> Future[SnapshotRecord]:
        """Freeze all volumes between two writes, in one batch. Raises AlreadyExists."""

    def delete_snapshot(self, name: str) -> Future[None]: ...

    def rollback(self, name: str) -> Future[SnapshotRecord]:
        """Put every volume back to the snapshot (content and size; volumes added since are removed, removed ones
        come back). First takes the automatic snapshot that it returns, ``before-rollback-…``."""

    def add_volume(self, new: NewVolume) -> Future[VolumeRecord]: ...

    def resize(self, lun: int, size: int) -> Future[VolumeRecord]:
        """Grow. Shrinking is refused with Invalid."""

    def remove_volume(self, lun: int) -> Future[None]: ...

    def update(
        self,
        *,
        clients: Sequence[ClientRecord] | None = None,
        cache: CachePolicy | None = None,
        labels: Mapping[str, str] | None = None,
        attachments: Sequence[AttachmentRecord] | None = None,
    ) -> Future[GroupRecord]:
        """Replace what is given; the rest stays. Durable when the result is there, and everything that joined before
        is committed or dropped by then, as after ``Pool.barrier``: what fences a host relies on both."""

    def mapped_bytes(self, lun: int) -> int:
        """Bytes of the volume that are mapped (whoever shares them)."""

    def snapshot_bytes(self, name: str) -> int:
        """Bytes that the snapshot maps (whoever shares them), over all its volumes. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Bytes and counts at one moment; counters rise from open."""

    state: str
    """``serving`` or ``fail-stopped``"""
    reason: str | None
    size: int
    """What the pool may grow to: its cap, or what it holds plus what the host file system has free."""
    used: int
    """Allocated blocks, whoever references them, those waiting to be free included."""
    pending_free: int
    """Dropped, not yet reusable."""
    counters: Mapping[str, int]
    """Names like ``reads``, ``writes``, ``read_bytes``, ``flush_rounds``, ``batches``, ``checkpoints``, ``sweeps``."""


NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Pool(Protocol):
    @property
    def uuid(self) -> UUID: ...

    @property
    def groups(self) -> Mapping[str, Group]:
        """By name."""

    def create_group(
        self,
        name: str,
        *,
        iqn: str,
        volumes: Sequence[NewVolume],
        clients: Sequence[ClientRecord] = (),
        cache: CachePolicy = CachePolicy.WRITEBACK,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Future[Group]: ...

    def clone_group(
        self,
        group: str,
        snapshot: str,
        name: str,
        *,
        iqn: str,
        clients: Sequence[ClientRecord],
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Future[Group]:
        """A new group from a snapshot, writable at once; its volumes keep their LUNs and get new identities. It has
        the labels that are given, and is attached to nobody."""

    def delete_group(self, name: str) -> Future[None]:
        """With all its volumes and snapshots. Clones of it live on."""

    def barrier(self, done: Done) -> None:
        """``done`` once every write that joined before is committed or dropped: after it, nothing that was revoked
        before this call lands. Undecided if that cannot be known."""

    def checkpoint(self) -> Future[None]: ...

    def sweep(self) -> Future[int]:
        """Return unreferenced space; the result is the bytes that it freed. Takes the checkpoints that it needs."""

    def usage(self) -> Future[PoolUsage]:
        """Who uses how much. Counted when something changed since it was counted last; where counting takes long, the
        last answer serves a while, and ``taken`` tells its age."""

    def statistics(self) -> PoolStatistics: ...

    def close(self) -> Future[None]:
        """Commit, checkpoint, release the lock."""
