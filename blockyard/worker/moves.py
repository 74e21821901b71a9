"""A group leaves this pool, or arrives in it: the worker's part of a move, each verb for one of the two pools.

Not the order of the steps, nor the decision who serves (``blockyard.moves``). Records of groups and snapshots pass
through the daemon as the catalogues wrote them, secrets included; it reads nothing in them. Invariant: a group that has
left is shown by no target and changed by nobody here until it stays or is forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

from blockstore import api
from blockstore.arrival import (
    abort_arrival,
    arrived_snapshots,
    begin_arrival,
    commit_arrival,
    prune_arrival,
)
from blockstore.catalog import GROUP, SNAPSHOT, decode_group, decode_snapshot
from blockstore.group import chain_digest
from blockstore.pool import EnginePool
from blockstore.staging import Arrival, arrivals, find_arrival, find_staged
from blockyard.errors import Busy, Invalid, NotFound
from blockyard.model import Group, Value
from blockyard.model.moves import ArrivalState, Arriving, ChainLink, ChainPage, Departed
from blockyard.rpc import calls
from blockyard.rpc.calls import ArrivalBegun, ArrivalEnded, GroupRemoved, Nothing, Notice
from blockyard.worker.records import product_errors, wait_for_store
from blockyard.worker.usage import PAGE, place_behind, place_of


class Targets(Protocol):
    """The targets of this worker, as far as a move is concerned."""

    def put(self, group: api.Group) -> None: ...
    async def remove(self, iqn: str) -> None: ...
    def stand_down(self, iqn: str) -> None: ...


class MoveVerbs:
    """``show`` brings a group's target up to its record (one that has left is not served), and tells the daemon."""

    def __init__(
        self, pool: api.Pool, targets: Targets, notify: Callable[[Notice], object], show: Callable[[api.Group], Group]
    ) -> None:
        self._pool = pool
        self._targets = targets
        self._notify = notify
        self._show = show

    @property
    def _engine(self) -> EnginePool:
        if not isinstance(self._pool, EnginePool):
            raise Invalid("this kind of pool has no snapshot streams: its groups cannot move")
        return self._pool

    def arriving(self) -> tuple[Arriving, ...]:
        """Groups on their way into this pool."""
        if not isinstance(self._pool, EnginePool):
            return ()
        return tuple(Arriving(group=each.group, name=each.name) for each in arrivals(self._pool.catalog))

    # --- where it leaves -------------------------------------------------------------------------------------------

    async def list_chain(self, call: calls.ListChain) -> ChainPage:
        group = self._group(call.group)
        names = list(group.snapshots)
        first = 0 if call.after is None else place_behind(group, names, call.after)
        links = tuple(self._link(group.snapshots[name]) for name in names[first : first + PAGE])
        return ChainPage(links=links, next=None if first + PAGE >= len(names) else place_of(group, links[-1].name))

    def _link(self, record: api.SnapshotRecord) -> ChainLink:
        return ChainLink(
            name=record.name,
            uuid=record.uuid,
            identity=record.identity,
            sizes={volume.lun: volume.size for volume in record.volumes},
            record=self._engine.catalog.raw[SNAPSHOT, record.uuid.hex].decode(),
        )

    async def leave(self, call: calls.LeaveGroup) -> Departed:
        """Sessions end first: what they are writing is committed before the last snapshot, or never lands."""
        group = self._group(call.group)
        if chain_digest(record.uuid for record in group.snapshots.values()) != call.chain:
            raise Busy(f"snapshots of group {call.group} were taken or deleted meanwhile")  # its sessions stay for that
        self._targets.stand_down(group.record.iqn)
        try:
            with product_errors():
                future = group.leave(call.to, call.snapshot, call.chain)
            departure = await wait_for_store(future)
        except BaseException:
            if group.record.leaving is None:
                self._show(group)
            raise
        self._show(group)
        record = self._engine.catalog.raw[GROUP, departure.group.uuid.hex].decode()
        return Departed(record=record, generation=departure.group.generation, last=self._link(departure.last))

    async def stay(self, call: calls.StayGroup) -> Group:
        group = self._group(call.group)
        with product_errors():
            future = group.stay()
        await wait_for_store(future)
        return self._show(group)

    async def retire(self, call: calls.RetireGroup) -> Nothing:
        self._targets.stand_down(self._group(call.group).record.iqn)
        return Nothing()

    async def forget(self, call: calls.ForgetGroup) -> Nothing:
        group = next((each for each in self._pool.groups.values() if each.record.uuid == call.group), None)
        if group is None:
            return Nothing()
        name, iqn = group.record.name, group.record.iqn
        if group.record.leaving is None:
            raise Invalid(f"group {name} has not left this pool")
        with product_errors():
            future = self._pool.delete_group(name)
        await wait_for_store(future)
        await self._targets.remove(iqn)
        self._notify(GroupRemoved(name=name))
        return Nothing()

    # --- where it arrives ------------------------------------------------------------------------------------------

    async def begin(self, call: calls.BeginArrival) -> ArrivalState:
        arrival = Arrival(call.group, call.name, call.iqn, call.source)
        with product_errors():
            future = begin_arrival(self._engine, arrival)
        await wait_for_store(future)
        self._notify(ArrivalBegun(arrival=Arriving(group=call.group, name=call.name)))
        return self._state(call.group)

    async def prune(self, call: calls.PruneArrival) -> Nothing:
        with product_errors():
            future = prune_arrival(self._engine, call.group, call.snapshots)
        await wait_for_store(future)
        return Nothing()

    async def commit(self, call: calls.CommitArrival) -> Group:
        with product_errors():
            record = decode_group(call.record.encode()).record
            serving = replace(record, generation=call.generation, leaving=None)
            future = commit_arrival(self._engine, serving, call.last, call.drop)
        record = await wait_for_store(future)
        self._notify(ArrivalEnded(group=call.group))
        return self._show(self._pool.groups[record.name])

    async def abort(self, call: calls.AbortArrival) -> Nothing:
        with product_errors():
            future = abort_arrival(self._engine, call.group)
        await wait_for_store(future)
        self._notify(ArrivalEnded(group=call.group))
        return Nothing()

    def _state(self, group: UUID) -> ArrivalState:
        """How far it has come. Raises NotFound."""
        with product_errors():
            snapshots = arrived_snapshots(self._engine, group)
        arrival = find_arrival(self._engine.catalog, group)
        half = None if arrival is None else find_staged(self._engine.catalog, arrival.staging)
        return ArrivalState(
            snapshots=snapshots,
            digest=chain_digest(snapshots),
            staged=None if half is None else half.head.to.identity,
            staged_base=None if half is None or half.head.base is None else half.head.base.identity,
            token=None if half is None else half.token,
        )

    def _group(self, name: str) -> api.Group:
        group = self._pool.groups.get(name)
        if group is None:
            raise NotFound(f"no group is named {name}")
        return group


def snapshot_record(text: str) -> api.SnapshotRecord:
    """Of ``ChainLink.record``. Raises Damaged."""
    with product_errors():
        return decode_snapshot(text.encode()).record


Handler = Callable[[MoveVerbs, Any], Awaitable[Value]]

MOVES: Mapping[type[calls.Call[Any]], Handler] = {
    calls.LeaveGroup: MoveVerbs.leave,
    calls.StayGroup: MoveVerbs.stay,
    calls.RetireGroup: MoveVerbs.retire,
    calls.ForgetGroup: MoveVerbs.forget,
    calls.BeginArrival: MoveVerbs.begin,
    calls.PruneArrival: MoveVerbs.prune,
    calls.CommitArrival: MoveVerbs.commit,
    calls.AbortArrival: MoveVerbs.abort,
}
"""Those that change something; ``ListChain`` does not, and ``ReceiveArrival`` is a transfer."""
