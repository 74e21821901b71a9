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
_REUSE = Scope(writes=3, checkpoints=2, sweeps=1)
_SWEEPS = Scope(grains=1, blocks=3, writes=3, checkpoints=1, sweeps=2)
_SWEEP = Scope(writes=1, sweeps=1)
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
    rules.ONE_LIST: _REUSE,
    rules.SWEEP_FREES_NOW: _REUSE,
    rules.SWEEP_TAKES_NEW: _SWEEP,
    rules.SWEEP_FREES_TWICE: _SWEEPS,
    rules.SWEEP_IN_BATCH: _SWEEP,
    rules.SWEEP_WALKS_MAPS: Scope(grains=1, writes=2, sweeps=1, snapshots=1, rollbacks=1, deletes=1),
    rules.SWEEP_LIVE_ONLY: Scope(grains=1, writes=2, sweeps=1, snapshots=1),
    rules.IDS_REUSED_NOW: Scope(grains=1, leaves=2, writes=3, sweeps=1, snapshots=2, deletes=1, kills=1),
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
    rules.HIGH_WATER_OLD: _AFTER,
    rules.JOURNAL_WIPED: Scope(writes=1, kills=2),
    rules.SERVE_EARLY: _TWO_CRASHES,
}

WHOLE = {
    "durability": Scope(writes=2, flushes=1, checkpoints=1, kills=1, cuts=1),
    "telling": Scope(writes=2, trims=1, flushes=1, tells=1, cuts=1),
    "failed syncs": Scope(writes=1, flushes=1, checkpoints=1, faults=1, lost_appends=1, kills=2, cuts=1),
    "full host": Scope(writes=2, flushes=1, checkpoints=2, fulls=1, cuts=1),
    "reuse": Scope(grains=1, writes=3, checkpoints=1, sweeps=1, kills=1),
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
    "reuse": Scope(writes=4, blocks=5, trims=1, checkpoints=2, sweeps=2, kills=1, cuts=1),
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
    rules.JOURNAL_FIRST: Scope(writes=3, flushes=2, cuts=1),
}
"""Where a breach of these alone is seen to do nothing."""
