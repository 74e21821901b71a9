"""The rules that can be broken, one at a time: each name stands at the step of the model that it changes.

``SENTENCES`` gives, for each, the sentence of the store's rules that the broken step no longer obeys.
"""

from __future__ import annotations

ACK_FIRST = "acknowledge before append"
SWITCH_BEFORE_APPLY = "switch between append and apply"
REVOKE_BEHIND_CHECK = "permit revoked behind its check"
ABORT_SURE = "abort answered though the append is undecided"
READ_UNDECIDED = "read of an undecided grain answers the old data"
SNAPSHOT_IN_TWO = "a batch for each volume of a group snapshot"
ONE_JOURNAL = "only the current journal synced just after a switch"
JOURNAL_ONLY = "flush answered between the journal's sync and the data's"
SEQ_AT_END = "synced_seq is what was appended when the round ends"
SYNC_RETRIED = "fdatasync failure retried"
LATCH_OWN = "a failed sync is known only to whom it failed for"
COMMIT_UNSYNCED = "image committed before fdatasync(data)"
FUZZY_NODES = "no copy-aside: an image holds what nodes are at their turn"
FUZZY_ROOTS = "roots copied at the commit"
SEED_AT_COMMIT = "chain_seed and next_seq as of the commit"
TWO_SWITCHES = "switch again while the checkpoint is uncommitted"
FREE_AT_SWITCH = "frees released at the switch"
ONE_LIST = "pending frees before and after the switch in one list"
SWEEP_FREES_NOW = "what a sweep finds is allocatable at once"
SWEEP_TAKES_NEW = "a sweep frees what was allocated since it began"
SWEEP_FREES_TWICE = "a sweep finds pending blocks again"
SWEEP_IN_BATCH = "a sweep begins between data write and apply"
SWEEP_WALKS_MAPS = "a sweep reads each map as it is at its turn"
SWEEP_LIVE_ONLY = "a sweep marks volumes and forgets snapshots"
IDS_REUSED_NOW = "node ids reused before a commit"
SOURCE_NOT_AGED = "a snapshot does not raise its source's generation"
GENERATION_LOST = "generation not in the image"
REPLAY_LATE = "replay starts at ckpt_epoch + 1"
REPLAY_UNCHECKED = "data of unsynced batches not checked"
REPLAY_HOLES = "replay goes on behind a batch whose data is missing"
REFUSE_ANY_TAIL = "any intact batch behind a bad one is refused"
NO_REREAD = "no buffered re-read on the same boot"
NOT_REWRITTEN = "what only the cache has is not written again"
RESCUE_UNSYNCED = "what was written again is not synced before the commit"
READ_CACHE = "journals and data read through the cache"
WAL_AS_IS = "meta.db-wal not rewritten"
BOOT_EARLY = "boot_id written before recovery's checkpoint"
NEXT_EPOCH = "epoch + 1 and the old chain after recovery"
HIGH_WATER_OLD = "high_water without the replayed records"
JOURNAL_WIPED = "journals wiped before recovery's commit"
SERVE_EARLY = "serving before recovery's commit is durable"

EPOCH_ALONE = "epoch + 1 after recovery, with a new seed"
SEED_ALONE = "the old chain after recovery, with epoch + 2"
CHAIN_UNCHECKED = "prev_crc not looked at"
JOURNAL_FIRST = "journal synced before data, flush answered behind both"

SENTENCES = {
    ACK_FIRST: "No ack before step 3.",
    SWITCH_BEFORE_APPLY: "Switch only at a tick boundary: every appended batch is applied.",
    REVOKE_BEHIND_CHECK: "Drop members whose permit was revoked meanwhile, form the batch.",
    ABORT_SURE: "A batch whose append failed is undecided until recovery: nothing that waits for it is answered.",
    READ_UNDECIDED: "Reads of its grains fail too (else old is read now and new after the restart).",
    SNAPSHOT_IN_TWO: "A group snapshot is one batch, hence atomic over its volumes.",
    ONE_JOURNAL: "fdatasync of every journal that holds unsynced batches <= S (just after a switch that is two).",
    JOURNAL_ONLY: "fdatasync(data); then fdatasync of every journal; then synced_seq = S; wake.",
    SEQ_AT_END: "Round: S = last seq appended; fdatasync(data); ... then synced_seq = S.",
    SYNC_RETRIED: "Any sync failure: the pool fail-stops. No retry.",
    LATCH_OWN: "A failure sets a latch under that lock, and nobody is woken and no commit starts with it set.",
    COMMIT_UNSYNCED: "3. fdatasync(data), fdatasync(journal N). 4. one SQLite transaction.",
    FUZZY_NODES: "A node about to be modified jumps the queue, so the image is exactly the switch point.",
    FUZZY_ROOTS: "Roots, catalogue, generation, next_seq and high_water are copied at the switch.",
    SEED_AT_COMMIT: "ckpt_epoch, chain_seed and next_seq, all as of its switch.",
    TWO_SWITCHES: "No second switch while a checkpoint is uncommitted.",
    FREE_AT_SWITCH: "Allocatable only when a checkpoint whose switch came after ... has committed.",
    ONE_LIST: "Frees made before and after a switch are two lists.",
    SWEEP_FREES_NOW: "What is found goes to the pending frees, never directly to the allocator.",
    SWEEP_TAKES_NEW: "The loop drops any candidate allocated since the sweep's point.",
    SWEEP_FREES_TWICE: "Candidates are minus blocks pending there.",
    SWEEP_IN_BATCH: "Candidates are minus blocks allocated but not yet applied.",
    SWEEP_WALKS_MAPS: "A reference never moves from a place that is still to be read to one that was.",
    SWEEP_LIVE_ONLY: "Marks every node reachable from every root.",
    IDS_REUSED_NOW: "A node id becomes allocatable only when a checkpoint whose switch came after ... has committed.",
    SOURCE_NOT_AGED: "Snapshot, clone and rollback store the generation in every volume whose nodes they share.",
    GENERATION_LOST: "Snapshot, clone and rollback bump the generation (persisted).",
    REPLAY_LATE: "Replay batches with epoch >= ckpt_epoch in seq order.",
    REPLAY_UNCHECKED: "For batches > S verify every data crc against the data file.",
    REPLAY_HOLES: "Stop at the first batch with a mismatch.",
    REFUSE_ANY_TAIL: "A valid header with a higher seq whose synced_seq >= the bad seq means corruption.",
    NO_REREAD: "If boot_id is this boot, a mismatch on disk is first read buffered.",
    NOT_REWRITTEN: "If that matches, write it again.",
    RESCUE_UNSYNCED: "Write it again and fdatasync before the own checkpoint.",
    READ_CACHE: "Read journals, and verify data, with O_DIRECT.",
    WAL_AS_IS: "Before SQLite opens: read meta.db-wal and write the same bytes back in place, fdatasync.",
    BOOT_EARLY: "Only recovery's own checkpoint writes this boot's boot_id.",
    NEXT_EPOCH: "Epoch = ckpt_epoch + 2 (no batch can have carried it), a new random seed.",
    HIGH_WATER_OLD: "high_water = max(stored, every block named by a replayed record).",
    JOURNAL_WIPED: "Journals are not touched before it commits.",
    SERVE_EARLY: "It commits; then serve.",
}

BACKED_UP = {
    EPOCH_ALONE: "no batch has the new seed as prev_crc",
    SEED_ALONE: "no batch has the new epoch",
    CHAIN_UNCHECKED: "epoch and seq say the same as long as no epoch is used twice",
    JOURNAL_FIRST: "replay checks the data of every batch above synced_seq",
}
"""Rules that no breach of them alone was seen to need, and what stands behind each: two together do lose data."""
