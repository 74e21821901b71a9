"""The product's verbs: every one idempotent, and the only place from which anything is changed.

It decides what the whole yard must decide (names are unique, which pool takes a new group, what an IQN looks like)
and asks the pool that owns the group for the rest. It knows nouns and RPC, not the libraries nor the faces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import UUID

from blockyard.errors import AlreadyExists, Invalid, NotFound, ProductError, Unavailable
from blockyard.group_move import RESERVED
from blockyard.model import (
    Client,
    ClientSpec,
    CloneRequest,
    Created,
    Group,
    GroupChange,
    Groups,
    Health,
    MoveRequest,
    NewGroup,
    Pool,
    PoolState,
    RollbackRequest,
    Session,
    Snapshot,
    Swept,
    Value,
    Volume,
    VolumeSpec,
    names,
)
from blockyard.model.attachments import Attached, Attachment, AttachRequest
from blockyard.model.moves import owner
from blockyard.model.transfers import Receive
from blockyard.moves import Moves, copies
from blockyard.rpc import calls
from blockyard.rpc.calls import Call
from blockyard.rpc.pipe import Pipe, download, upload

R = TypeVar("R", bound=Value)

PATIENCE = 10.0  # seconds that a verb waits for a pool whose worker is starting; recovery takes less
GLANCE = 5.0  # seconds that a listing waits for a worker's figures
IQN_PREFIX = "iqn.2026-01.io.blockyard"
AUTOMATIC = "before-rollback-"
"""Snapshots that a rollback takes begin so; people may not take that name."""


class PoolHandle(Protocol):
    """A pool as the daemon sees it (``daemon.pool_worker.PoolWorker``)."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def state(self) -> PoolState: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def uuid(self) -> UUID | None: ...
    @property
    def groups(self) -> Mapping[str, Group]: ...
    @property
    def arrivals(self) -> Mapping[UUID, str]: ...
    @property
    def reported(self) -> bool: ...
    @property
    def serving(self) -> bool: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def restarts(self) -> int: ...

    async def wait_settled(self, seconds: float) -> None: ...
    async def call(self, call: Call[R], *, seconds: float | None = 60) -> R: ...
    async def open_pipe(self) -> Pipe: ...


class Operations:
    def __init__(self, pools: Mapping[str, PoolHandle], *, version: str, store: str, portals: Sequence[str]) -> None:
        """``portals``: ``host:port`` as initiators are told of them."""
        self._pools = pools
        self.version = version
        self._store = store
        self.portals: tuple[str, ...] = tuple(portals)
        self.moves = Moves(pools)
        # Names are unique over all pools, so two verbs that make a group must not decide at the same time.
        self._naming = asyncio.Lock()

    # --- groups ----------------------------------------------------------------------------------------------------

    async def create_group(self, asked: NewGroup) -> Created:
        """Idempotent for the same properties. Raises AlreadyExists, Unavailable, OutOfSpace."""
        _check_distinct(asked.clients)
        async with self._naming:
            owner = await self._owner_of_name(asked.name)
            wanted = None if asked.pool is None else self._pool(asked.pool)
            if owner is not None and wanted not in (None, owner):
                raise AlreadyExists(f"group {asked.name} exists, in pool {owner.name}")
            pool = owner or wanted or await self._roomiest()
            iqn = asked.iqn or _default_iqn(pool, asked.name)
            self._check_iqn_free(iqn, asked.name)
            created = await pool.call(calls.CreateGroup(group=asked, iqn=iqn))
        return created.model_copy(update={"group": self._with_portals(created.group)})

    async def clone_group(self, source: str, asked: CloneRequest) -> Created:
        """Idempotent. The clone lives in the pool of ``source``."""
        _check_distinct(asked.clients or ())
        async with self._naming:
            pool = await self._pool_of(source)
            owner = await self._owner_of_name(asked.name)
            if owner not in (None, pool):
                raise AlreadyExists(f"group {asked.name} exists and is no clone of {source}@{asked.snapshot}")
            default = _default_iqn(pool, asked.name)
            self._check_iqn_free(asked.iqn or default, asked.name)
            created = await pool.call(
                calls.CloneGroup(
                    group=source,
                    snapshot=asked.snapshot,
                    name=asked.name,
                    iqn=asked.iqn,
                    default_iqn=default,
                    clients=asked.clients,
                    labels=asked.labels,
                )
            )
        return created.model_copy(update={"group": self._with_portals(created.group)})

    async def list_groups(self) -> Groups:
        """All that is known, groups of pools that are down included."""
        await self._wait_settled()
        shown = [self._with_portals(self._known(name)) for name in self._names()]
        counts = await self._session_counts()
        groups = [group.model_copy(update={"sessions": counts.get(group.name, group.sessions)}) for group in shown]
        sentences = (*self._unavailable(), *self.moves.sentences())
        return Groups(groups=tuple(sorted(groups, key=lambda each: each.name)), unavailable=sentences)

    async def show_group(self, name: str, *, usage: bool = False) -> Group:
        """With figures of this moment; while its pool is down, as it was reported last. ``usage``: count exclusive and
        reclaimable bytes too."""
        await self._wait_settled()
        found = owner(copies(self._pools, name))
        if found is None and copies(self._pools, name):
            return self._with_portals(self._known(name))
        pool = await self._pool_of(name)
        if not pool.serving:
            return self._with_portals(self._known(name))
        return self._with_portals(await pool.call(calls.ShowGroup(group=name, usage=usage), seconds=GLANCE))

    async def delete_group(self, name: str, *, force: bool) -> None:
        """With what an unfinished move has copied of it. Raises InUse while it moves."""
        pool = await self._pool_of(name)
        group = pool.groups[name]
        self.moves.refuse_moving(group)
        await pool.call(calls.DeleteGroup(group=name, force=force))
        for other in self._pools.values():
            if group.uuid in other.arrivals:
                await other.call(calls.AbortArrival(group=group.uuid), seconds=None)
        self.moves.wake()

    async def set_group(self, name: str, change: GroupChange) -> Group:
        return self._with_portals(await self._ask(name, calls.SetGroup(group=name, change=change)))

    async def rollback_group(self, name: str, asked: RollbackRequest) -> Snapshot:
        """The answer is the automatic snapshot of what was there before."""
        return await self._ask(name, calls.RollbackGroup(group=name, snapshot=asked.snapshot, force=asked.force))

    async def move_group(self, name: str, asked: MoveRequest) -> AsyncIterator[bytes]:
        """To another pool, with all its snapshots and identities. Lines, as ``diff_snapshots``: how far it is, then
        ``transfers.Line.moved``. Moving it to where it is changes nothing."""
        to = self._pool(asked.to)
        await self._wait_settled()
        if asked.force:
            await self._take_back(name, to)
        source = await self._pool_of(name)
        group = source.groups[name]
        return await self.moves.begin(group, source, to, asked.rate)

    async def _take_back(self, name: str, pool: PoolHandle) -> None:
        """Serve the copy in ``pool`` though it is not known whether the group has arrived where it was leaving for:
        that pool is lost."""
        if owner(copies(self._pools, name)) is None and name in pool.groups:
            await pool.call(calls.StayGroup(group=name))

    async def abort_move(self, name: str) -> None:
        """Give up a move that has not come to its cut-over, and forget what it copied. Raises NotFound, InUse."""
        await self._wait_settled()
        if copies(self._pools, name):
            source = await self._pool_of(name)
            await self.moves.abort(source.groups[name], source)
            return
        orphans = [(uuid, pool) for pool in self._pools.values() for uuid, of in pool.arrivals.items() if of == name]
        if not orphans:
            raise NotFound(f"no group is named {name}, and none of that name is being moved")
        for uuid, pool in orphans:
            await pool.call(calls.AbortArrival(group=uuid), seconds=None)

    # --- what is in a group ----------------------------------------------------------------------------------------

    async def list_volumes(self, group: str) -> tuple[Volume, ...]:
        return (await self.show_group(group)).volumes

    async def add_volume(self, group: str, asked: VolumeSpec) -> Volume:
        """Idempotent when a name is given."""
        return await self._ask(group, calls.AddVolume(group=group, volume=asked))

    async def resize_volume(self, group: str, lun: int, size: int) -> Volume:
        return await self._ask(group, calls.ResizeVolume(group=group, lun=lun, size=size))

    async def remove_volume(self, group: str, lun: int, *, force: bool) -> None:
        await self._ask(group, calls.RemoveVolume(group=group, lun=lun, force=force))

    async def list_snapshots(self, group: str) -> tuple[Snapshot, ...]:
        """Oldest first, with what each uses. Collected page by page, because a message has a bound."""
        pool = await self._pool_of(group)
        page = await pool.call(calls.ListSnapshots(group=group))
        found = list(page.snapshots)
        while page.next is not None:
            page = await pool.call(calls.ListSnapshots(group=group, after=page.next))
            found += page.snapshots
        return tuple(found)

    async def create_snapshot(self, group: str, name: str) -> Snapshot:
        """Not repeatable: the same name later would be another moment, so it raises AlreadyExists."""
        if name.startswith(AUTOMATIC):
            raise Invalid(f"snapshot names that begin with {AUTOMATIC} are kept for those that a rollback takes")
        if name.startswith(RESERVED):
            raise Invalid(f"snapshot names that begin with {RESERVED} are kept for those that a move takes")
        return await self._ask(group, calls.CreateSnapshot(group=group, name=name))

    async def delete_snapshot(self, group: str, name: str) -> None:
        await self._ask(group, calls.DeleteSnapshot(group=group, name=name))

    async def diff_snapshots(self, group: str, old: str, new: str | None) -> AsyncIterator[bytes]:
        """``transfers.Line``s, one a line of JSON; what fails later than its beginning comes as one of them."""
        pool = await self._pool_of(group)
        return await download(pool, lambda pipe: calls.DiffSnapshots(pipe=pipe, group=group, old=old, new=new))

    async def verify_snapshot(self, group: str, name: str) -> AsyncIterator[bytes]:
        """Lines, as ``diff_snapshots``."""
        pool = await self._pool_of(group)
        return await download(pool, lambda pipe: calls.VerifySnapshot(pipe=pipe, group=group, snapshot=name))

    async def send_snapshot(
        self, group: str, name: str, *, base: str | None, resume: str | None
    ) -> AsyncIterator[bytes]:
        """The stream; it breaks off when something fails, which its format shows."""
        pool = await self._pool_of(group)
        return await download(
            pool, lambda pipe: calls.SendSnapshot(pipe=pipe, group=group, snapshot=name, base=base, resume=resume)
        )

    async def receive_snapshot(self, group: str, stream: AsyncIterator[bytes], *, pool: str | None) -> Snapshot:
        """A stream of everything makes ``group``, in ``pool`` if one is named; one of changes continues it."""
        group = names.group_name(group)
        async with self._naming:
            into = await self._owner_of_name(group) or await self._pool_receiving(group)
            if pool is not None and into not in (None, self._pool(pool)):
                raise AlreadyExists(f"group {group}, or the beginning of it, is in pool {into and into.name}")
            taker = into or (self._pool(pool) if pool is not None else await self._roomiest())
            iqn = _default_iqn(taker, group)
            self._check_iqn_free(iqn, group)
        return await upload(taker, lambda pipe: calls.ReceiveSnapshot(pipe=pipe, group=group, iqn=iqn), stream)

    async def show_receive(self, group: str) -> Receive:
        return await (await self._holder_of_receive(group)).call(calls.ShowReceive(group=group))

    async def abort_receive(self, group: str) -> None:
        await (await self._holder_of_receive(group)).call(calls.AbortReceive(group=group))

    async def list_clients(self, group: str) -> tuple[Client, ...]:
        return (await self.show_group(group)).clients

    async def allow_client(self, group: str, client: ClientSpec) -> Client:
        """Adds the client, or replaces all that was said of it before."""
        return await self._ask(group, calls.AllowClient(group=group, client=client))

    async def deny_client(self, group: str, initiator: str) -> None:
        await self._ask(group, calls.DenyClient(group=group, initiator=initiator))

    # --- attachments -----------------------------------------------------------------------------------------------

    async def attach(self, group: str, host: str, asked: AttachRequest) -> Attached:
        """Give the group to ``host``. Idempotent; raises InUse while another has it, unless it is to be taken over.
        Once this has returned nothing lands of whoever lost the group."""
        _check_host(host)
        attached = await self._ask(group, calls.Attach(group=group, host=host, asked=asked))
        return attached.model_copy(update={"attachment": self._reachable(attached.attachment)})

    async def release(self, group: str, host: str) -> None:
        """Idempotent, as long as there is such a group."""
        await self._ask(group, calls.Release(group=group, host=host))

    async def list_attachments(self, group: str | None = None, host: str | None = None) -> tuple[Attachment, ...]:
        """Complete, or Unavailable: a host that does not find itself here gives up what it has mounted."""
        if group is None:
            listed: Sequence[Attachment] = await self._all_attachments()
        else:
            pool = await self._pool_of(group)
            listed = (await pool.call(calls.ListAttachments(group=group), seconds=GLANCE)).attachments
        found = [self._reachable(each) for each in listed if host is None or each.host.lower() == host.lower()]
        return tuple(sorted(found, key=lambda each: (each.group, each.host)))

    async def _all_attachments(self) -> list[Attachment]:
        """Of each group as its newest copy has them, whether that is served or between two pools at the moment."""
        await self._wait_settled()
        while True:
            newest = self._newest_copies()
            pools = list(self._pools.values())
            lists = await asyncio.gather(
                *(pool.call(calls.ListAttachments(group=None), seconds=GLANCE) for pool in pools)
            )
            now = self._newest_copies()
            # A group that moved meanwhile may have been in neither pool when that pool answered: then all over again.
            if all(now.get(name) in (pool, None) for name, pool in newest.items()):
                answers = zip(pools, lists, strict=True)
                return [each for pool, answer in answers for each in answer.attachments if now.get(each.group) is pool]

    def _newest_copies(self) -> dict[str, PoolHandle]:
        """By group."""
        return {name: max(copies(self._pools, name), key=_generation)[0] for name in self._names()}

    def _reachable(self, attachment: Attachment) -> Attachment:
        return attachment.model_copy(update={"portals": self.portals})

    # --- sessions, pools, the yard ---------------------------------------------------------------------------------

    async def list_sessions(self, group: str | None = None) -> tuple[Session, ...]:
        if group is not None:
            await self._pool_of(group)
        lists = await asyncio.gather(*(self._sessions_of(pool) for pool in self._pools.values()))
        found = [session for sessions in lists for session in sessions if group in (None, session.group)]
        return tuple(sorted(found, key=lambda session: (session.group, session.initiator)))

    async def _sessions_of(self, pool: PoolHandle) -> tuple[Session, ...]:
        """None while its worker is down: they died with it."""
        if not pool.serving:
            return ()
        try:
            return (await pool.call(calls.ListSessions(), seconds=GLANCE)).sessions
        except Unavailable:
            return ()

    async def list_pools(self) -> tuple[Pool, ...]:
        await self._wait_settled()
        return tuple(await asyncio.gather(*(self._show_pool(pool) for pool in self._pools.values())))

    async def show_pool(self, name: str) -> Pool:
        return await self._show_pool(self._pool(name))

    async def sweep_pool(self, name: str) -> Swept:
        pool = self._pool(name)
        return await pool.call(calls.SweepPool(), seconds=None)

    async def scrub_pool(self, name: str, rate: int | None) -> AsyncIterator[bytes]:
        """Lines, as ``diff_snapshots``. ``rate``: bytes a second."""
        return await download(self._pool(name), lambda pipe: calls.ScrubPool(pipe=pipe, rate=rate))

    async def health(self) -> Health:
        pools = tuple(await asyncio.gather(*(self._show_pool(pool) for pool in self._pools.values())))
        healthy = all(pool.state is PoolState.SERVING for pool in pools)
        return Health(
            status="ok" if healthy else "degraded",
            version=self.version,
            store=self._store,
            portals=self.portals,
            pools=pools,
        )

    # --- finding the owner -----------------------------------------------------------------------------------------

    def _pool(self, name: str) -> PoolHandle:
        pool = self._pools.get(name)
        if pool is None:
            raise NotFound(f"no pool is named {name}; there are: {', '.join(self._pools)}")
        return pool

    async def _wait_settled(self) -> None:
        await asyncio.gather(*(pool.wait_settled(PATIENCE) for pool in self._pools.values()))

    async def _owner_of_name(self, group: str) -> PoolHandle | None:
        """The pool that has ``group``, None if none has. Raises Unavailable if that cannot be known."""
        await self._wait_settled()
        found = copies(self._pools, group)
        serving = owner(found)
        if serving is not None:
            return serving[0]
        if found:
            where = " and ".join(pool.name for pool, _ in found)
            raise Unavailable(f"group {group} is moving from pool {where}: whether it has arrived is not known yet")
        for pool in self._pools.values():
            if not pool.reported:
                raise Unavailable(
                    f"whether {group} exists is not known: pool {pool.name} is {_why(pool)}; "
                    "repair it, or move its directory out of the store and `blockyard pool forget` it"
                )
        return None

    async def _pool_of(self, group: str) -> PoolHandle:
        pool = await self._owner_of_name(group)
        if pool is None:
            raise NotFound(self.no_group(group))
        return pool

    @staticmethod
    def no_group(name: str) -> str:
        """What is said of a group that is not there, or not for whoever asks."""
        return f"no group is named {name}; `blockyard group ls` shows those that exist"

    async def labels_of(self, group: str) -> Mapping[str, str]:
        """Of one that is between two pools, too. Raises NotFound, Unavailable."""
        await self._wait_settled()
        if not copies(self._pools, group):
            await self._pool_of(group)
        return self._known(group).labels

    async def _pool_receiving(self, group: str) -> PoolHandle | None:
        """The pool that has the beginning of a stream for ``group``."""
        for pool in self._pools.values():
            try:
                await pool.call(calls.ShowReceive(group=group))
            except NotFound:
                continue
            return pool
        return None

    async def _holder_of_receive(self, group: str) -> PoolHandle:
        await self._wait_settled()
        pool = await self._pool_receiving(group)
        if pool is None:
            raise NotFound(f"nothing is being received for group {group}")
        return pool

    async def _ask(self, group: str, call: Call[R]) -> R:
        return await (await self._pool_of(group)).call(call)

    async def _roomiest(self) -> PoolHandle:
        """The serving pool that is filled least."""
        shown = {pool.name: await self._show_pool(pool) for pool in self._pools.values()}
        serving = [pool for pool in shown.values() if pool.state is PoolState.SERVING]
        if not serving:
            raise Unavailable("no pool is serving: " + "; ".join(f"{p.name} is {_why(p)}" for p in shown.values()))
        return self._pools[min(serving, key=_fill).name]

    def _check_iqn_free(self, iqn: str, group: str) -> None:
        for pool in self._pools.values():
            for other in pool.groups.values():
                if other.iqn == iqn and other.name != group:
                    raise AlreadyExists(f"IQN {iqn} belongs to group {other.name}")

    # --- putting answers together ----------------------------------------------------------------------------------

    def _names(self) -> set[str]:
        return {name for pool in self._pools.values() for name in pool.groups}

    def _known(self, name: str) -> Group:
        """The group as it was reported last, by the pool that has it."""
        found = copies(self._pools, name)
        serving = owner(found)
        if serving is None:
            _, newest = max(found, key=_generation)
            return newest.model_copy(update={"state": PoolState.MOVING, "sessions": 0})
        pool, group = serving
        return group if pool.serving else group.model_copy(update={"state": pool.state, "sessions": 0})

    def _with_portals(self, group: Group) -> Group:
        """With what the yard knows of it, and its pool does not."""
        return group.model_copy(update={"portals": self.portals, "move": self.moves.progress(group)})

    def _unavailable(self) -> tuple[str, ...]:
        return tuple(
            f"pool {pool.name} is {_why(pool)}: its groups "
            + ("are shown as they were last" if pool.reported else "are not known")
            for pool in self._pools.values()
            if not pool.serving
        )

    async def _session_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {group: 0 for pool in self._pools.values() if pool.serving for group in pool.groups}
        for session in await self.list_sessions():
            counts[session.group] = counts.get(session.group, 0) + 1
        return counts

    async def _show_pool(self, pool: PoolHandle) -> Pool:
        if pool.serving:
            try:
                shown = await pool.call(calls.ShowPool(), seconds=GLANCE)
            except ProductError as error:
                return _pool_from_outside(pool, str(error))
            return shown.model_copy(update={"restarts": pool.restarts, "path": _path(pool)})
        return _pool_from_outside(pool, pool.reason)


def _pool_from_outside(pool: PoolHandle, reason: str | None) -> Pool:
    """What the daemon knows of a pool whose worker does not answer."""
    state = PoolState.RESTARTING if pool.state is PoolState.SERVING else pool.state
    return Pool(
        name=pool.name,
        uuid=pool.uuid,
        state=state,
        reason=reason,
        size=None,
        used=None,
        pending_free=None,
        groups=len(pool.groups),
        sessions=None,
        worker=pool.pid,
        restarts=pool.restarts,
        path=_path(pool),
    )


def _generation(copy: tuple[PoolHandle, Group]) -> int:
    return copy[1].generation


def _path(pool: PoolHandle) -> str | None:
    return None if pool.path is None else str(pool.path)


def _why(pool: PoolHandle | Pool) -> str:
    return f"{pool.state} ({pool.reason})" if pool.reason else str(pool.state)


def _fill(pool: Pool) -> tuple[float, int]:
    return ((pool.used or 0) / max(pool.size or 0, 1), pool.groups)


def _default_iqn(pool: PoolHandle, group: str) -> str:
    """Unique in the world: the pool's identity keeps two yards apart."""
    if pool.uuid is None:
        raise Unavailable(f"pool {pool.name} is {_why(pool)}")
    return names.target_iqn(f"{IQN_PREFIX}:{pool.uuid.hex[:8]}:{group}")


def _check_host(host: str) -> None:
    try:
        names.host(host)
    except ValueError as error:
        raise Invalid(str(error)) from None


def _check_distinct(clients: Sequence[ClientSpec]) -> None:
    seen: set[str] = set()
    for client in clients:
        if client.initiator in seen:
            raise Invalid(f"client {client.initiator} is named twice")
        seen.add(client.initiator)
