"""One group on its way to another pool: the order of the steps.

While it is served its snapshots are copied, oldest first, then a snapshot of now, again and again until little is left.
The cut-over: the source ends its sessions, takes the last snapshot and notes durably that it has *left*; the rest is
copied; the destination makes the group, one generation on, and serves it; the source deletes its copy.

Not the work of the pools (``worker.moves``), nor what becomes of a move that was interrupted (``moves``). Invariant:
nothing is committed at the destination but what the source has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from blockyard.errors import Busy, InUse, NotFound, ProductError
from blockyard.model import Group, Move, MovePhase, PoolState, Value
from blockyard.model.moves import ArrivalState, ChainLink, Departed, MoveReport
from blockyard.rpc import calls
from blockyard.rpc.calls import Call
from blockyard.rpc.pipe import Pipe, download, upload

log = logging.getLogger("blockyard.moves")

R = TypeVar("R", bound=Value)

SMALL = 8 << 20  # bytes of a stream: what is left to copy with nobody served. Measured: takes 0.1 to 0.3 s
MAX_ROUNDS = 12  # of copying what was written meanwhile: whoever writes faster than is copied gets a longer cut-over
MAX_LEAVES = 8  # tries to leave between two snapshots that others take
RELEASE_SECONDS = 5.0  # until a stream that was cut is let go of by both pools; takes milliseconds
RESERVED = "moving-"
"""Snapshots that a move takes begin so; people may not take that name."""
_TEMPORARY = re.compile(r"moving-[0-9a-f]{8}-(\d+)")

Reached = Callable[["GroupMove", MovePhase], Awaitable[None]]


class PoolHandle(Protocol):
    """A pool as a move sees it (``daemon.pool_worker.PoolWorker``)."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> PoolState: ...
    @property
    def uuid(self) -> UUID | None: ...
    @property
    def groups(self) -> Mapping[str, Group]: ...
    @property
    def arrivals(self) -> Mapping[UUID, str]: ...
    @property
    def serving(self) -> bool: ...

    async def call(self, call: Call[R], *, seconds: float | None = 60) -> R: ...
    async def open_pipe(self) -> Pipe: ...


class GroupMove:
    """One move, from its beginning to its end or failure. ``reached`` is told each phase before it begins, that of
    copying for every snapshot."""

    def __init__(self, group: Group, source: PoolHandle, to: PoolHandle, rate: int | None, reached: Reached) -> None:
        assert source.uuid is not None
        assert to.uuid is not None
        self.group = group
        self.source = source
        self.to = to
        self._source_uuid, self._to_uuid = source.uuid, to.uuid
        self._rate = rate
        self._reached = reached
        self._began = time.monotonic()
        self._left_at = 0.0
        self._stalled = 0.0
        self._snapshots = 0
        self.can_be_given_up = True
        self._number = 0  # of the last snapshot that this move took
        self._arrived: set[UUID] = set()  # snapshots that the destination has
        self._half: ArrivalState | None = None  # what an interrupted try left there
        self.state = Move(to=to.name, phase=MovePhase.BEGINNING)

    def progress(self) -> Move:
        return self.state.model_copy(update={"seconds": round(time.monotonic() - self._began, 3)})

    async def run(self) -> MoveReport:
        """Raises what refused it; then the group is where it was, or ``Moves`` finds out where."""
        await self._enter(MovePhase.BEGINNING)
        self._half = await self._begin()
        self._arrived = set(self._half.snapshots)
        self._number = max((_number(link) for link in await self._chain()), default=0)
        newest = await self._copy()
        # From here on nobody gives it up: it is a matter of a second, and half of it would be worse than all.
        self.can_be_given_up = False
        report = await asyncio.shield(asyncio.ensure_future(self._cut_over(newest)))
        log.info("group %s moved from %s to %s, stalled for %.3f s",
                 self.group.name, self.source.name, self.to.name, self._stalled)  # fmt: skip
        return report

    async def _begin(self) -> ArrivalState:
        """Let it arrive; what is there of it already."""
        return await self.to.call(
            calls.BeginArrival(
                group=self.group.uuid, name=self.group.name, iqn=self.group.iqn, source=self._source_uuid
            )
        )

    async def _enter(self, phase: MovePhase) -> None:
        await self._reached(self, phase)
        self._note(phase=phase)

    def _note(self, **changed: object) -> None:
        self.state = self.state.model_copy(update=changed)

    # --- copying, while it is served -------------------------------------------------------------------------------

    async def _copy(self) -> ChainLink:
        """Until what is left is small; the newest snapshot, which the destination has with all others."""
        for _ in range(MAX_ROUNDS):
            before = self.state.copied
            newest = await self._round()
            if self.state.copied - before <= SMALL:
                break
        return newest

    async def _round(self) -> ChainLink:
        """Take a snapshot, copy all that the destination has not, and forget the ones of rounds before."""
        await self.source.call(calls.CreateSnapshot(group=self.group.name, name=self._next_name()))
        chain = await self._copy_missing()
        older = [link for link in chain[:-1] if _number(link)]
        for link in older:
            with contextlib.suppress(NotFound):
                await self.source.call(calls.DeleteSnapshot(group=self.group.name, name=link.name))
        await self._prune({link.uuid for link in older})
        return chain[-1]

    async def _copy_missing(self) -> list[ChainLink]:
        """The snapshots that both have then, oldest first."""
        for _ in range(MAX_LEAVES):
            chain = await self._chain()
            await self._prune(self._arrived - {link.uuid for link in chain})
            missing = [at for at, link in enumerate(chain) if link.uuid not in self._arrived]
            try:
                for done, at in enumerate(missing, 1):
                    self._note(snapshot=chain[at].name, snapshots_left=len(missing) - done)
                    await self._enter(MovePhase.COPYING)
                    await self._send(chain[at], self._base_of(chain, at), self._rate)
            except NotFound as error:  # somebody deleted a snapshot: it has not to go along
                log.info("group %s, %s to %s: %s", self.group.name, self.source.name, self.to.name, error)
            else:
                return chain
        raise Busy(f"group {self.group.name} loses snapshots faster than they can be copied: try again later")

    async def _prune(self, gone: set[UUID]) -> None:
        if gone:
            await self.to.call(calls.PruneArrival(group=self.group.uuid, snapshots=tuple(gone)), seconds=None)
            self._arrived -= gone

    def _base_of(self, chain: list[ChainLink], at: int) -> ChainLink | None:
        """The nearest older snapshot that the destination has. No volume may have been larger then (the group was
        rolled back in between): a difference cannot make one smaller."""
        sizes = chain[at].sizes
        for base in reversed(chain[:at]):
            if base.uuid in self._arrived and all(base.sizes.get(lun, 0) <= size for lun, size in sizes.items()):
                return base
        return None

    async def _chain(self) -> list[ChainLink]:
        """The group's snapshots, oldest first."""
        page = await self.source.call(calls.ListChain(group=self.group.name))
        found = list(page.links)
        while page.next is not None:
            page = await self.source.call(calls.ListChain(group=self.group.name, after=page.next))
            found += page.links
        return found

    async def _send(self, link: ChainLink, base: ChainLink | None, rate: int | None) -> None:
        """Copy one snapshot, as its difference from ``base``."""
        half, self._half = self._half, None
        wanted = (link.identity, None if base is None else base.identity)
        resume = half.token if half is not None and (half.staged, half.staged_base) == wanted else None

        def send(pipe: int) -> calls.SendSnapshot:
            known = None if base is None else base.name
            return calls.SendSnapshot(pipe=pipe, group=self.group.name, snapshot=link.name, base=known, resume=resume)

        await upload(
            self.to,
            lambda pipe: calls.ReceiveArrival(pipe=pipe, group=self.group.uuid, record=link.record),
            self._paced(send, rate),
        )
        self._arrived.add(link.uuid)
        self._snapshots += 1

    async def _paced(self, send: Callable[[int], calls.SendSnapshot], rate: int | None) -> AsyncIterator[bytes]:
        """What the source sends: counted, and held back to ``rate`` bytes a second."""
        began, passed = time.monotonic(), 0
        async for chunk in await download(self.source, send):
            yield chunk
            passed += len(chunk)
            self._note(copied=self.state.copied + len(chunk))
            early = 0.0 if rate is None else began + passed / rate - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)

    def _next_name(self) -> str:
        self._number += 1
        return f"{RESERVED}{self._to_uuid.hex[:8]}-{self._number}"

    # --- the cut-over ----------------------------------------------------------------------------------------------

    async def _cut_over(self, newest: ChainLink) -> MoveReport:
        departed, newest = await self._leave(newest)
        await self._enter(MovePhase.LEFT)
        await self._send(departed.last, newest, None)
        await self._enter(MovePhase.ARRIVED)
        await self.to.call(
            calls.CommitArrival(
                group=self.group.uuid,
                record=departed.record,
                generation=departed.generation + 1,
                last=departed.last.uuid,
                drop=(newest.uuid,) if _number(newest) else (),
            ),
            seconds=None,  # a commit that nobody waits for any more would still happen
        )
        self._stalled = time.monotonic() - self._left_at
        await self._enter(MovePhase.COMMITTED)
        await self._forget()
        await self._enter(MovePhase.DONE)
        return self._report(departed.generation + 1)

    async def _leave(self, newest: ChainLink) -> tuple[Departed, ChainLink]:
        """Also the newest snapshot that both have."""
        for _ in range(MAX_LEAVES):
            await self._enter(MovePhase.LEAVING)
            chain = (await self._begin()).digest
            leave = calls.LeaveGroup(group=self.group.name, to=self._to_uuid, chain=chain, snapshot=self._next_name())
            self._left_at = time.monotonic()
            try:
                return await self.source.call(leave, seconds=None), newest
            except Busy:  # somebody took or deleted a snapshot: it goes along
                newest = await self._round()
        raise Busy(f"group {self.group.name} gets or loses snapshots faster than it can leave: try again later")

    async def _forget(self) -> None:
        try:
            await self.source.call(calls.ForgetGroup(group=self.group.uuid), seconds=None)
        except ProductError as error:
            log.warning("the copy of group %s in %s is deleted later: %s", self.group.name, self.source.name, error)

    def _report(self, generation: int) -> MoveReport:
        return MoveReport(
            group=self.group.name,
            source=self.source.name,
            to=self.to.name,
            generation=generation,
            moved=True,
            copied=self.state.copied,
            snapshots=self._snapshots,
            seconds=round(time.monotonic() - self._began, 3),
            stalled=round(self._stalled, 3),
        )

    async def give_up(self) -> None:
        """Undo the copying, as far as the pools answer."""
        try:
            await give_up(self.group, self.source, self.to)
        except ProductError as error:
            log.warning("what was copied of group %s to %s is still there: %s", self.group.name, self.to.name, error)


async def give_up(group: Group, source: PoolHandle, to: PoolHandle) -> None:
    """Forget what was copied, and the snapshots that the move took."""
    await _when_released(lambda: to.call(calls.AbortArrival(group=group.uuid), seconds=None))
    assert to.uuid is not None
    prefix = f"{RESERVED}{to.uuid.hex[:8]}-"
    for snapshot in await _names(group.name, source):
        if snapshot.startswith(prefix):
            delete = calls.DeleteSnapshot(group=group.name, name=snapshot)
            await _when_released(partial(source.call, delete))


async def _names(group: str, source: PoolHandle) -> list[str]:
    if group not in source.groups:
        return []
    page = await source.call(calls.ListChain(group=group))
    found = [link.name for link in page.links]
    while page.next is not None:
        page = await source.call(calls.ListChain(group=group, after=page.next))
        found += [link.name for link in page.links]
    return found


async def _when_released(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again while the stream that was just cut still holds it."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            await ask()
            return
        except InUse:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


def _number(link: ChainLink) -> int:
    """Of a snapshot that a move took; 0: it is another's."""
    found = _TEMPORARY.fullmatch(link.name)
    return int(found[1]) if found else 0
