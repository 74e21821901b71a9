"""What a worker does when the daemon asks: each verb on the pool, then on the targets that show it.

Not the policy of names and pools (``operations``), not the life of the process (``process``). Verbs that change
something run one after another; each is idempotent, so that a caller who missed an answer may ask again. Invariant:
the daemon hears of a change (``GroupChanged``, ``GroupRemoved``) before it hears the answer of the verb.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from blockstore import api
from blockyard.errors import AlreadyExists, InUse, Invalid, NotFound, Unavailable
from blockyard.model import (
    Client,
    Created,
    Group,
    Pool,
    PoolState,
    Session,
    Snapshot,
    SnapshotPage,
    Swept,
    Value,
    Volume,
)
from blockyard.model.attachments import Attached
from blockyard.rpc import calls
from blockyard.rpc.calls import GroupChanged, GroupRemoved, Nothing, Notice, Sessions
from blockyard.worker.attachments import Attachments
from blockyard.worker.moves import MOVES, MoveVerbs
from blockyard.worker.records import (
    client_model,
    client_record,
    differences,
    group_model,
    product_errors,
    same_clients,
    snapshot_model,
    volume_model,
    wait_for_store,
)
from blockyard.worker.transfers import TRANSFERS, Transfers
from blockyard.worker.usage import UsageFigures, snapshot_page, some_names


class OpenSession(Protocol):
    """What the targets tell of a session."""

    @property
    def target(self) -> str: ...
    @property
    def initiator(self) -> str: ...
    @property
    def initiator_alias(self) -> str: ...
    @property
    def isid(self) -> str: ...
    @property
    def tsih(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def connected(self) -> float: ...
    @property
    def auth(self) -> str: ...
    @property
    def digests(self) -> str: ...
    @property
    def commands(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def write_bytes(self) -> int: ...


class TargetTable(Protocol):
    """The targets of this worker (``target.node.Targets``)."""

    def put(self, group: api.Group) -> None: ...
    async def remove(self, iqn: str) -> None: ...
    def stand_down(self, iqn: str) -> None: ...
    def sessions(self) -> Sequence[OpenSession]: ...
    def fenced(self, iqn: str, keep: Collection[str]) -> AbstractContextManager[None]: ...
    def seen(self, iqn: str, host: str) -> float | None: ...


class Verbs:
    def __init__(self, name: str, pool: api.Pool, targets: TargetTable, notify: Callable[[Notice], object]) -> None:
        self._name = name
        self._pool = pool
        self._targets = targets
        self._notify = notify
        self._usage = UsageFigures(pool)
        self._changing = asyncio.Lock()
        self._attachments = Attachments(pool, targets, self._show_target)
        self.transfers = Transfers(pool, self._check_receivable, self._commit_received)
        self.moves = MoveVerbs(pool, targets, notify, self._resume)
        self.paused: set[str] = set()
        """IQNs that take no connection for a moment: one that arrives is closed, so that its initiator retries
        (an unknown target would be answered 02/03, which ends Linux's retries for good)."""

    async def serve(self, call: calls.Call[Any]) -> Value:
        if type(call) in AT_ONCE:
            return await AT_ONCE[type(call)](self, call)
        async with self._changing:
            if type(call) in MOVES:
                return await MOVES[type(call)](self.moves, call)
            return await CHANGING[type(call)](self, call)

    # --- groups ----------------------------------------------------------------------------------------------------

    def project(self) -> tuple[Group, ...]:
        """Show every group of the pool as a target; what the daemon is told of them."""
        for group in self._pool.groups.values():
            self._put_target(group)
        return tuple(self._model(group) for group in self._pool.groups.values())

    async def create_group(self, call: calls.CreateGroup) -> Created:
        asked = call.group
        there = self._pool.groups.get(asked.name)
        if there is not None:
            found = differences(there.record, asked, asked.iqn)
            if found:
                raise AlreadyExists(f"group {asked.name} exists with {', '.join(found)}")
            return Created(group=self._model(there), created=False)
        with product_errors():
            future = self._pool.create_group(
                asked.name,
                iqn=call.iqn,
                volumes=[api.NewVolume(volume.size, volume.name) for volume in asked.volumes],
                clients=[client_record(client) for client in asked.clients],
                cache=api.CachePolicy(asked.cache.value),
                labels=asked.labels,
            )
        return Created(group=self._show_target(await wait_for_store(future)), created=True)

    async def clone_group(self, call: calls.CloneGroup) -> Created:
        source = self._group(call.group)
        self._snapshot(source, call.snapshot)
        origin = f"{call.group}@{call.snapshot}"
        there = self._pool.groups.get(call.name)
        if there is not None:
            self._check_same_clone(there.record, origin, call)
            return Created(group=self._model(there), created=False)
        clients = source.record.clients if call.clients is None else [client_record(each) for each in call.clients]
        with product_errors():
            future = self._pool.clone_group(
                call.group,
                call.snapshot,
                call.name,
                iqn=call.iqn or call.default_iqn,
                clients=clients,
                labels=call.labels,
            )
        return Created(group=self._show_target(await wait_for_store(future)), created=True)

    def _check_same_clone(self, record: api.GroupRecord, origin: str, call: calls.CloneGroup) -> None:
        if record.origin != origin:
            raise AlreadyExists(f"group {record.name} exists and is no clone of {origin}")
        if call.clients is not None and not same_clients(record, call.clients):
            raise AlreadyExists(f"group {record.name} exists with other clients or secrets")
        if dict(record.labels) != call.labels:
            raise AlreadyExists(f"group {record.name} exists with other labels")
        if call.iqn not in (None, record.iqn):
            raise AlreadyExists(f"group {record.name} exists with IQN {record.iqn} instead of {call.iqn}")

    async def delete_group(self, call: calls.DeleteGroup) -> Nothing:
        group = self._group(call.group)
        self._refuse_use(group, call.force, "deleting it")
        await self._targets.remove(group.record.iqn)
        try:
            with product_errors():
                future = self._pool.delete_group(call.group)
            await wait_for_store(future)
        finally:
            if call.group in self._pool.groups:  # refused: it is served on
                self._targets.put(group)
        self._notify(GroupRemoved(name=call.group))
        return Nothing()

    async def rollback_group(self, call: calls.RollbackGroup) -> Snapshot:
        group = self._group(call.group)
        self._snapshot(group, call.snapshot)
        self._refuse_use(group, call.force, "rolling back under a mounted file system would corrupt it")
        iqn = group.record.iqn
        self.paused.add(iqn)
        try:
            await self._targets.remove(iqn)
            with product_errors():
                future = group.rollback(call.snapshot)
            automatic = await wait_for_store(future)
        finally:
            self._resume(group)
            self.paused.discard(iqn)
        return snapshot_model(automatic)

    async def set_group(self, call: calls.SetGroup) -> Group:
        group = self._group(call.group)
        cache, labels = call.change.cache, call.change.labels
        with product_errors():
            future = group.update(cache=api.CachePolicy(cache.value) if cache else None, labels=labels)
        await wait_for_store(future)
        return self._show_target(group)

    async def show_group(self, call: calls.ShowGroup) -> Group:
        group = self._any_group(call.group)
        usage = await self._usage.refresh() if call.usage else None
        return group_model(group, self._name, self._count_sessions(group.record.iqn), usage)

    # --- volumes, snapshots, clients -------------------------------------------------------------------------------

    async def add_volume(self, call: calls.AddVolume) -> Volume:
        group = self._group(call.group)
        asked = call.volume
        there = next((each for each in group.record.volumes if each.name == asked.name), None)
        if there is not None:
            if there.size != asked.size:
                raise AlreadyExists(f"volume {asked.name} exists with {there.size} bytes instead of {asked.size}")
            return volume_model(group, there)
        with product_errors():
            future = group.add_volume(api.NewVolume(asked.size, asked.name))
        record = await wait_for_store(future)
        self._show_target(group)
        return volume_model(group, record)

    async def resize_volume(self, call: calls.ResizeVolume) -> Volume:
        group = self._group(call.group)
        there = self._volume(group, call.lun)
        if there.size == call.size:
            return volume_model(group, there)
        if call.size < there.size:
            raise Invalid(f"volume {call.group}/{call.lun} has {there.size} bytes; {call.size} would shrink it, "
                          "which would cut the file system off: volumes only grow")  # fmt: skip
        with product_errors():
            future = group.resize(call.lun, call.size)
        record = await wait_for_store(future)
        self._show_target(group)
        return volume_model(group, record)

    async def remove_volume(self, call: calls.RemoveVolume) -> Nothing:
        group = self._group(call.group)
        self._volume(group, call.lun)
        self._refuse_use(group, call.force, f"removing LUN {call.lun}")
        with product_errors():
            future = group.remove_volume(call.lun)
        await wait_for_store(future)
        self._show_target(group)
        return Nothing()

    async def create_snapshot(self, call: calls.CreateSnapshot) -> Snapshot:
        group = self._group(call.group)
        with product_errors():
            future = group.snapshot(call.name)
        record = await wait_for_store(future)
        self._notify(GroupChanged(group=self._model(group)))
        return snapshot_model(record)

    async def list_snapshots(self, call: calls.ListSnapshots) -> SnapshotPage:
        self._group(call.group)
        usage = self._usage.latest if call.after else await self._usage.refresh()
        return snapshot_page(self._group(call.group), call.after, usage)

    async def delete_snapshot(self, call: calls.DeleteSnapshot) -> Nothing:
        group = self._group(call.group)
        self._snapshot(group, call.name)
        with product_errors():
            future = group.delete_snapshot(call.name)
        await wait_for_store(future)
        self._notify(GroupChanged(group=self._model(group)))
        return Nothing()

    async def allow_client(self, call: calls.AllowClient) -> Client:
        group = self._group(call.group)
        asked = client_record(call.client)
        others = [client for client in group.record.clients if client.initiator != asked.initiator]
        if asked not in group.record.clients:
            await self._set_clients(group, [*others, asked])
        return client_model(asked)

    async def deny_client(self, call: calls.DenyClient) -> Nothing:
        group = self._group(call.group)
        clients = group.record.clients
        others = [client for client in clients if client.initiator != call.initiator]
        if len(others) == len(clients):
            allowed = ", ".join(client.initiator for client in clients) or "nobody"
            raise NotFound(f"group {call.group} has no client {call.initiator}; allowed are: {allowed}")
        await self._set_clients(group, others)
        return Nothing()

    async def _set_clients(self, group: api.Group, clients: Sequence[api.ClientRecord]) -> None:
        with product_errors():
            future = group.update(clients=clients)
        await wait_for_store(future)
        self._show_target(group)

    # --- attachments -----------------------------------------------------------------------------------------------

    async def attach(self, call: calls.Attach) -> Attached:
        group = self._group(call.group)
        with self._unless_leaving(call.group):
            return await self._attachments.attach(group, call.host, call.asked)

    async def release(self, call: calls.Release) -> Nothing:
        group = self._group(call.group)
        with self._unless_leaving(call.group):
            await self._attachments.release(group, call.host)
        return Nothing()

    @contextmanager
    def _unless_leaving(self, name: str) -> Iterator[None]:
        """What the store refuses because the group has left meanwhile is Unavailable: nobody else holds it."""
        try:
            yield
        except InUse:
            self._group(name)
            raise

    async def list_attachments(self, call: calls.ListAttachments) -> calls.Attachments:
        groups = list(self._pool.groups.values()) if call.group is None else [self._group(call.group)]
        return calls.Attachments(attachments=self._attachments.show(groups))

    # --- sessions, the pool ----------------------------------------------------------------------------------------

    async def list_sessions(self, call: calls.ListSessions) -> Sessions:
        names = {group.record.iqn: name for name, group in self._pool.groups.items()}
        return Sessions(
            sessions=tuple(
                Session(
                    group=names.get(each.target, ""),
                    **{field: getattr(each, field) for field in Session.model_fields if field != "group"},
                )
                for each in self._targets.sessions()
            )
        )

    async def show_pool(self, call: calls.ShowPool) -> Pool:
        statistics = self._pool.statistics()
        return Pool(
            name=self._name,
            uuid=self._pool.uuid,
            state=PoolState(statistics.state),
            reason=statistics.reason,
            size=statistics.size,
            used=statistics.used,
            pending_free=statistics.pending_free,
            groups=len(self._pool.groups),
            sessions=len(self._targets.sessions()),
            worker=os.getpid(),
            restarts=0,
            data=statistics.data,
            counters=dict(statistics.counters),
        )

    async def sweep_pool(self, call: calls.SweepPool) -> Swept:
        with product_errors():
            future = self._pool.sweep()
        return Swept(freed=await wait_for_store(future))

    # --- streams ---------------------------------------------------------------------------------------------------

    async def transfer(self, call: calls.Call[Any]) -> Value:
        return await self.transfers.serve(call)

    async def list_chain(self, call: calls.ListChain) -> Value:
        return await self.moves.list_chain(call)

    def _check_receivable(self, name: str) -> None:
        group = self._pool.groups.get(name)
        count = 0 if group is None else self._count_sessions(group.record.iqn)
        if count:
            raise InUse(
                f"group {name} has {count} open session(s): receiving a snapshot changes its volumes under them; "
                "log out first"
            )
        if group is not None and group.record.attachments:
            raise InUse(
                f"group {name} is attached to {_hosts(group)}: receiving a snapshot changes its volumes under it; "
                "release it first"
            )

    async def _commit_received(self, name: str, commit: Callable[[], Future[api.SnapshotRecord]]) -> Snapshot:
        """Make visible what was received. No session may see its volume change, so none is there meanwhile."""
        async with self._changing:
            self._check_receivable(name)
            there = self._pool.groups.get(name)
            if there is not None:
                self.paused.add(there.record.iqn)
                await self._targets.remove(there.record.iqn)
            try:
                with product_errors():
                    future = commit()
                return snapshot_model(await wait_for_store(future))
            finally:
                group = self._pool.groups.get(name)
                if group is not None:
                    self._show_target(group)
                    self.paused.discard(group.record.iqn)

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _group(self, name: str) -> api.Group:
        """Raises Unavailable for one that has left for another pool."""
        group = self._any_group(name)
        if group.record.leaving is not None:
            raise Unavailable(f"group {name} is moving to another pool: repeat in a moment")
        return group

    def _any_group(self, name: str) -> api.Group:
        group = self._pool.groups.get(name)
        if group is None:
            raise NotFound(f"no group is named {name}")
        return group

    def _snapshot(self, group: api.Group, name: str) -> api.SnapshotRecord:
        record = group.snapshots.get(name)
        if record is None:
            raise NotFound(f"group {group.record.name} has no snapshot {name}; it has: {some_names(group.snapshots)}")
        return record

    def _volume(self, group: api.Group, lun: int) -> api.VolumeRecord:
        for record in group.record.volumes:
            if record.lun == lun:
                return record
        there = ", ".join(str(record.lun) for record in group.record.volumes) or "none"
        raise NotFound(f"group {group.record.name} has no LUN {lun}; it has: {there}")

    def _count_sessions(self, iqn: str) -> int:
        return sum(session.target == iqn for session in self._targets.sessions())

    def _refuse_use(self, group: api.Group, force: bool, why: str) -> None:
        """A host that has the group attached may have it mounted though it has no session: it is reconnecting, after
        a restart of this worker for instance."""
        if force:
            return
        count = self._count_sessions(group.record.iqn)
        if count:
            raise InUse(f"group {group.record.name} has {count} open session(s): {why}; log out first, or use --force")
        if group.record.attachments:
            hosts = _hosts(group)
            raise InUse(f"group {group.record.name} is attached to {hosts}: {why}; release it first, or use --force")

    def _model(self, group: api.Group) -> Group:
        return group_model(group, self._name, self._count_sessions(group.record.iqn))

    def _show_target(self, group: api.Group) -> Group:
        """Bring the target up to the group's record, and tell the daemon."""
        self._put_target(group)
        model = self._model(group)
        self._notify(GroupChanged(group=model))
        return model

    def _put_target(self, group: api.Group) -> None:
        """The target of a group that has left stays, for those who come: without volumes, answering "try again"."""
        self._targets.put(group)
        if group.record.leaving is not None:
            self._targets.stand_down(group.record.iqn)

    def _resume(self, group: api.Group) -> Group:
        """As ``_show_target``, after sessions were ended without their hosts' doing."""
        self._attachments.resumed(group)
        return self._show_target(group)


def _hosts(group: api.Group) -> str:
    return ", ".join(attachment.host for attachment in group.record.attachments)


Handler = Callable[[Verbs, Any], Awaitable[Value]]

AT_ONCE: dict[type[calls.Call[Any]], Handler] = {
    calls.ShowGroup: Verbs.show_group,
    calls.ListSnapshots: Verbs.list_snapshots,
    calls.ListSessions: Verbs.list_sessions,
    calls.ShowPool: Verbs.show_pool,
    calls.SweepPool: Verbs.sweep_pool,  # changes no record, and may take long
    calls.ListChain: Verbs.list_chain,
    calls.ListAttachments: Verbs.list_attachments,
    # These two have a lock of their own: taking a group over must not wait until another is drained.
    calls.Attach: Verbs.attach,
    calls.Release: Verbs.release,
    **dict.fromkeys(TRANSFERS, Verbs.transfer),  # so may these; a receive changes a group only at its end
}

CHANGING: dict[type[calls.Call[Any]], Handler] = {
    calls.CreateGroup: Verbs.create_group,
    calls.CloneGroup: Verbs.clone_group,
    calls.DeleteGroup: Verbs.delete_group,
    calls.RollbackGroup: Verbs.rollback_group,
    calls.SetGroup: Verbs.set_group,
    calls.AddVolume: Verbs.add_volume,
    calls.ResizeVolume: Verbs.resize_volume,
    calls.RemoveVolume: Verbs.remove_volume,
    calls.CreateSnapshot: Verbs.create_snapshot,
    calls.DeleteSnapshot: Verbs.delete_snapshot,
    calls.AllowClient: Verbs.allow_client,
    calls.DenyClient: Verbs.deny_client,
}
