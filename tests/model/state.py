"""One state of pool, disk and oracle, as a tuple; and the bounds within which states are explored.

Large parts that many states share (maps, images, batches) are interned: the state holds their numbers, which are
compared and hashed like small ints. A batch's number stands for its crc too: equal bytes have equal crcs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

DOWN, SETTLED, SYNCED, REPLAYED, SAVED, SERVING, STOPPED = range(7)
"""The process: not running; in recovery, behind each of its steps; serving; fail-stopped."""
MODES = ("down", "settled", "synced", "replayed", "saved", "serving", "stopped")

JOINED, WRITTEN, APPENDED, APPLIED, UNDECIDED = range(1, 6)
"""How far the batch of this tick is."""
BEGUN, DATA_SYNCED, ALL_SYNCED, FAILED = range(1, 5)
"""How far a flush round is. A sync failed in FAILED."""
COPYING, COPIED, SAVER_DATA, SAVER_SYNCED, LOGGED, COMMITTED, SAVER_FAILED = range(1, 8)
"""How far a checkpoint is: the copy in slices; data synced; journals too; the commit in the log; the log synced."""


class JournalFile(NamedTuple):
    """Batches by position; 0: nothing valid there."""

    medium: tuple[int, ...] = ()
    cache: tuple[int, ...] = ()
    dirty: int = 0


class Meta(NamedTuple):
    """Images: on the medium; as SQLite would see it now. ``dirty``: the cache may still reach the medium by itself.
    ``hole``: a failed sync made frames of the log clean that the medium lacks."""

    medium: int
    cache: int
    dirty: bool = False
    hole: bool = False


class Log(NamedTuple):
    """``journal.Journal``."""

    epoch: int
    chain: int
    next_seq: int
    synced_seq: int
    position: int = 0
    previous_live: bool = False
    last_seq: tuple[int, int] = (0, 0)


class Room(NamedTuple):
    """``space.Space`` and the allocator: sets of blocks as bits. ``sealed``: freed before the last switch, and what a
    pin holds back."""

    free: int
    high: int
    pending: int = 0
    sealed: int = 0


class Round(NamedTuple):
    """``flush.FlushRounds``. ``target``: the oracle's state that is durable when it ends."""

    stage: int
    seq: int
    files: int
    target: int


class Saver(NamedTuple):
    """``saver.Checkpointer``. ``image``: as far as it is made; ``nodes``, ``gone``: leaves of it, as bits."""

    stage: int
    image: int
    nodes: int = 0
    gone: int = 0
    files: int = 0


class Write(NamedTuple):
    """``writer.BatchWriter``: the batch in hand. ``told``: what the caller was (wrongly) told already."""

    stage: int
    records: tuple[Any, ...]
    told: bool = False


class Sweep(NamedTuple):
    """``reclaim``: what the helper saw in the image of ``epoch``: bits of blocks marked, of leaves no root reaches."""

    epoch: int
    marks: int
    lost: int


class Kept(NamedTuple):
    """What was free, or to become free, when the image of ``epoch`` was begun. ``pinned``: the pin is older than it."""

    epoch: int
    unavailable: int
    pinned: bool


class Pin(NamedTuple):
    """A reader outside the maps. ``blocks``: what it may still read; ``before``: freed before it began, as bits."""

    blocks: int
    before: int


class Load(NamedTuple):
    """``residency``: a row that a helper thread has read and the loop has not yet taken in."""

    leaf: int
    born: int
    entries: tuple[Any, ...]


class State(NamedTuple):
    medium: tuple[int, ...]
    """The value on the medium, per block; 0: nothing that any checksum matches."""
    cache: tuple[int, ...]
    dirty: int
    """Blocks whose cached value is not written back."""
    files: tuple[JournalFile, JournalFile]
    meta: Meta
    boot: int
    mode: int
    world: int
    log: Log | None
    room: Room | None
    write: Write | None
    round: Round | None
    saver: Saver | None
    sweep: Sweep | None
    kept: tuple[Kept, ...]
    pin: Pin | None
    loads: tuple[Load, ...]
    gone: int
    """Leaves retired since the last image."""
    latch: bool
    history: tuple[int, ...]
    """The oracle: contents of all maps after each batch since the last flush or recovery."""
    must: int
    """What a kill must leave: at least so much of the history; -1: a journal's sync failed, what was flushed will do.
    While the process is down: what the crash must leave."""
    budget: tuple[int, ...]


class Interned:
    """Things by number, numbers by thing."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {None: 0}
        self.items: list[Any] = [None]

    def __call__(self, thing: Hashable) -> int:
        number = self._numbers.setdefault(thing, len(self.items))
        if number == len(self.items):
            self.items.append(thing)
        return number


@dataclass(frozen=True)
class Scope:
    """How much may happen: the sizes, and how often each event."""

    volumes: int = 1
    grains: int = 2
    blocks: int = 4
    leaves: int = 3
    writes: int = 0
    trims: int = 0
    drops: int = 0
    """Trims of a whole leaf."""
    flushes: int = 0
    tells: int = 0
    """Empty batches that carry synced_seq."""
    checkpoints: int = 0
    fulls: int = 0
    """Checkpoints that find the host file system full."""
    sweeps: int = 0
    pins: int = 0
    evictions: int = 0
    loads: int = 0
    """Leaves read from the database. With evictions the leaves of a pool just opened are absent too."""
    snapshots: int = 0
    deletes: int = 0
    rollbacks: int = 0
    revokes: int = 0
    faults: int = 0
    """Syncs that fail."""
    lost_appends: int = 0
    """Appends that fail."""
    kills: int = 0
    cuts: int = 0

    def budget(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in EVENTS)


EVENTS = tuple(field.name for field in fields(Scope))[4:]
(
    WRITES,
    TRIMS,
    DROPS,
    FLUSHES,
    TELLS,
    CHECKPOINTS,
    FULLS,
    SWEEPS,
    PINS,
    EVICTIONS,
    LOADS,
    SNAPSHOTS,
    DELETES,
    ROLLBACKS,
    REVOKES,
    FAULTS,
    LOST_APPENDS,
    KILLS,
    CUTS,
) = range(len(EVENTS))


def spend(budget: tuple[int, ...], event: int) -> tuple[int, ...]:
    return (*budget[:event], budget[event] - 1, *budget[event + 1 :])


def put(row: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*row[:index], value, *row[index + 1 :])


def bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
