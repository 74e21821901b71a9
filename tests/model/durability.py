"""Flush rounds (``blockstore/flush.py``), checkpoints (``saver.py``) and the gate through which both sync.

Syncs and the commit are steps of helper threads: they come between any two steps of the loop. ``SyncGate`` holds one of
them off while the other is between its first and its last sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import freeing, rules, sweeping
from tests.model.disk import commit_synced, fail_journals, mixed, subsets, sync_journals
from tests.model.maps import CLEAN, DIRTY, FREE, SAVED, TO_SAVE, Image
from tests.model.state import (
    ALL_SYNCED,
    BEGUN,
    CHECKPOINTS,
    COMMITTED,
    COPIED,
    COPYING,
    DATA_SYNCED,
    FAILED,
    FAULTS,
    FLUSHES,
    FULLS,
    LOGGED,
    SAVER_DATA,
    SAVER_FAILED,
    SAVER_SYNCED,
    STOPPED,
    JournalFile,
    Log,
    Meta,
    Round,
    Saver,
    State,
    spend,
)

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def sync_data(s: State) -> State:
    return s._replace(medium=mixed(s.medium, s.cache, s.dirty), dirty=0)


def fail_data(s: State) -> list[State]:
    """What a failed sync of the data may leave."""
    parts = [part for part in subsets(s.dirty) if part != s.dirty]
    budget = spend(s.budget, FAULTS)
    return [s._replace(medium=mixed(s.medium, s.cache, part), dirty=0, budget=budget) for part in parts]


def files_to_sync(log: Log) -> int:
    """``Journal.files_to_sync``, as bits."""
    return (log.last_seq[0] > log.synced_seq) | (log.last_seq[1] > log.synced_seq) << 1


# ---------------------------------------------------------------------------------------------------- flush rounds


def begin_round(m: Model, s: State, out: Steps) -> None:
    if s.round or not s.budget[FLUSHES] or s.log.next_seq - 1 <= s.log.synced_seq:
        return
    files = 1 << (s.log.epoch & 1) if m.broken == rules.ONE_JOURNAL else files_to_sync(s.log)
    begun = Round(BEGUN, s.log.next_seq - 1, files, len(s.history) - 1)
    out.append(("a flush round begins", s._replace(round=begun, budget=spend(s.budget, FLUSHES))))


def finish_round(m: Model, s: State, out: Steps) -> None:
    """``FlushRounds._finish``."""
    round_ = s.round
    if not round_ or round_.stage not in (ALL_SYNCED, FAILED):
        return
    if s.latch or round_.stage == FAILED:
        out.append(("the round failed: fail-stop", s._replace(mode=STOPPED, latch=True, round=None)))
        return
    seq = s.log.next_seq - 1 if m.broken == rules.SEQ_AT_END else round_.seq
    finished = s._replace(
        log=s.log._replace(synced_seq=max(s.log.synced_seq, seq)),
        round=None,
        history=s.history[round_.target :],
        must=max(s.must - round_.target, 0) if s.must >= 0 else -1,
    )
    out.append(("the round ends: flush answered", finished))


def round_syncs(m: Model, s: State, out: Steps) -> None:
    round_ = s.round
    held = s.saver and SAVER_DATA <= s.saver.stage <= LOGGED and s.saver.stage != SAVER_SYNCED
    if s.latch and round_.stage in (BEGUN, DATA_SYNCED):
        out.append(("the gate refuses the round", s._replace(round=round_._replace(stage=FAILED))))
    elif round_.stage == BEGUN and not held:
        _round_syncs_data(m, s, out)
    elif round_.stage == DATA_SYNCED:
        ended = s._replace(round=round_._replace(stage=ALL_SYNCED))
        if m.broken == rules.JOURNAL_FIRST:
            out.append(("the round syncs the data", sync_data(ended)))
            return
        out.append(("the round syncs the journals", ended._replace(files=sync_journals(s, round_.files))))
        if s.budget[FAULTS]:
            budget = spend(s.budget, FAULTS)
            for files in fail_journals(s, round_.files):
                broken = _round_failed(m, s._replace(files=files, budget=budget, must=-1), ALL_SYNCED)
                out.append(("the round's sync of a journal fails", broken))


def _round_syncs_data(m: Model, s: State, out: Steps) -> None:
    done = s._replace(round=s.round._replace(stage=DATA_SYNCED))
    if m.broken == rules.JOURNAL_ONLY:
        out.append(("the round leaves the data for later", done))
        return
    if m.broken == rules.JOURNAL_FIRST:
        out.append(("the round syncs the journals", done._replace(files=sync_journals(s, s.round.files))))
        return
    out.append(("the round syncs the data", sync_data(done)))
    if s.budget[FAULTS]:
        out += [("the round's sync of the data fails", _round_failed(m, t, DATA_SYNCED)) for t in fail_data(s)]


def _round_failed(m: Model, s: State, if_retried: int) -> State:
    if m.broken == rules.SYNC_RETRIED:
        return s._replace(round=s.round._replace(stage=if_retried))
    return s._replace(round=s.round._replace(stage=FAILED), latch=m.broken != rules.LATCH_OWN)


# ---------------------------------------------------------------------------------------------------- checkpoints


def begin_checkpoint(m: Model, s: State, out: Steps) -> None:
    """``Checkpointer._begin``: switch, unless an attempt failed after its own; then the image, as of now."""
    again = s.saver is not None and m.broken == rules.TWO_SWITCHES
    if not s.budget[CHECKPOINTS] or (s.saver and not again):
        return
    log, files = s.log, s.files
    if not log.previous_live or again or m.broken == rules.TWO_SWITCHES:
        log = log._replace(epoch=log.epoch + 1, position=0, previous_live=True)
        files = _without_old(m, s, log.epoch & 1)
    world, nodes = m.maps.switch(s.world)
    image = _image(m, s, log, m.maps.without(m.maps.images.items[s.meta.cache].nodes, s.gone))
    room = s.room._replace(sealed=s.room.sealed | s.room.pending, pending=0)
    if m.broken == rules.FREE_AT_SWITCH:
        room = room._replace(free=room.free | room.sealed, sealed=0)
    begun = s._replace(
        files=files,
        world=world,
        log=log,
        room=room,
        saver=Saver(COPYING, image, nodes, s.gone),
        kept=sweeping.keep(m, s, log.epoch),
        gone=0,
        budget=spend(s.budget, CHECKPOINTS),
    )
    out.append(("switch: a checkpoint begins", begun))


def _image(m: Model, s: State, log: Log, nodes: tuple[object, ...]) -> int:
    world = m.maps.worlds.items[s.world]
    superblock = log.epoch, log.chain, log.next_seq, world.generation, world.next_map, s.room.high
    boot = m.maps.images.items[s.meta.cache].boot
    return m.maps.images(Image(*superblock, boot, world.maps, nodes))


def _without_old(m: Model, s: State, at: int) -> tuple[JournalFile, JournalFile]:
    """The recycled file, its batches forgotten when no replay could look at them: their epoch is too old."""
    epoch = m.maps.images.items[s.meta.medium].epoch
    old = all(m.batches.items[batch].epoch < epoch for batch in s.files[at].cache if batch)
    file = JournalFile() if old else s.files[at]
    return (file, s.files[1]) if at == 0 else (s.files[0], file)


def saver_on_loop(m: Model, s: State, out: Steps) -> None:
    """The loop's part: a slice of the copy, the end, and giving up when the host is full."""
    saver = s.saver
    if saver.stage == COPYING:
        world, row = m.maps.copy_one(s.world)
        if row is not None:
            image = m.maps.with_rows(saver.image, (row,))
            out.append(("a node is copied into the image", s._replace(world=world, saver=saver._replace(image=image))))
        else:
            files = files_to_sync(s.log)
            if m.broken == rules.FUZZY_NODES:  # as the design has it; the code's sync of both hides the breach
                files &= 1 << (s.log.epoch & 1 ^ 1)
            copied = saver._replace(stage=COPIED, files=files)
            out.append(("all nodes are copied", s._replace(saver=copied)))
    elif saver.stage == COMMITTED:
        _finish_checkpoint(m, s, out)
    elif saver.stage == SAVER_FAILED:
        out.append(("the checkpoint failed: fail-stop", s._replace(mode=STOPPED, latch=True, saver=None)))
    if saver.stage in (COPYING, SAVER_SYNCED) and s.budget[FULLS]:
        _take_back(m, s, out)


def _finish_checkpoint(m: Model, s: State, out: Steps) -> None:
    """``Checkpointer._finish``: what the image no longer needs may be used again."""
    if s.latch:
        out.append(("committed, but the gate has failed: fail-stop", s._replace(mode=STOPPED, saver=None)))
        return
    world = m.maps.set_state(s.world, s.saver.nodes, CLEAN, (SAVED,))
    finished = s._replace(
        world=m.maps.set_state(world, s.saver.gone, FREE),
        log=s.log._replace(previous_live=False),
        saver=None,
        kept=sweeping.without_old(s, m.maps.images.items[s.saver.image].epoch),
    )
    out.append(("the checkpoint ends: frees released", freeing.release(m, finished)))


def _take_back(m: Model, s: State, out: Steps) -> None:
    """``Checkpointer._take_back`` (SQLITE_FULL): nothing was committed, all of it is dirty again."""
    states = (TO_SAVE,) if m.broken == rules.SAVED_NOT_TAKEN_BACK else (SAVED, TO_SAVE)
    world = m.maps.set_state(s.world, s.saver.nodes, DIRTY, states)
    again = s._replace(world=world, saver=None, gone=s.gone | s.saver.gone, budget=spend(s.budget, FULLS))
    out.append(("the host is full: the checkpoint is given up", again))


def saver_syncs(m: Model, s: State, out: Steps) -> None:
    """The helper thread's part."""
    saver = s.saver
    held = s.round and s.round.stage == DATA_SYNCED
    if s.latch and COPIED <= saver.stage <= SAVER_SYNCED:
        out.append(("the gate refuses the checkpoint", s._replace(saver=saver._replace(stage=SAVER_FAILED))))
    elif saver.stage == COPIED and not held:
        done = s._replace(saver=saver._replace(stage=SAVER_DATA))
        synced = done if m.broken == rules.COMMIT_UNSYNCED else sync_data(done)
        out.append(("the checkpoint syncs the data", synced))
        if s.budget[FAULTS]:
            out += [("the checkpoint's sync of the data fails", _saver_failed(m, t, SAVER_DATA)) for t in fail_data(s)]
    elif saver.stage == SAVER_DATA:
        done = s._replace(saver=saver._replace(stage=SAVER_SYNCED), files=sync_journals(s, saver.files))
        out.append(("the checkpoint syncs the journals", done))
        if s.budget[FAULTS]:
            for files in fail_journals(s, saver.files):
                failed = s._replace(files=files, must=-1, budget=spend(s.budget, FAULTS))
                out.append(("the checkpoint's sync of a journal fails", _saver_failed(m, failed, SAVER_SYNCED)))
    elif saver.stage == SAVER_SYNCED and not held:
        _log_commit(m, s, out)
    elif saver.stage == LOGGED:
        done = s._replace(saver=saver._replace(stage=COMMITTED), meta=commit_synced(s.meta))
        out.append(("COMMIT: the log is synced", done))
        if s.budget[FAULTS]:
            hole = s._replace(meta=s.meta._replace(dirty=False, hole=True), budget=spend(s.budget, FAULTS))
            out.append(("COMMIT: the sync of the log fails", _saver_failed(m, hole, COMMITTED)))


def _saver_failed(m: Model, s: State, if_retried: int) -> State:
    if m.broken == rules.SYNC_RETRIED:
        return s._replace(saver=s.saver._replace(stage=if_retried))
    return s._replace(saver=s.saver._replace(stage=SAVER_FAILED), latch=m.broken != rules.LATCH_OWN)


def _log_commit(m: Model, s: State, out: Steps) -> None:
    image = s.saver.image
    old: Image = m.maps.images.items[image]
    if m.broken == rules.FUZZY_ROOTS:
        rows = tuple(sorted({row[0]: row for row in (*m.maps.rows(s.world), *old.nodes)}.values()))
        world = m.maps.worlds.items[s.world]
        image = m.maps.images(old._replace(roots=world.maps, generation=world.generation, nodes=rows))
    elif m.broken == rules.SEED_AT_COMMIT:
        image = m.maps.images(old._replace(seed=s.log.chain, next_seq=s.log.next_seq))
    meta = Meta(s.meta.medium, image, dirty=True, hole=s.meta.hole)
    logged = s._replace(saver=s.saver._replace(stage=LOGGED, image=image), meta=meta)
    out.append(("COMMIT: the image is in the log", logged))
