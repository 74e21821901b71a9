"""Crashes, and recovery (``blockstore/recovery.py``, ``HostDirectory.settle_database``) in the order of its steps.

Between any two of them the process may be killed or the power cut again. ``replay`` is a pure function of the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tests.model import rules
from tests.model.disk import Batch, commit_synced, failed_syncs, sync_journals
from tests.model.durability import fail_data, sync_data
from tests.model.maps import ABSENT, CLEAN, Image, World
from tests.model.state import (
    CUTS,
    DOWN,
    FAULTS,
    KILLS,
    REPLAYED,
    SAVED,
    SERVING,
    SETTLED,
    SWEEPS,
    SYNCED,
    JournalFile,
    Kept,
    Log,
    Meta,
    Room,
    Saver,
    State,
    spend,
)

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps

NOTHING = {
    "mode": DOWN,
    "world": 0,
    "log": None,
    "room": None,
    "write": None,
    "round": None,
    "saver": None,
    "sweep": None,
    "kept": (),
    "pin": None,
    "loads": (),
    "gone": 0,
    "latch": False,
}
"""What a process that is gone has in memory."""


def crash(m: Model, s: State, out: Steps) -> None:
    if s.budget[KILLS] and s.mode != DOWN:
        medium, cache, dirty, files = m.crashes.kill(s)
        left = {"medium": medium, "cache": cache, "dirty": dirty, "files": files, "budget": spend(s.budget, KILLS)}
        must = max(s.must, 0)
        out.append(("kill -9", s._replace(**{**NOTHING, **left, "must": must, "history": s.history})))
    if s.budget[CUTS]:
        budget = spend(s.budget, CUTS)
        for label, (values, files, meta) in m.crashes.cuts(s):
            disk = {"medium": values, "cache": values, "dirty": 0, "files": files, "meta": meta}
            out.append((label, s._replace(**NOTHING, **disk, boot=s.boot + 1, must=0, budget=budget)))


# ---------------------------------------------------------------------------------------------------- the steps


def recover(m: Model, s: State, out: Steps) -> None:
    """One step of ``pool.open_directory``."""
    if s.mode == DOWN:
        _settle(m, s, out)
    elif s.mode == SETTLED:
        _sync_first(m, s, out)
    elif s.mode == SYNCED:
        _replay(m, s, out)
    elif s.mode == REPLAYED:
        _save(m, s, out)
    elif s.mode == SAVED:
        _serve(m, s, out)


def _settle(m: Model, s: State, out: Steps) -> None:
    """The log is rewritten in place and synced, so that an image that is seen is durable."""
    meta = s.meta if m.broken == rules.WAL_AS_IS else Meta(s.meta.cache, s.meta.cache)
    out.append(("recovery settles meta.db", s._replace(mode=SETTLED, meta=meta)))


def _sync_first(m: Model, s: State, out: Steps) -> None:
    """``sync_before_reading``."""
    synced = sync_data(s)
    out.append(("recovery syncs data and journals", synced._replace(mode=SYNCED, files=sync_journals(s, 3))))
    if s.budget[FAULTS]:
        out += [("recovery's sync of the data fails", t._replace(mode=DOWN)) for t in fail_data(s)]
        for at in (0, 1):
            for file in failed_syncs(s.files[at]):
                files = (file, s.files[1]) if at == 0 else (sync_journals(s, 1)[0], file)
                failed = synced._replace(mode=DOWN, files=files, must=0, budget=spend(s.budget, FAULTS))
                out.append(("recovery's sync of a journal fails", failed))


def _replay(m: Model, s: State, out: Steps) -> None:
    if m.broken == rules.BOOT_EARLY and m.maps.images.items[s.meta.cache].boot != s.boot:
        image = m.maps.images(m.maps.images.items[s.meta.cache]._replace(boot=s.boot))
        out.append(("recovery writes boot_id", s._replace(meta=Meta(image, image))))
        return
    found = replay(m, s)
    if isinstance(found, str):
        out.append(("recovery replays", found))
        return
    rescued = sum({1 << block for block in found.rescued}) if m.broken != rules.NOT_REWRITTEN else 0
    problem = _compare(m, s, found.world)
    if problem:
        out.append(("recovery replays", problem))
        return
    image = _own_image(m, s, found)
    files = (JournalFile(), JournalFile()) if m.broken == rules.JOURNAL_WIPED else s.files
    replayed = s._replace(mode=REPLAYED, dirty=s.dirty | rescued, files=files, saver=Saver(0, image, gone=found.freed))
    out.append((("recovery replays", found.batches, "batches"), replayed))


def _compare(m: Model, s: State, world: int) -> str | None:
    """The oracle: what was found must be a state that the crash may leave, and every block of it must be whole."""
    contents, entries, _ = m.maps.look(world, s.meta.cache)
    if contents not in s.history[s.must :]:
        allowed = [m.maps.contents.items[number] for number in s.history[s.must :]]
        return f"recovered {m.maps.contents.items[contents]}, allowed are {allowed}"
    damaged = [entry for entry in entries if s.cache[entry[0]] != entry[1]]
    return f"recovered maps name damaged blocks: (block, value) {damaged}" if damaged else None


def _own_image(m: Model, s: State, found: Replay) -> int:
    """``recovery.finish``: a random seed is one that nothing had before."""
    old: Image = m.maps.images.items[s.meta.cache]
    world: World = m.maps.worlds.items[found.world]
    epoch, seed = old.epoch + 2, -1 - sum(s.budget[KILLS : CUTS + 1])
    if m.broken in (rules.NEXT_EPOCH, rules.EPOCH_ALONE):
        epoch -= 1
    if m.broken in (rules.NEXT_EPOCH, rules.SEED_ALONE):
        seed = found.chain
    superblock = epoch, seed, found.next_seq, world.generation, world.next_map, found.high
    return m.maps.images(Image(*superblock, s.boot, world.maps, m.maps.rows(found.world)))


def _save(m: Model, s: State, out: Steps) -> None:
    """Data that was written again is synced, then the own checkpoint is committed: first into the log."""
    synced = s if m.broken == rules.RESCUE_UNSYNCED else sync_data(s)
    meta = Meta(s.meta.medium, s.saver.image, dirty=True, hole=s.meta.hole)
    out.append(("recovery syncs the data; COMMIT: in the log", synced._replace(mode=SAVED, meta=meta)))
    if s.budget[FAULTS]:
        out += [("recovery's sync of the data fails", t._replace(mode=DOWN, saver=None)) for t in fail_data(s)]


def _serve(m: Model, s: State, out: Steps) -> None:
    meta = s.meta if m.broken == rules.SERVE_EARLY else commit_synced(s.meta)
    out.append(("COMMIT: the log is synced; the pool serves", serving(m, s._replace(meta=meta))))
    if s.budget[FAULTS]:
        hole = s.meta._replace(dirty=False, hole=True)
        failed = s._replace(mode=DOWN, saver=None, meta=hole, budget=spend(s.budget, FAULTS))
        out.append(("COMMIT: recovery's sync of the log fails", failed))


def serving(m: Model, s: State) -> State:
    """The process as recovery hands it over: ``pool.EnginePool`` over the image just made."""
    image: Image = m.maps.images.items[s.meta.cache]
    world = m.maps.load(s.meta.cache, ABSENT if m.scope.evictions else CLEAN)
    free = (1 << m.scope.blocks) - (1 << min(image.high, m.scope.blocks))
    kept = Kept(image.epoch, free, False)
    if s.saver and m.broken in (rules.REPLAY_FREES, rules.REPLAY_FREES_KEPT):
        free |= s.saver.gone
        kept = kept if m.broken == rules.REPLAY_FREES else kept._replace(unavailable=free)
    return s._replace(
        mode=SERVING,
        world=world,
        kept=(kept,) if s.budget[SWEEPS] else (),
        log=Log(image.epoch, image.seed, image.next_seq, image.next_seq - 1),
        room=Room(free, image.high),
        saver=None,
        history=(m.maps.look(m.maps.load(s.meta.cache), 0)[0],),
        must=0,
    )


# ---------------------------------------------------------------------------------------------------- replay


class Replay(NamedTuple):
    """``recovery.Replay``."""

    world: int
    next_seq: int
    chain: int
    high: int
    rescued: tuple[int, ...]
    batches: int
    freed: int
    """Blocks that private bits freed: ignored, the opening sweep finds them."""


def replay(m: Model, s: State) -> Replay | str:
    """``recovery.replay``; a problem in words if it refuses, or cannot."""
    image: Image = m.maps.images.items[s.meta.cache]
    media = [file.cache if m.broken == rules.READ_CACHE else file.medium for file in s.files]
    epoch = image.epoch + (m.broken == rules.REPLAY_LATE)
    chain = list(_chain(m, media, epoch, image.next_seq, image.seed))
    last = chain[-1][1].seq if chain else image.next_seq - 1
    if any(_proves_loss(m, batch, last) for batch in _later(m, media, epoch, last)):
        return f"refused: a batch says that {last + 1} was flushed, and that one is not intact"
    synced = max([image.next_seq - 1, *(batch.synced_seq for _, batch in chain)])
    world, next_seq, high, seed, rescued = m.maps.load(s.meta.cache), image.next_seq, image.high, image.seed, []
    freed = 0
    for number, batch in chain:
        if batch.seq > synced and not _data_is_whole(m, s, batch, image.boot == s.boot, rescued):
            if m.broken == rules.REPLAY_HOLES:
                continue
            break
        applied = m.maps.apply(world, batch.records)
        if applied is None:
            return "no leaf is left for the replay"
        world, next_seq, seed, freed = applied.world, batch.seq + 1, number, freed | applied.freed
        for record in batch.records:
            if record[0] == "WRITE" and m.broken != rules.HIGH_WATER_OLD:
                high = max(high, record[3] + 1)
    return Replay(world, next_seq, seed, high, tuple(rescued), next_seq - image.next_seq, freed)


def _chain(
    m: Model, media: list[tuple[int, ...]], epoch: int, next_seq: int, chain: int
) -> Iterator[tuple[int, Batch]]:
    """``JournalImage.batches``."""
    for at_epoch in (epoch, epoch + 1):
        for number in media[at_epoch & 1]:
            batch: Batch = m.batches.items[number]
            if batch is None or batch.epoch != at_epoch:
                break
            if batch.seq < next_seq:
                continue
            if batch.seq != next_seq or (batch.prev != chain and m.broken != rules.CHAIN_UNCHECKED):
                return
            yield number, batch
            next_seq, chain = batch.seq + 1, number


def _later(m: Model, media: list[tuple[int, ...]], epoch: int, seq: int) -> Iterator[Batch]:
    """``JournalImage.later_batches``."""
    for file in media:
        for number in file:
            batch: Batch = m.batches.items[number]
            if batch is not None and batch.epoch in (epoch, epoch + 1) and batch.seq > seq:
                yield batch


def _proves_loss(m: Model, batch: Batch, last: int) -> bool:
    return m.broken == rules.REFUSE_ANY_TAIL or batch.synced_seq > last


def _data_is_whole(m: Model, s: State, batch: Batch, same_boot: bool, rescued: list[int]) -> bool:
    """``recovery._data_is_whole`` and ``_rescue``: damage in both disk and cache is no reason to stop."""
    if m.broken == rules.REPLAY_UNCHECKED:
        return True
    medium = s.cache if m.broken == rules.READ_CACHE else s.medium
    for record in batch.records:
        if record[0] == "WRITE" and medium[record[3]] != record[4]:
            if not same_boot or m.broken == rules.NO_REREAD:
                return False
            if s.cache[record[3]] == record[4]:
                rescued.append(record[3])
    return True
