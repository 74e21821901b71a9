"""Which scope shows each broken rule, and the scopes in which the rules as they are must show nothing.

A tooth's scope is the smallest in which its counterexample was found: every one of them is also explored unbroken.
"""

from __future__ import annotations

from tests.model import rules
from tests.model.state import Scope

_TAIL = Scope(writes=2, kills=1, cuts=1)
_FLUSH = Scope(writes=2, flushes=1, cuts=1)
_TOLD = Scope(writes=3, flushes=1, cuts=1)
_SWITCH = Scope(writes=2, checkpoints=1, kills=1)
_SWITCH_FLUSH = Scope(writes=2, checkpoints=1, flushes=1, cuts=1)
_IMAGE = Scope(writes=2, checkpoints=1, cuts=1)
_TWO_IMAGES = Scope(writes=2, checkpoints=2, kills=1)
_FAULT = Scope(writes=1, flushes=1, faults=1, kills=1, cuts=1)
_TWO_SYNCS = Scope(writes=1, flushes=1, checkpoints=1, faults=1, cuts=1)
_FULL = Scope(writes=2, checkpoints=2, fulls=1, kills=1, cuts=1)
_REUSE = Scope(grains=1, writes=3, checkpoints=2)
_SWEEP = Scope(grains=1, writes=2, checkpoints=1, sweeps=1)
_SWEEPS = Scope(grains=1, writes=2, drops=1, checkpoints=2, sweeps=2)
_ROLLED_BACK = Scope(grains=1, writes=2, checkpoints=1, sweeps=1, snapshots=1, rollbacks=1)
_COPIED = Scope(writes=3, snapshots=1)
_FROZEN = Scope(grains=1, writes=2, trims=1, drops=1, snapshots=1, deletes=1)
_REPLAYED = Scope(grains=1, writes=3, sweeps=1, kills=1)
_PINNED = Scope(grains=1, writes=3, checkpoints=2, pins=1)
_ABSENT = Scope(writes=2, checkpoints=1, evictions=1, loads=1)
_LOADS = Scope(grains=1, writes=2, checkpoints=1, evictions=1, loads=2)
_SNAPSHOT = Scope(volumes=2, grains=1, writes=1, snapshots=1, kills=1)
_PERMIT = Scope(writes=2, revokes=1, lost_appends=1, kills=1)
_TWO_CRASHES = Scope(writes=2, kills=1, cuts=1)
_LIVES = Scope(writes=2, checkpoints=1, kills=1, cuts=2)
_AFTER = Scope(writes=3, kills=1)

TEETH = {
    rules.ACK_FIRST: _TAIL,
    rules.SWITCH_BEFORE_APPLY: _SWITCH,
    rules.REVOKE_BEHIND_CHECK: _PERMIT,
    rules.ABORT_SURE: _PERMIT,
    rules.READ_UNDECIDED: _PERMIT,
    rules.SNAPSHOT_IN_TWO: _SNAPSHOT,
    rules.ONE_JOURNAL: _SWITCH_FLUSH,
    rules.JOURNAL_ONLY: _FLUSH,
    rules.SEQ_AT_END: _TOLD,
    rules.SYNC_RETRIED: _FAULT,
    rules.LATCH_OWN: _TWO_SYNCS,
    rules.COMMIT_UNSYNCED: _IMAGE,
    rules.FUZZY_NODES: Scope(grains=1, writes=2, checkpoints=1, cuts=1),
    rules.FUZZY_ROOTS: Scope(writes=2, checkpoints=1, snapshots=1, kills=1),
    rules.SEED_AT_COMMIT: _SWITCH,
    rules.TWO_SWITCHES: _TWO_IMAGES,
    rules.FREE_AT_SWITCH: _REUSE,
    rules.FREE_NOW: _REUSE,
    rules.ONE_LIST: _REUSE,
    rules.SWITCH_IN_BATCH: _SWEEP,
    rules.SWEEP_FINDS_PENDING: _SWEEP,
    rules.UNAVAILABLE_AT_END: _SWEEP,
    rules.SWEEP_OTHER_EPOCH: _SWEEP,
    rules.KEPT_ON: _SWEEPS,
    rules.KEPT_DURING: _SWEEPS,
    rules.KEPT_AT_SWITCH: Scope(grains=1, writes=2, checkpoints=2, fulls=1, sweeps=1),
    rules.SWEEP_UNCOMMITTED: _ROLLED_BACK,
    rules.SWEEP_LIVE_ONLY: Scope(grains=1, writes=2, checkpoints=1, sweeps=1, snapshots=1),
    rules.IDS_REUSED_NOW: Scope(grains=1, leaves=1, writes=2, drops=1, checkpoints=1, sweeps=1, kills=1),
    rules.BIT_COPIED: _COPIED,
    rules.BIT_IN_FROZEN: _FROZEN,
    rules.BIT_IN_FROZEN_TRIM: _FROZEN,
    rules.BIT_IN_FROZEN_DROP: _FROZEN,
    rules.BIT_IN_DELETED: _FROZEN,
    rules.PIN_UNSEEN_BY_COMMIT: _PINNED,
    rules.PIN_UNSEEN_BY_SWEEP: Scope(grains=1, writes=1, checkpoints=1, sweeps=1, pins=1, snapshots=1, rollbacks=1),
    rules.SAVED_STAYS: Scope(grains=1, writes=2, checkpoints=2, kills=1),
    rules.SAVED_NOT_TAKEN_BACK: Scope(grains=1, writes=1, checkpoints=2, fulls=1, kills=1),
    rules.SAVED_EVICTED: _ABSENT,
    rules.ABSENT_READ: _ABSENT,
    rules.ABSENT_WRITTEN: _ABSENT,
    rules.LOADED_STATE: _LOADS,
    rules.EVICTED_LOADING: Scope(grains=1, writes=2, checkpoints=2, evictions=2, loads=2),
    rules.SOURCE_NOT_AGED: Scope(writes=2, snapshots=1),
    rules.GENERATION_LOST: Scope(writes=2, snapshots=2, kills=1, leaves=4),
    rules.REPLAY_LATE: _AFTER,
    rules.REPLAY_UNCHECKED: _IMAGE,
    rules.REPLAY_HOLES: _IMAGE,
    rules.REFUSE_ANY_TAIL: _IMAGE,
    rules.NO_REREAD: _FAULT,
    rules.NOT_REWRITTEN: _FAULT,
    rules.RESCUE_UNSYNCED: _FAULT,
    rules.READ_CACHE: _FAULT,
    rules.WAL_AS_IS: Scope(writes=1, flushes=1, checkpoints=1, faults=1, kills=1, cuts=1),
    rules.BOOT_EARLY: _TWO_CRASHES,
    rules.NEXT_EPOCH: Scope(writes=2, checkpoints=1, kills=1, cuts=1),
    rules.REPLAY_FREES: _REPLAYED,
    rules.HIGH_WATER_OLD: _AFTER,
    rules.JOURNAL_WIPED: Scope(writes=1, kills=2),
    rules.SERVE_EARLY: _TWO_CRASHES,
}

WHOLE = {
    "durability": Scope(writes=2, flushes=1, checkpoints=1, kills=1, cuts=1),
    "telling": Scope(writes=2, trims=1, flushes=1, tells=1, cuts=1),
    "failed syncs": Scope(writes=1, flushes=1, checkpoints=1, faults=1, lost_appends=1, kills=2, cuts=1),
    "full host": Scope(writes=2, flushes=1, checkpoints=2, fulls=1, cuts=1),
    "private bits": Scope(writes=2, trims=1, checkpoints=1, snapshots=1),
    "private frees": Scope(grains=1, writes=3, checkpoints=1, kills=1, cuts=1),
    "reuse": Scope(grains=1, writes=3, sweeps=1, kills=1, cuts=1),
    "sweeps": Scope(grains=1, writes=2, checkpoints=1, sweeps=1, snapshots=1, rollbacks=1, kills=1),
    "residency": Scope(writes=2, checkpoints=2, fulls=1, evictions=2, loads=2, kills=1),
    "pins": Scope(grains=1, writes=3, checkpoints=2, sweeps=1, pins=1),
    "snapshots": Scope(volumes=2, grains=1, writes=2, checkpoints=1, snapshots=1, deletes=1, cuts=1),
    "rollback": Scope(grains=1, writes=2, sweeps=1, snapshots=1, deletes=1, rollbacks=1, kills=1),
    "permits": Scope(writes=2, flushes=1, revokes=1, lost_appends=1, kills=1, cuts=1),
}
"""What the whole protocol is explored in: all interleavings of so many events. The soak takes ``WIDER``."""

WIDER = {
    "durability": Scope(writes=3, trims=1, flushes=2, tells=1, checkpoints=1, kills=1, cuts=1),
    "two checkpoints": Scope(writes=2, flushes=2, checkpoints=2, kills=1, cuts=2),
    "failed syncs": Scope(writes=2, flushes=2, checkpoints=1, faults=2, lost_appends=1, kills=2, cuts=1),
    "full host": Scope(writes=3, flushes=1, checkpoints=3, fulls=1, sweeps=1, kills=1, cuts=1),
    "private bits": Scope(blocks=5, writes=3, trims=1, drops=1, checkpoints=1, snapshots=1, deletes=1, kills=1),
    "private frees": Scope(grains=1, blocks=5, writes=4, drops=1, flushes=1, checkpoints=2, kills=1, cuts=1),
    "reuse": Scope(writes=4, blocks=5, trims=1, checkpoints=2, sweeps=2, kills=1, cuts=1),
    "sweeps": Scope(
        grains=1, writes=3, checkpoints=3, fulls=1, sweeps=2, snapshots=1, deletes=1, rollbacks=1, kills=1, cuts=1
    ),
    "residency": Scope(
        writes=3, trims=1, drops=1, checkpoints=2, fulls=1, sweeps=1, evictions=2, loads=3, snapshots=1, kills=1
    ),
    "pins": Scope(grains=1, writes=3, drops=1, checkpoints=2, sweeps=1, pins=2, snapshots=1, rollbacks=1),
    "snapshots": Scope(
        volumes=2,
        grains=1,
        blocks=5,
        leaves=4,
        writes=3,
        checkpoints=1,
        sweeps=1,
        snapshots=1,
        deletes=1,
        kills=1,
        cuts=1,
    ),
    "rollback": Scope(
        blocks=5, leaves=5, writes=3, flushes=1, checkpoints=2, sweeps=1, snapshots=2, deletes=1, rollbacks=1, kills=1
    ),
    "permits": Scope(writes=3, flushes=1, checkpoints=1, revokes=2, lost_appends=1, kills=1, cuts=1),
}

BACKED_UP = {
    rules.EPOCH_ALONE: _LIVES,
    rules.SEED_ALONE: _LIVES,
    rules.CHAIN_UNCHECKED: _LIVES,
    rules.DROPPED_FREES: _ROLLED_BACK,
    rules.REPLAY_FREES_KEPT: _REPLAYED,
    rules.LOADED_BORN: Scope(grains=1, leaves=1, writes=2, drops=1, checkpoints=3, sweeps=1, evictions=1, loads=2),
    rules.JOURNAL_FIRST: Scope(writes=3, flushes=2, cuts=1),
}
"""Where a breach of these alone is seen to do nothing."""
