"""What takes minutes, over pipes: diff, send, receive, verify, scrub. One task each, over the store's own steps.

Not the store's work (``blockstore.send`` and its neighbours): this moves its results to the daemon at the pace at
which they are taken, and ends it when the reader goes away or the worker ends. Invariants: a pipe is closed when its
call is answered; after ``close`` no task of this runs and no hold is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from blockstore import api
from blockstore.arrival import ArrivalReceiver
from blockstore.diff import Absent, Ranges, SnapshotDiff, join
from blockstore.fingerprint import Verifier
from blockstore.pool import EnginePool
from blockstore.receive import Receiver, abort_receive
from blockstore.scrub import Scrub, ScrubError
from blockstore.send import Sender
from blockstore.staging import require_staged
from blockyard.errors import Invalid, ProductError, Unavailable
from blockyard.model import Snapshot, Value
from blockyard.model.transfers import (
    Diff,
    DiffRange,
    DiffVolume,
    Failure,
    Fingerprint,
    Line,
    Progress,
    Receive,
    ScrubFinding,
    ScrubReport,
    VolumeFingerprint,
)
from blockyard.rpc import calls
from blockyard.rpc.calls import Nothing
from blockyard.rpc.pipe import CHUNK, Pipe, open_pipe
from blockyard.worker.moves import snapshot_record
from blockyard.worker.records import product_errors, wait_for_store

T = TypeVar("T")

_LINE_RANGES = 500  # ranges in one line: about 1 ms to write
_TELL_SECONDS = 0.5  # between two lines of progress

Commit = Callable[[str, Callable[[], Future[api.SnapshotRecord]]], Awaitable[Snapshot]]


class Transfers:
    """``check_receivable`` raises while a group must not change; ``commit`` runs a receive's last step with nobody
    logged in to the group."""

    def __init__(self, pool: api.Pool, check_receivable: Callable[[str], None], commit: Commit) -> None:
        self._pool = pool
        self._check_receivable = check_receivable
        self._commit = commit
        self._waiting: dict[int, socket.socket] = {}  # pipes whose call has not come
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def adopt(self, pipe: int, sock: socket.socket) -> None:
        """The worker's end of a pipe; the call that uses it comes next."""
        if self._closed:
            sock.close()
        else:
            self._waiting[pipe] = sock

    async def close(self) -> None:
        """End everything, and wait for it. A receive notes how far it is."""
        self._closed = True
        for sock in self._waiting.values():
            sock.close()
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def serve(self, call: calls.Call[Any]) -> Value:
        """Raises what refuses it, Unavailable when its reader went away."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await TRANSFERS[type(call)](self, call)
        except ConnectionError as error:
            raise Unavailable(f"the other end of the transfer is gone: {error}") from None
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise Unavailable("the pool's worker is ending: what a receive got is kept, go on in a moment") from None
        finally:
            self._tasks.discard(task)

    @property
    def _engine(self) -> EnginePool:
        if not isinstance(self._pool, EnginePool):
            raise Invalid("this kind of pool has no snapshot streams")
        return self._pool

    @asynccontextmanager
    async def _pipe(self, number: int) -> AsyncIterator[Pipe]:
        sock = self._waiting.pop(number, None)
        if sock is None:
            raise Unavailable("the worker is ending")
        pipe = await open_pipe(number, sock)
        try:
            yield pipe
        finally:
            pipe.close()

    @asynccontextmanager
    async def _lines(self, number: int) -> AsyncIterator[Lines]:
        """A pipe for lines. A refusal after the first one goes into it, because an answer is under way already."""
        async with self._pipe(number) as pipe:
            lines = Lines(pipe)
            try:
                yield lines
            except ProductError as error:
                if not lines.written:
                    raise
                await lines.say(failure=Failure(code=error.answer.code, message=str(error)))

    # --- the verbs -------------------------------------------------------------------------------------------------

    async def diff(self, call: calls.DiffSnapshots) -> Nothing:
        async with self._lines(call.pipe) as lines:
            with product_errors():
                diff = SnapshotDiff(self._engine, call.group, call.old, call.new)
            with contextlib.closing(diff), product_errors():
                volumes = [await _diff_volume(diff, each, lines) for each in diff.volumes]
                removed = tuple(volume.lun for volume in diff.removed)
            whole = Diff(group=call.group, old=call.old, new=call.new, volumes=tuple(volumes), removed=removed)
            await lines.say(diff=whole)
        return Nothing()

    async def send(self, call: calls.SendSnapshot) -> Nothing:
        async with self._pipe(call.pipe) as pipe:
            with product_errors():
                sender = Sender(self._engine, call.group, call.snapshot, base=call.base, resume=call.resume)
            with contextlib.closing(sender):
                while data := await wait_for_store(sender.next()):
                    pipe.writer.write(data)
                    await pipe.writer.drain()
        return Nothing()

    async def receive(self, call: calls.ReceiveSnapshot) -> Snapshot:
        async with self._pipe(call.pipe) as pipe:
            self._check_receivable(call.group)
            with product_errors():
                receiver = Receiver(self._engine, call.group, iqn=call.iqn)
            with contextlib.closing(receiver):
                try:
                    while data := await pipe.reader.read(CHUNK):
                        await wait_for_store(receiver.feed(data))
                    await wait_for_store(receiver.end())
                    return await self._commit(call.group, receiver.commit)
                except (ProductError, ConnectionError, asyncio.CancelledError):
                    await wait_for_store(receiver.save())
                    raise

    async def receive_arrival(self, call: calls.ReceiveArrival) -> Nothing:
        """A snapshot of a group that nobody sees yet."""
        async with self._pipe(call.pipe) as pipe:
            with product_errors():
                receiver = ArrivalReceiver(self._engine, call.group, snapshot_record(call.record))
            with contextlib.closing(receiver):
                try:
                    while data := await pipe.reader.read(CHUNK):
                        await wait_for_store(receiver.feed(data))
                    await wait_for_store(receiver.end())
                    await wait_for_store(receiver.commit())
                except (ProductError, ConnectionError, asyncio.CancelledError):
                    await wait_for_store(receiver.save())
                    raise
        return Nothing()

    async def verify(self, call: calls.VerifySnapshot) -> Nothing:
        progress = Progress(done=0, total=0)

        def note(done: int, total: int) -> None:
            nonlocal progress
            progress = Progress(done=done, total=total)

        async with self._lines(call.pipe) as lines:
            with product_errors():
                verifier = Verifier(self._engine, call.group, call.snapshot, note)
            with contextlib.closing(verifier):
                found = await _watch(verifier.verify(), lines, lambda: progress)
            volumes = tuple(
                VolumeFingerprint(lun=v.lun, name=v.name, size=v.size, mapped=v.mapped, sha256=v.sha256)
                for v in found.volumes
            )
            await lines.say(
                fingerprint=Fingerprint(group=call.group, snapshot=call.snapshot, sha256=found.sha256, volumes=volumes)
            )
        return Nothing()

    async def scrub(self, call: calls.ScrubPool) -> Nothing:
        done = errors = 0

        def note(now_done: int, now_errors: int) -> None:
            nonlocal done, errors
            done, errors = now_done, now_errors

        async with self._lines(call.pipe) as lines:
            with product_errors():
                scrub = Scrub(self._engine, rate=call.rate, progress=note)
            with contextlib.closing(scrub):
                total = self._pool.statistics().used
                report = await _watch(
                    scrub.scrub(), lines, lambda: Progress(done=done, total=max(total, done), errors=errors)
                )
            await lines.say(
                scrub=ScrubReport(
                    blocks=report.blocks,
                    seconds=round(report.seconds, 3),
                    errors=tuple(_finding(error) for error in report.errors),
                    error_count=report.error_count,
                )
            )
        return Nothing()

    async def show_receive(self, call: calls.ShowReceive) -> Receive:
        with product_errors():
            staged = require_staged(self._engine.catalog, call.group)
        head = staged.head
        return Receive(
            group=call.group,
            snapshot=head.to.name,
            identity=head.to.identity,
            base=head.base.name if head.base is not None else None,
            lun=staged.position.lun,
            offset=staged.position.offset,
            received=staged.received,
            active=call.group in self._engine.catalog.receiving,
            token=staged.token,
        )

    async def abort_receive(self, call: calls.AbortReceive) -> Nothing:
        with product_errors():
            future = abort_receive(self._engine, call.group)
        await wait_for_store(future)
        return Nothing()


class Lines:
    """Values into a pipe, one a line of JSON."""

    def __init__(self, pipe: Pipe) -> None:
        self._writer = pipe.writer
        self.written = False

    async def say(self, **fields: Value | tuple[Value, ...]) -> None:
        """One ``Line`` with these fields; waits while the reader is behind. Raises ConnectionError when it is gone."""
        self.written = True
        self._writer.write(Line.model_validate(fields).model_dump_json(exclude_unset=True).encode() + b"\n")
        await self._writer.drain()


async def _diff_volume(diff: SnapshotDiff, record: api.VolumeRecord, lines: Lines) -> DiffVolume:
    """Say all ranges of a volume; the totals."""
    changed = zero = count = 0
    async for ranges in _joined(_ranges(diff, record.lun)):
        changed += int(ranges.lengths[~ranges.zero].sum())
        zero += int(ranges.lengths[ranges.zero].sum())
        count += len(ranges)
        await _say_ranges(record.lun, ranges, lines)
    return DiffVolume(lun=record.lun, name=record.name, size=record.size, changed=changed, zero=zero, ranges=count)


async def _ranges(diff: SnapshotDiff, lun: int) -> AsyncIterator[Ranges]:
    """Those of each step, once the nodes that it needs are in memory."""
    for step in diff.ranges(lun):
        if isinstance(step, Absent):
            await wait_for_store(diff.load(step))
        else:
            yield step


async def _joined(steps: AsyncIterator[Ranges]) -> AsyncIterator[Ranges]:
    """Ranges of many steps, neighbours joined over their borders. Between two steps the loop gets its turn."""
    kept: list[Ranges] = []
    async for step in steps:
        kept.append(step)
        if sum(map(len, kept)) > _LINE_RANGES:
            whole = join(kept)
            yield whole[:-1]
            kept = [whole[-1:]]
        await asyncio.sleep(0)
    yield join(kept)


async def _say_ranges(lun: int, ranges: Ranges, lines: Lines) -> None:
    for at in range(0, len(ranges), _LINE_RANGES):
        part = ranges[at : at + _LINE_RANGES]
        columns = zip(part.offsets.tolist(), part.lengths.tolist(), part.zero.tolist(), strict=True)
        await lines.say(
            ranges=tuple(
                DiffRange(lun=lun, offset=offset, length=length, kind="zero" if zero else "changed")
                for offset, length, zero in columns
            )
        )


async def _watch(future: Future[T], lines: Lines, progress: Callable[[], Progress]) -> T:
    """The result; while it is awaited, say how far it is. Raises ProductError."""
    waiting = asyncio.ensure_future(wait_for_store(future))
    try:
        while not (await asyncio.wait({waiting}, timeout=_TELL_SECONDS))[0]:
            await lines.say(progress=progress())
    finally:
        waiting.cancel()  # of no effect once it is done
    return waiting.result()


def _finding(error: ScrubError) -> ScrubFinding:
    place = error.place
    return ScrubFinding(
        group=place.group,
        snapshot=place.snapshot,
        lun=place.lun,
        volume=place.volume,
        offset=error.offset,
        lba=error.offset // api.LOGICAL_BLOCK,
        block=error.block,
        reason=error.reason,
    )


Handler = Callable[[Transfers, Any], Awaitable[Value]]

TRANSFERS: dict[type[calls.Call[Any]], Handler] = {
    calls.DiffSnapshots: Transfers.diff,
    calls.SendSnapshot: Transfers.send,
    calls.ReceiveSnapshot: Transfers.receive,
    calls.ReceiveArrival: Transfers.receive_arrival,
    calls.VerifySnapshot: Transfers.verify,
    calls.ScrubPool: Transfers.scrub,
    calls.ShowReceive: Transfers.show_receive,
    calls.AbortReceive: Transfers.abort_receive,
}
