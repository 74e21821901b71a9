"""Every move of the yard, and the ends of those that something interrupted.

Two pools have a copy of a group while it moves; ``model.moves.owner`` says which is the group. What a crash leaves is
ended here when the pools have said what they hold: a copy that has left is deleted where the group has arrived, and
serves again where it has not (docs/decisions/moving-a-group.md has the states and what each crash leaves).

Not the steps of a move (``group_move``). Invariants: one move a group at a time; a copy that has left stays again only
when the other pool has said, since it was opened last, that it has not got the group, and nobody is moving it; a copy
that has not left is never deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Protocol, TypeVar
from uuid import UUID

from blockyard.errors import Internal, InUse, NotFound, OutOfSpace, ProductError, Unavailable
from blockyard.group_move import GroupMove, PoolHandle, give_up
from blockyard.model import Group, Move, MovePhase, PoolState
from blockyard.model.moves import MoveReport, owner
from blockyard.model.transfers import Failure, Line
from blockyard.rpc import calls

log = logging.getLogger("blockyard.moves")

RETRY_SECONDS = 5.0  # until an interrupted move is looked at again, when that could not be ended; guessed
TELL_SECONDS = 0.5  # between two lines of progress
CLOSE_SECONDS = 3.0  # that the daemon's end waits for a cut-over; a cut-over takes less than one


class Moves:
    """Every move of the yard, and the ends of those that something interrupted."""

    def __init__(self, pools: Mapping[str, PoolHandle]) -> None:
        self._pools = pools
        self._running: dict[UUID, tuple[GroupMove, asyncio.Task[MoveReport]]] = {}
        self._due = asyncio.Event()
        self._retired: set[tuple[str, UUID]] = set()  # pool and group: copies that were told not to serve
        self._closing = False

    # --- one move --------------------------------------------------------------------------------------------------

    def progress(self, group: Group) -> Move | None:
        """Of the group's move, if there is one, or the beginning of one."""
        running = self._running.get(group.uuid)
        if running is not None:
            return running[0].progress()
        for pool in self._pools.values():
            if group.uuid in pool.arrivals:
                return Move(to=pool.name, phase=MovePhase.UNFINISHED)
        return None

    def refuse_moving(self, group: Group) -> None:
        """Raises InUse."""
        running = self._running.get(group.uuid)
        if running is not None:
            raise InUse(f"group {group.name} is being moved to {running[0].to.name}")

    async def begin(self, group: Group, source: PoolHandle, to: PoolHandle, rate: int | None) -> AsyncIterator[bytes]:
        """``transfers.Line``s, one a line of JSON, until it is done. Whoever stops to read gives it up, unless the
        cut-over has begun. Raises what refuses it at once."""
        self.refuse_moving(group)
        if source is to:
            return _nothing_to_do(group, source)
        await self._check(group, source, to)
        self.refuse_moving(group)  # another may have begun meanwhile
        log.info("group %s begins to move from %s to %s", group.name, source.name, to.name)
        move = GroupMove(group, source, to, rate, self.reached)
        task = asyncio.ensure_future(self._run(move))
        self._running[group.uuid] = move, task
        task.add_done_callback(lambda _: self._ended(group.uuid))
        return self._watch(move, task)

    async def reached(self, move: GroupMove, phase: MovePhase) -> None:
        """A move is about to enter a phase."""
        if phase is not move.state.phase:
            log.info("group %s, %s to %s: %s", move.group.name, move.source.name, move.to.name, phase)

    async def _check(self, group: Group, source: PoolHandle, to: PoolHandle) -> None:
        for pool in (source, to):
            if not pool.serving:
                raise Unavailable(f"pool {pool.name} is {pool.state}: a move needs both pools")
        for pool in self._pools.values():
            if pool is not to and group.uuid in pool.arrivals:
                raise InUse(f"an unfinished move of group {group.name} to {pool.name} is there: go on with that, or "
                            f"forget it with `blockyard group move {group.name} --abort`")  # fmt: skip
        if group.name in to.groups:  # its copy from before, when it left that pool
            await to.call(calls.ForgetGroup(group=group.uuid), seconds=None)
        if group.uuid in to.arrivals:
            return  # part of it is there, and is counted among what is used
        shown = await source.call(calls.ShowGroup(group=group.name, usage=True))
        pool_shown = await to.call(calls.ShowPool())
        if pool_shown.state is not PoolState.SERVING:
            raise Unavailable(f"pool {to.name} is {pool_shown.state}: {pool_shown.reason}")
        needed = sum(volume.mapped for volume in shown.volumes) + (shown.reclaimable or 0)
        free = (pool_shown.size or 0) - (pool_shown.used or 0)
        if needed > free:
            raise OutOfSpace(f"group {group.name} has {needed} bytes mapped, pool {to.name} {free} bytes free")

    async def _run(self, move: GroupMove) -> MoveReport:
        try:
            return await move.run()
        except (asyncio.CancelledError, OutOfSpace, NotFound):
            # Given up by its user, or the pool is full, or the group was deleted: what was copied is of no use.
            if move.can_be_given_up and not self._closing:
                await move.give_up()
            raise
        finally:
            self._due.set()  # whatever is half done is looked after

    def _ended(self, group: UUID) -> None:
        _, task = self._running.pop(group)
        if not task.cancelled():
            task.exception()  # it is told to whoever watches, if anybody does
        self._due.set()

    async def _watch(self, move: GroupMove, task: asyncio.Task[MoveReport]) -> AsyncIterator[bytes]:
        try:
            while not (await asyncio.wait({task}, timeout=TELL_SECONDS))[0]:
                yield _line(Line(move=move.progress()))
            yield _line(await self._outcome(move, task))
        finally:
            if not task.done() and move.can_be_given_up:
                task.cancel()

    async def _outcome(self, move: GroupMove, task: asyncio.Task[MoveReport]) -> Line:
        if task.cancelled() and self._closing:
            return _failure(Unavailable(f"the daemon is stopping{self._what_now(move)}"))
        if task.cancelled():
            return _failure(InUse(f"the move of group {move.group.name} was given up"))
        error = task.exception()
        if error is None:
            return Line(moved=task.result())
        if isinstance(error, ProductError):
            return _failure(type(error)(f"{error}{self._what_now(move)}"))
        log.error("the move of group %s failed", move.group.name, exc_info=error)
        return _failure(Internal(f"the move failed ({type(error).__name__}): the daemon's log has the details"))

    def _what_now(self, move: GroupMove) -> str:
        if not move.can_be_given_up:
            return "; the group is served again as soon as both pools have said what they hold"
        if move.group.uuid in move.to.arrivals:
            return "; what was copied is kept: move it again to go on, or forget that with --abort"
        return ""

    async def abort(self, group: Group, source: PoolHandle) -> None:
        """Give up the group's move, or forget the beginning of one. Raises NotFound, InUse in the cut-over."""
        running = self._running.get(group.uuid)
        if running is not None:
            move, task = running
            if not move.can_be_given_up:
                raise InUse(f"group {group.name} is changing over to {move.to.name}: that ends in a moment")
            task.cancel()
            await asyncio.wait({task})
            return
        half = [pool for pool in self._pools.values() if group.uuid in pool.arrivals]
        if not half:
            raise NotFound(f"group {group.name} is not being moved")
        for pool in half:
            await give_up(group, source, pool)

    async def close(self) -> None:
        """Wait for cut-overs that are under way; what is being copied can be gone on with."""
        self._closing = True
        tasks = [task for _, task in self._running.values()]
        for move, task in self._running.values():
            if move.can_be_given_up:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    # --- what was interrupted --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A pool has reported what it holds: something that was not known may be now."""
        self._due.set()

    async def run(self) -> None:
        """End what was interrupted, whenever more is known. Until cancelled."""
        done = True
        while True:
            try:
                await asyncio.wait_for(self._due.wait(), None if done else RETRY_SECONDS)
            except TimeoutError:
                log.debug("an interrupted move is looked at again")
            self._due.clear()
            done = await self.settle()

    async def settle(self) -> bool:
        """Look at every copy that is not the group (any more), and do what is known to be right. False if something has
        to be tried again though nothing is reported meanwhile."""
        done = True
        for pool, group in [*self._others(), *self._restored()]:
            try:
                await self._settle(pool, group)
            except ProductError as error:
                log.warning("group %s in %s: an interrupted move has to wait: %s", group.name, pool.name, error)
                done = False
        return done

    def _others(self) -> list[tuple[PoolHandle, Group]]:
        """Copies in pools that answer, without those that are served, and of groups that nobody moves now."""
        return [
            (pool, group)
            for pool in self._pools.values()
            for group in pool.groups.values()
            if pool.serving and group.uuid not in self._running and not self._is_owner(pool, group)
        ]

    def _restored(self) -> list[tuple[PoolHandle, Group]]:
        """Copies that were told not to serve, and are the group now, because the other one was deleted."""
        return [
            (pool, group)
            for pool in self._pools.values()
            for group in pool.groups.values()
            if pool.serving and (pool.name, group.uuid) in self._retired and self._is_owner(pool, group)
        ]

    def _is_owner(self, pool: PoolHandle, group: Group) -> bool:
        found = owner(copies(self._pools, group.name))
        return found is not None and found[0] is pool

    async def _settle(self, pool: PoolHandle, group: Group) -> None:
        if self._is_owner(pool, group):
            await pool.call(calls.StayGroup(group=group.name))
            self._retired.discard((pool.name, group.uuid))
            return
        if group.leaving is None:  # of a pool that was copied, or came back from a backup: never served, never deleted
            await pool.call(calls.RetireGroup(group=group.name))
            self._retired.add((pool.name, group.uuid))
            return
        to = next((other for other in self._pools.values() if other.uuid == group.leaving), None)
        if to is None or not to.serving:
            return  # whether it has arrived is known when that pool reports
        there = to.groups.get(group.name)
        if there is not None and there.uuid == group.uuid and there.generation > group.generation:
            await pool.call(calls.ForgetGroup(group=group.uuid), seconds=None)
            return
        shown = await to.call(calls.ShowPool())
        if shown.state is not PoolState.SERVING:  # it may have noted the group, or not: its restart shows
            raise Unavailable(
                f"pool {to.name} is {shown.state}: whether the group has arrived is known after its restart"
            )
        await pool.call(calls.StayGroup(group=group.name))
        log.info("group %s stays in %s: it has not arrived in %s", group.name, pool.name, to.name)

    def sentences(self) -> Iterator[str]:
        """What an operator should know of copies: one sentence each."""
        for name in {name for pool in self._pools.values() for name in pool.groups}:
            found = copies(self._pools, name)
            serving = owner(found)
            where = " and ".join(pool.name for pool, _ in found)
            if serving is None and len(found) > 1 and all(group.leaving is None for _, group in found):
                yield f"group {name} is in pools {where} with the same generation: none of them serves it"
            elif serving is None:
                yield f"group {name} was leaving pool {where}: it is served when the pool that it left for has reported"
            for pool, group in found:
                if serving is not None and group.leaving is None and pool is not serving[0]:
                    yield f"pool {pool.name} has an older copy of group {name}, which is served by {serving[0].name}"
        for pool in self._pools.values():
            for name in pool.arrivals.values():
                if not copies(self._pools, name):
                    yield f"pool {pool.name} has the beginning of group {name}, which is in no pool: --abort forgets it"


P = TypeVar("P", bound="HasGroups")


class HasGroups(Protocol):
    @property
    def groups(self) -> Mapping[str, Group]: ...


def copies(pools: Mapping[str, P], name: str) -> list[tuple[P, Group]]:
    """Every pool that has, or had when it was last heard of, a group of that name."""
    return [(pool, pool.groups[name]) for pool in pools.values() if name in pool.groups]


async def _nothing_to_do(group: Group, pool: PoolHandle) -> AsyncIterator[bytes]:
    report = MoveReport(group=group.name, source=pool.name, to=pool.name, generation=group.generation, moved=False)
    yield _line(Line(moved=report))


def _line(line: Line) -> bytes:
    return line.model_dump_json(exclude_unset=True).encode() + b"\n"


def _failure(error: ProductError) -> Line:
    return Line(failure=Failure(code=error.answer.code, message=str(error)))
