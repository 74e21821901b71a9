"""A target that is an object: groups with one volume each, attachments with generations, the host's side of the API.

It fences as the real one does: a take-over ends the sessions of who had the group before. Volumes hold what a disk
would: a file system or none, and files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID, uuid5

from blockyard.errors import AlreadyExists, InUse, NotFound, Unavailable, Unreachable
from blockyard.model import (
    ChapCredentials,
    CloneRequest,
    Created,
    Group,
    Groups,
    NewGroup,
    PoolState,
    Snapshot,
    SnapshotVolume,
    Volume,
)
from blockyard.model.attachments import Attached, Attachment, AttachMode, AttachRequest
from tests.blockyard.hosts.steps import Steps

T = TypeVar("T")

PORTAL = "192.0.2.1:3260"
_SPACE = UUID("7d0f6a30-5a39-4d51-9d8f-3a4f8a6f3d1b")


@dataclass
class Content:
    """What is on a volume. ``kind``: ext4, xfs, ``half-ext4`` and ``half-xfs`` (a mkfs that was cut off), ``junk``, or
    None."""

    kind: str | None = None
    filesystem_size: int = 0
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Held:
    """One attachment."""

    host: str
    mode: AttachMode
    generation: int
    secret: str
    alive: bool = True
    seen: float | None = None


@dataclass
class SimulatedGroup:
    name: str
    uuid: UUID
    size: int
    labels: dict[str, str]
    cache: str
    created: float
    origin: str | None = None
    content: Content = field(default_factory=Content)
    snapshots: dict[str, tuple[Content, int]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    generation: int = 0
    client: str | None = None
    """An initiator that is logged in without an attachment."""

    @property
    def iqn(self) -> str:
        return f"iqn.2026-01.io.blockyard:yard:{self.name}"

    @property
    def volume(self) -> Volume:
        return Volume(lun=0, name="vol0", uuid=self.uuid, size=self.size, mapped=0, created=self.created)


class SimulatedTarget:
    """``steps`` makes each verb one at which its caller can be killed."""

    def __init__(self, steps: Steps | None = None) -> None:
        self.steps = steps or Steps()
        self.groups: dict[str, SimulatedGroup] = {}
        self.reachable = True
        self.failed: set[str] = set()
        """Groups of a pool that could not be opened since the daemon was started."""
        self.asked = 0
        self.on_fenced: list[Callable[[str, str], None]] = []
        """Called with the group and the host that lost it."""
        self._clock = 1000.0

    # --- HostApi ---------------------------------------------------------------------------------------------------

    def attach(self, group: str, host: str, asked: AttachRequest) -> Attached:
        return self._verb("attach", lambda: self._attach(self._group(group), host, asked))

    def release(self, group: str, host: str) -> None:
        self._verb("release", lambda: self._drop(self._group(group), host))

    def attachments(self, group: str | None = None, host: str | None = None) -> tuple[Attachment, ...]:
        self._ask()
        if group is None and self.failed:
            raise Unavailable("pool pool-1 is failed")
        groups = list(self.groups.values()) if group is None else [self._group(group)]
        return tuple(
            self._shown(each, held)
            for each in groups
            for held in each.held.values()
            if host is None or held.host == host
        )

    def list_groups(self) -> Groups:
        self._ask()
        listed = [group for group in self.groups.values() if group.name not in self.failed]
        unavailable = ("pool pool-1 is failed: its groups are not known",) if self.failed else ()
        return Groups(groups=tuple(map(self._listed, listed)), unavailable=unavailable)

    def show_group(self, name: str) -> Group:
        self._ask()
        return self._listed(self._group(name))

    def create_group(self, asked: NewGroup) -> Created:
        def create() -> Created:
            if asked.name in self.groups:
                if self.groups[asked.name].labels != asked.labels:
                    raise AlreadyExists(f"group {asked.name} exists with other properties")
                return Created(group=self._listed(self.groups[asked.name]), created=False)
            group = self.make(asked.name, asked.volumes[0].size, asked.labels, str(asked.cache))
            return Created(group=self._listed(group), created=True)

        return self._verb("create_group", create)

    def clone_group(self, source: str, asked: CloneRequest) -> Created:
        def clone() -> Created:
            origin = self._group(source)
            if asked.snapshot not in origin.snapshots:
                raise NotFound(f"group {source} has no snapshot {asked.snapshot}")
            if asked.name in self.groups:
                return Created(group=self._listed(self.groups[asked.name]), created=False)
            content, size = origin.snapshots[asked.snapshot]
            group = self.make(asked.name, size, asked.labels, origin.cache)
            group.origin = f"{source}@{asked.snapshot}"
            group.content = Content(content.kind, content.filesystem_size, dict(content.files))
            return Created(group=self._listed(group), created=True)

        return self._verb("clone_group", clone)

    def resize_volume(self, group: str, lun: int, size: int) -> Volume:
        def resize() -> Volume:
            self._group(group).size = size
            return self._group(group).volume

        return self._verb("resize_volume", resize)

    def delete_group(self, name: str) -> None:
        def delete() -> None:
            if self._group(name).held:
                raise InUse(f"group {name} is attached")
            del self.groups[name]

        self._verb("delete_group", delete)

    def create_snapshot(self, group: str, name: str) -> Snapshot:
        def snapshot() -> Snapshot:
            found = self._group(group)
            kept = Content(found.content.kind, found.content.filesystem_size, dict(found.content.files))
            found.snapshots[name] = (kept, found.size)
            return self._snapshot(found, name)

        return self._verb("create_snapshot", snapshot)

    # --- for hosts and tests ---------------------------------------------------------------------------------------

    def make(
        self, name: str, size: int, labels: dict[str, str] | None = None, cache: str = "writeback"
    ) -> SimulatedGroup:
        self._clock += 1
        self.groups[name] = SimulatedGroup(name, uuid5(_SPACE, name), size, labels or {}, cache, self._clock)
        return self.groups[name]

    def admits(self, target: str, host: str, user: str, secret: str) -> SimulatedGroup | None:
        """The group, for a login that may pass."""
        for group in self.groups.values():
            held = group.held.get(host)
            if group.iqn == target and held is not None and (user, secret) == (host, held.secret):
                return group
        return None

    def die(self, host: str) -> None:
        """The target's pings of this host stay unanswered."""
        for group in self.groups.values():
            if host in group.held:
                group.held[host].alive = False

    # --- inside ----------------------------------------------------------------------------------------------------

    def _attach(self, group: SimulatedGroup, host: str, asked: AttachRequest) -> Attached:
        others = [held for held in group.held.values() if held.host != host]
        clash = [
            held for held in others if AttachMode.SINGLE_WRITER in (asked.mode, held.mode) or held.mode != asked.mode
        ]
        if clash and not asked.take_over:
            raise InUse(f"group {group.name} is attached to {clash[0].host}")
        if group.client is not None and not group.held:
            if not asked.take_over:
                raise InUse(f"group {group.name} has open session(s) of its client(s) {group.client}", alive=True)
            group.client = None
        for held in clash:
            self._drop(group, held.host)
        if host not in group.held:
            group.generation += 1
            secret = f"secret-{group.generation:09d}"
            group.held[host] = Held(host, asked.mode, group.generation, secret, seen=self._clock)
        held = group.held[host]
        credentials = ChapCredentials(user=host, secret=held.secret)
        return Attached(attachment=self._shown(group, held), chap=credentials)

    def _drop(self, group: SimulatedGroup, host: str) -> None:
        if group.held.pop(host, None) is not None:
            for listener in self.on_fenced:
                listener(group.iqn, host)

    def _shown(self, group: SimulatedGroup, held: Held) -> Attachment:
        return Attachment(
            group=group.name,
            host=held.host,
            mode=held.mode,
            generation=held.generation,
            target=group.iqn,
            portals=(PORTAL,),
            volumes=(group.volume,),
            created=group.created,
            sessions=0,
            alive=held.alive,
            seen=held.seen,
            chap_user=held.host,
        )

    def _listed(self, group: SimulatedGroup) -> Group:
        return Group(
            name=group.name,
            uuid=group.uuid,
            iqn=group.iqn,
            pool="pool-0",
            state=PoolState.SERVING,
            created=group.created,
            cache=group.cache,  # type: ignore[arg-type]
            origin=group.origin,
            volumes=(group.volume,),
            snapshots=tuple(self._snapshot(group, name) for name in group.snapshots),
            snapshot_count=len(group.snapshots),
            clients=(),
            sessions=0,
            portals=(PORTAL,),
            labels=group.labels,
        )

    def _snapshot(self, group: SimulatedGroup, name: str) -> Snapshot:
        volumes = (SnapshotVolume(lun=0, name="vol0", size=group.snapshots[name][1]),)
        return Snapshot(name=name, uuid=uuid5(group.uuid, name), created=group.created, volumes=volumes)

    def _group(self, name: str) -> SimulatedGroup:
        if name not in self.groups:
            raise NotFound(f"there is no group {name}")
        return self.groups[name]

    def _ask(self) -> None:
        self.steps.look()
        self.asked += 1
        if not self.reachable:
            raise Unreachable("no daemon answers")

    def _verb(self, name: str, effect: Callable[[], T]) -> T:
        self._ask()
        return self.steps.do(name, effect)
