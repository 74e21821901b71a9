"""Sending a snapshot: pulled piece by piece, so that the reader's pace is the sender's.

It walks the maps in slices on the loop thread; reading, verifying and packing of about 1 MiB at a time happens in a
helper thread. What it makes is ``stream``'s. Invariants: both snapshots are held from construction to ``close``; at
most one piece is in hand; no grain leaves whose checksum did not match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from blockstore.api import Closed, Invalid, NotFound, SnapshotRecord, StoreError
from blockstore.blockmap import Map
from blockstore.device import File
from blockstore.diff import Absent, Changes, changes, ranges_of
from blockstore.export_diff import RBD_END, Begin, pack_begin, pack_data, pack_zero
from blockstore.hold import Hold
from blockstore.layout import UNIT_SHIFT
from blockstore.pool import EnginePool
from blockstore.reading import concatenate, read_grains, select
from blockstore.steps import Steps, in_thread, pause, run
from blockstore.stream import START, Head, Position, Ref, StreamEncoder, StreamVolume, pack, parse_token

PIECE_GRAINS = 256  # grains of data in a piece: 1 MiB
_PIECE_CHANGES = 1 << 15  # grains, unmapped ones included, that one piece looks at: bounds its zero records
_STEPS_PER_SLICE = 8  # as in ``diff``


@dataclass(frozen=True, slots=True)
class _Job:
    """One piece to be made. ``content`` reads and builds its records; it runs in a helper thread."""

    lun: int
    position: int
    content: Callable[[], bytes]


class Sender:
    """A stream of ``group@snapshot``, of what differs from ``base`` if that is given. ``resume``: the token of a
    receiver that has the beginning."""

    def __init__(
        self, pool: EnginePool, group: str, snapshot: str, *, base: str | None = None, resume: str | None = None
    ) -> None:
        """Raises NotFound, Invalid."""
        self._pool = pool
        self._holds = [Hold(pool.catalog, group, snapshot)]
        try:
            if base is not None:
                self._holds.append(Hold(pool.catalog, group, base))
            self.head = self._make_head(resume)
        except (NotFound, Invalid):
            self.close()
            raise
        self._encoder = StreamEncoder()
        self._jobs = self._all_jobs()
        self._state = "head"
        self.bytes_sent = 0

    def close(self) -> None:
        """The snapshots may be deleted again. A piece in hand is finished, and not more."""
        for hold in self._holds:
            hold.release()
        self._state = "closed"

    def next(self) -> Future[bytes]:
        """The next bytes of the stream; empty at its end. One call at a time. Raises MediumError, Closed."""
        return run(self._next())

    def _next(self) -> Steps[bytes]:
        try:
            data = yield from self._make()
        except StoreError:
            self.close()  # what comes next would not follow what came before
            raise
        self.bytes_sent += len(data)
        self._pool.counters.sent_bytes += len(data)
        return data

    def _make(self) -> Steps[bytes]:
        self._check_open()
        if self._state == "head":
            self._state = "pieces"
            return self._encoder.head(self.head)
        for number, job in enumerate(self._jobs, 1):
            if isinstance(job, Absent):
                yield self._pool.residency.fetch(job.nodes)
            elif job is not None:
                content, frame = yield in_thread(self._pool.runner, partial(_pack_job, job))
                return self._encoder.piece(job.lun, job.position, frame, content)
            if number % _STEPS_PER_SLICE == 0:
                yield pause(self._pool.runner)
                self._check_open()
        if self._state == "pieces":
            self._state = "ended"
            return self._encoder.tail()
        return b""

    def _check_open(self) -> None:
        if self._state == "closed" or isinstance(self._pool.writer.refusal, Closed):
            raise Closed("the stream is closed")

    # ------------------------------------------------------------------------------------------------ what to send

    @property
    def _new(self) -> Hold:
        return self._holds[0]

    @property
    def _base(self) -> Hold | None:
        return self._holds[1] if len(self._holds) > 1 else None

    def _make_head(self, resume: str | None) -> Head:
        record = self._new.snapshot.record
        base = self._base.snapshot.record if self._base is not None else None
        volumes = tuple(StreamVolume(v.lun, v.name, v.size) for v in sorted(record.volumes, key=lambda each: each.lun))
        if base is not None:
            _refuse_shrunk(record, base)
        return Head(
            group=self._new.group.record.name,
            to=Ref(record.name, record.identity),
            created=record.created,
            base=None if base is None else Ref(base.name, base.identity),
            volumes=volumes,
            start=START if resume is None else self._start(resume, volumes),
        )

    def _start(self, resume: str, volumes: tuple[StreamVolume, ...]) -> Position:
        identity, position = parse_token(resume)
        record = self._new.snapshot.record
        if identity != record.identity:
            raise Invalid(f"the resume token is of another snapshot than {record.name}")
        sizes = {volume.lun: volume.size for volume in volumes}
        if position != START and not 0 <= position.offset <= sizes.get(position.lun, -1):
            raise Invalid(f"the resume token goes on at LUN {position.lun}, byte {position.offset}: no such place")
        return position

    def _all_jobs(self) -> Iterator[_Job | Absent | None]:
        """None: a slice of looking at the maps is over and found too little to make a piece of."""
        base = self._base.snapshot.record.name if self._base is not None else None
        for volume in self.head.volumes:
            if volume.lun < self.head.start.lun:
                continue
            first = self.head.start.offset if volume.lun == self.head.start.lun else 0
            # Against nothing, where the volume is new: then the record names no snapshot to start from.
            known = self._base is not None and volume.lun in self._base.snapshot.maps
            begin = pack_begin(Begin(base if known else None, self.head.to.name, volume.size))
            yield _Job(volume.lun, first, partial(bytes, begin))
            yield from self._data_jobs(volume, first)
            yield _Job(volume.lun, volume.size, lambda: RBD_END)

    def _data_jobs(self, volume: StreamVolume, first: int) -> Iterator[_Job | Absent | None]:
        old, new = self._maps(volume.lun)
        what = f"group {self.head.group}, snapshot {self.head.to.name}, LUN {volume.lun}"
        for some in batches(changes(self._pool.blockmap, old, new), first >> UNIT_SHIFT):
            if some is None or isinstance(some, Absent):
                yield some
            else:
                position = (int(some.grains[-1]) + 1) << UNIT_SHIFT
                yield _Job(volume.lun, position, partial(_records, self._pool.data, some, what))

    def _maps(self, lun: int) -> tuple[Map | None, Map]:
        maps = self._pool.blockmap.maps
        old = self._base.snapshot.maps.get(lun) if self._base is not None else None
        return (None if old is None else maps[old]), maps[self._new.snapshot.maps[lun]]


def batches(found: Iterator[Changes | Absent], first: int = 0) -> Iterator[Changes | Absent | None]:
    """What ``changes`` yields from grain ``first`` on, gathered and cut into batches of at most ``PIECE_GRAINS`` mapped
    grains; None after each step that did not fill one."""
    kept: list[Changes] = []
    mapped = count = 0
    for step in found:
        if isinstance(step, Absent):
            yield step
            continue
        step = select(step, step.grains >= first) if len(step.grains) and step.grains[0] < first else step
        kept.append(step)
        count += len(step.grains)
        mapped += int(np.count_nonzero(step.entries))
        if mapped >= PIECE_GRAINS or count >= _PIECE_CHANGES:
            yield from _cut(concatenate(kept))
            kept, count, mapped = [], 0, 0
        else:
            yield None
    if count:
        yield from _cut(concatenate(kept))


def _cut(found: Changes) -> Iterator[Changes]:
    """Batches of at most ``PIECE_GRAINS`` mapped grains and ``_PIECE_CHANGES`` grains."""
    mapped = found.entries != 0
    before = np.cumsum(mapped) - mapped
    at, count = 0, len(found.grains)
    while at < count:
        full = int(np.searchsorted(before, before[at] + PIECE_GRAINS, "left"))
        end = min(full, at + _PIECE_CHANGES)
        yield select(found, slice(at, end))
        at = end


def _pack_job(job: _Job) -> tuple[int, bytes]:
    content = job.content()
    return len(content), pack(content)


def _records(data: File, some: Changes, what: str) -> bytes:
    """The records of these grains, neighbours in one record. Raises MediumError."""
    zero = some.entries == 0
    content = memoryview(read_grains(data, select(some, ~zero), what))
    ranges = ranges_of(some.grains, zero)
    parts: list[bytes | memoryview] = []
    at = 0
    for offset, length, empty in zip(
        ranges.offsets.tolist(), ranges.lengths.tolist(), ranges.zero.tolist(), strict=True
    ):
        if empty:
            parts.append(pack_zero(offset, length))
        else:
            parts += (pack_data(offset, length), content[at : at + length])
            at += length
    return b"".join(parts)


def _refuse_shrunk(new: SnapshotRecord, base: SnapshotRecord) -> None:
    """A volume that is smaller than it was (the group was rolled back in between) cannot be sent as a difference:
    the receiver would have to shrink it."""
    sizes = {volume.lun: volume.size for volume in base.volumes}
    for volume in new.volumes:
        if volume.size < sizes.get(volume.lun, 0):
            raise Invalid(
                f"LUN {volume.lun} has {volume.size} bytes in {new.name}, {sizes[volume.lun]} in {base.name}: "
                "a volume that became smaller can only be sent in full"
            )
