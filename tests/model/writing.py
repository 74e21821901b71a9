"""The batch (``blockstore/writer.py``) and control operations (``pool.EnginePool.control``): write to answer.

One write or one control operation is one batch. The steps of a batch are one callback of the loop, so that only helper
threads and crashes come between them; a broken rule may let others in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.model import freeing, rules
from tests.model.disk import Batch, append
from tests.model.maps import Record, World
from tests.model.state import (
    APPENDED,
    APPLIED,
    DELETES,
    DROPS,
    JOINED,
    LOST_APPENDS,
    REVOKES,
    ROLLBACKS,
    SNAPSHOTS,
    STOPPED,
    TELLS,
    TRIMS,
    UNDECIDED,
    WRITES,
    WRITTEN,
    State,
    Write,
    bits,
    put,
    spend,
)

if TYPE_CHECKING:
    from tests.model.explore import Model, Steps


def begin(m: Model, s: State, out: Steps) -> None:
    """What a tick may begin with."""
    budget = s.budget
    if budget[WRITES] and s.room.free:
        first = budget[WRITES] == m.scope.writes  # volumes and grains are alike until one is written
        for volume in m.volumes[:1] if first else m.volumes:
            for grain in m.grains[:1] if first else m.grains:
                _join(m, s, out, volume, grain)
    world: World = m.maps.worlds.items[s.world]
    for volume in m.volumes:
        if budget[TRIMS] and _is_resident(m, s, volume):
            for grain in m.grains:
                _control(m, s, out, TRIMS, (("TRIM", volume, grain),))
        if budget[DROPS] and _is_resident(m, s, volume):
            _control(m, s, out, DROPS, (("DROP", volume),))
    if budget[SNAPSHOTS]:
        snaps = tuple(("SNAP", world.next_map + i, volume) for i, volume in enumerate(m.volumes))
        _control(m, s, out, SNAPSHOTS, snaps)
    taken = [number for number, _, _ in world.maps if number not in m.volumes]
    groups = [taken[i : i + len(m.volumes)] for i in range(0, len(taken), len(m.volumes))]
    for group in groups:
        if budget[DELETES]:
            _control(m, s, out, DELETES, tuple(("DELETE", number) for number in group))
        if budget[ROLLBACKS]:
            pairs = zip(m.volumes, group, strict=True)
            _control(m, s, out, ROLLBACKS, tuple(("ROLLBACK", volume, number) for volume, number in pairs))
    if budget[TELLS] and s.log.synced_seq > 0 and not s.round:
        batch = _append(m, s, ())
        out.append(("append an empty batch", batch._replace(budget=spend(budget, TELLS))))


def _is_resident(m: Model, s: State, volume: int) -> bool:
    """A precondition of forming the batch: what is not in memory is loaded first."""
    return m.broken == rules.ABSENT_WRITTEN or not m.maps.is_absent(s.world, volume)


def _join(m: Model, s: State, out: Steps, volume: int, grain: int) -> None:
    if not _is_resident(m, s, volume):
        return
    block = (s.room.free & -s.room.free).bit_length() - 1
    value = m.scope.writes - s.budget[WRITES] + 1
    record = "WRITE", volume, grain, block, value
    if m.maps.apply(s.world, (record,)) is None:
        return
    joined = s._replace(write=Write(JOINED, (record,)), budget=spend(s.budget, WRITES))
    if s.budget[REVOKES]:
        out.append((("write joins", volume, grain), joined))
    else:
        _write_data(m, joined, out)


def _control(m: Model, s: State, out: Steps, event: int, records: tuple[Record, ...]) -> None:
    if m.maps.apply(s.world, records) is not None:
        _append_batch(m, s._replace(write=Write(WRITTEN, records), budget=spend(s.budget, event)), out)


def go_on(m: Model, s: State, out: Steps) -> None:
    """The next step of the batch in hand."""
    write = s.write
    if write.stage == JOINED:
        _write_data(m, s, out)
        revoked = s._replace(write=None, budget=spend(s.budget, REVOKES))
        out.append(("permit revoked: the write is dropped, the abort answered", revoked))
    elif write.stage == WRITTEN:
        _append_batch(m, s, out)
        if m.broken == rules.REVOKE_BEHIND_CHECK and s.budget[REVOKES] and not write.told:
            told = s._replace(write=write._replace(told=True), budget=spend(s.budget, REVOKES))
            out.append(("permit revoked, the abort answered", told))
    elif write.stage == APPENDED:
        _apply(m, s, out)
    elif write.stage == APPLIED:
        must = len(s.history) - 1 if s.must >= 0 else -1
        out.append(("acknowledge", s._replace(write=None, must=must)))


def _write_data(m: Model, s: State, out: Steps) -> None:
    """``BatchWriter._write_data``: permits were read, blocks are taken."""
    record = s.write.records[0]
    block, value = record[3], record[4]
    live = m.maps.look(s.world, s.meta.medium)[2] | (s.pin.blocks if s.pin else 0)
    if live >> block & 1 or m.crashes.replayable(s, block):
        out.append((("allocate block", block), f"block {block} is live, or recovery may need it, and is written again"))
        return
    written = s._replace(
        cache=put(s.cache, block, value),
        dirty=s.dirty | 1 << block,
        room=s.room._replace(free=s.room.free & ~(1 << block), high=max(s.room.high, block + 1)),
        write=Write(WRITTEN, s.write.records),
    )
    if m.broken == rules.ACK_FIRST:
        history = (*s.history, m.maps.expect(s.history[-1], s.write.records))
        acknowledged = written._replace(history=history, must=len(history) - 1)
        written = acknowledged._replace(write=Write(WRITTEN, s.write.records, told=True))
    out.append((("write data of", *record), written))


def _append(m: Model, s: State, records: tuple[Any, ...]) -> State:
    """``Journal.append``."""
    log = s.log
    batch = m.batches(Batch(log.epoch, log.next_seq, log.synced_seq, log.chain, records))
    at = log.epoch & 1
    file = append(s.files[at], log.position, batch)
    last = (log.next_seq, log.last_seq[1]) if at == 0 else (log.last_seq[0], log.next_seq)
    return s._replace(
        files=(file, s.files[1]) if at == 0 else (s.files[0], file),
        log=log._replace(chain=batch, next_seq=log.next_seq + 1, position=log.position + 1, last_seq=last),
    )


def _append_batch(m: Model, s: State, out: Steps) -> None:
    records = s.write.records
    told = s.write.told
    if m.broken == rules.SNAPSHOT_IN_TWO and records[0][0] == "SNAP" and len(records) > 1:
        first = _append(m, s, records[:1])
        out.append((("append", *records[0]), first._replace(write=Write(WRITTEN, records[1:], told=True))))
        return
    appended = _append(m, s, records)
    if m.broken == rules.SNAPSHOT_IN_TWO and told:
        records, told = (("SNAP", records[0][1] - 1, m.volumes[0]), *records), False
    history = s.history if told else (*s.history, m.maps.expect(s.history[-1], records))
    out.append((("append", *records), appended._replace(write=Write(APPENDED, records), history=history)))
    if s.budget[LOST_APPENDS]:
        stopped = {"mode": STOPPED, "latch": True, "history": history, "write": Write(UNDECIDED, ())}
        budget = spend(s.budget, LOST_APPENDS)
        out.append(("append fails, its bytes are there", appended._replace(budget=budget, **stopped)))
        out.append(("append fails, its bytes are not there", s._replace(budget=budget, **stopped)))


def _apply(m: Model, s: State, out: Steps) -> None:
    """``BatchWriter._apply``, ``BlockMap.apply``: nodes that the image being made needs are copied aside."""
    world, aside, freed = m.maps.apply(s.world, s.write.records)
    saver = s.saver
    if aside:
        saver = saver._replace(image=m.maps.with_rows(saver.image, aside))
    applied = s._replace(world=world, saver=saver, write=s.write._replace(stage=APPLIED))
    out.append((("apply; freed: blocks", bits(freed)), freeing.free_later(m, applied, freed)))


def answer_undecided(m: Model, s: State, out: Steps) -> None:
    """``EnginePool.barrier``, ``EngineVolume._settle``: who waits for the batch, or reads its data, gets Undecided."""
    if s.write and s.write.stage == UNDECIDED and m.broken in (rules.ABORT_SURE, rules.READ_UNDECIDED):
        who = "the abort is answered" if m.broken == rules.ABORT_SURE else "a read returns the old data"
        out.append((who, s._replace(history=s.history[:-1], write=None)))
