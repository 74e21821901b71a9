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
FREE_NOW = "a private block that is dropped is allocatable at once"
ONE_LIST = "pending frees before and after the switch in one list"
SWITCH_IN_BATCH = "an image that a sweep reads begins between data write and append"
SWEEP_FINDS_PENDING = "pending blocks not kept with what is unavailable"
UNAVAILABLE_AT_END = "what is unavailable is taken when a sweep ends"
SWEEP_OTHER_EPOCH = "a sweep's result set against another epoch's unavailable blocks"
KEPT_ON = "what was kept for one sweep serves the next"
KEPT_DURING = "what was kept during one sweep serves the next"
KEPT_AT_SWITCH = "what is unavailable is not kept anew when an image begins without a switch"
SWEEP_UNCOMMITTED = "a sweep reads an image that is not durable"
SWEEP_LIVE_ONLY = "a sweep marks volumes and forgets snapshots"
IDS_REUSED_NOW = "node ids reused before a commit"
BIT_COPIED = "private bits copied with their leaf"
BIT_IN_FROZEN = "a write believes the private bit that it read before the copy-on-write"
BIT_IN_FROZEN_TRIM = "a trim believes the private bit that it read before the copy-on-write"
BIT_IN_FROZEN_DROP = "a whole-leaf trim believes the private bits of a frozen leaf"
BIT_IN_DELETED = "a deletion believes the private bits of its frozen leaves"
PIN_UNSEEN_BY_COMMIT = "a commit releases what was freed since a pin began"
PIN_UNSEEN_BY_SWEEP = "a sweep's result applied under a pin older than its image"
SAVED_STAYS = "a leaf changed since it was copied counts as saved at the commit"
SAVED_NOT_TAKEN_BACK = "leaves copied into an image that was given up count as saved"
SAVED_EVICTED = "a leaf copied into an uncommitted image is evicted"
ABSENT_READ = "a read believes an absent leaf to be empty"
ABSENT_WRITTEN = "a write believes an absent leaf to be empty"
LOADED_STATE = "a loaded row taken in though its leaf is no longer absent"
EVICTED_LOADING = "a leaf evicted while a row of it that was read before is on its way"
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
REPLAY_FREES = "what replay frees is given to the allocator, and the opening sweep finds it too"
HIGH_WATER_OLD = "high_water without the replayed records"
JOURNAL_WIPED = "journals wiped before recovery's commit"
SERVE_EARLY = "serving before recovery's commit is durable"

EPOCH_ALONE = "epoch + 1 after recovery, with a new seed"
SEED_ALONE = "the old chain after recovery, with epoch + 2"
CHAIN_UNCHECKED = "prev_crc not looked at"
DROPPED_FREES = "deletion and rollback free the private blocks of a leaf that was writable in place"
REPLAY_FREES_KEPT = "what replay frees is given to the allocator, and kept from the opening sweep"
LOADED_BORN = "born of a loaded row not compared"
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
    FREE_NOW: "What the private bit frees goes to the pending frees.",
    ONE_LIST: "Frees made before and after a switch are two lists.",
    SWITCH_IN_BATCH: "Nothing is allocated but unapplied when what is unavailable is kept: at a tick boundary.",
    SWEEP_FINDS_PENDING: "Unavailable is what is free, and what is pending or sealed.",
    UNAVAILABLE_AT_END: "Candidates are minus what was unavailable when the image was begun.",
    SWEEP_OTHER_EPOCH: "A result for an epoch whose unavailable blocks were not kept is discarded.",
    KEPT_ON: "What was kept serves one sweep.",
    KEPT_DURING: "What was kept before a result was applied does not know what that released: it serves no sweep.",
    KEPT_AT_SWITCH: "Kept anew for each image that is begun, also within the journal of one that was given up.",
    SWEEP_UNCOMMITTED: "The helper sees a committed, hence durable, image.",
    SWEEP_LIVE_ONLY: "Marks all blocks of all leaves that any root reaches.",
    IDS_REUSED_NOW: "A node id becomes allocatable only when a checkpoint whose switch came after ... has committed.",
    BIT_COPIED: "Copy-on-write of a leaf clears the bit on every entry of the copy.",
    BIT_IN_FROZEN: "The bit counts only in a leaf that is writable in place, read after its copy-on-write.",
    BIT_IN_FROZEN_TRIM: "A trim in a frozen leaf frees nothing.",
    BIT_IN_FROZEN_DROP: "A whole leaf trimmed away frees its private entries only if it was writable in place.",
    BIT_IN_DELETED: "Deletion of a map frees nothing: the sweep finds it.",
    PIN_UNSEEN_BY_COMMIT: "Nothing freed since a pin began is released while it exists.",
    PIN_UNSEEN_BY_SWEEP: "While a pin older than the image exists, a sweep's result is not applied.",
    SAVED_STAYS: "A saved leaf that changes is dirty; at the commit what is still saved becomes clean.",
    SAVED_NOT_TAKEN_BACK: "Except SQLITE_FULL: nodes stay dirty until COMMIT returned.",
    SAVED_EVICTED: "Only a clean leaf of a committed image may be evicted.",
    ABSENT_READ: "An empty entry is believed only where leaf and page are not absent.",
    ABSENT_WRITTEN: "A write whose leaf is absent waits until it is loaded.",
    LOADED_STATE: "A row is taken in only if the leaf is still absent.",
    EVICTED_LOADING: "No leaf becomes absent while a row of it is on its way.",
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
    REPLAY_FREES: "Replay does the same map changes and ignores the frees: the opening sweep returns them.",
    HIGH_WATER_OLD: "high_water = max(stored, every block named by a replayed record).",
    JOURNAL_WIPED: "Journals are not touched before it commits.",
    SERVE_EARLY: "It commits; then serve.",
}

BACKED_UP = {
    EPOCH_ALONE: "no batch has the new seed as prev_crc",
    SEED_ALONE: "no batch has the new epoch",
    CHAIN_UNCHECKED: "epoch and seq say the same as long as no epoch is used twice",
    DROPPED_FREES: "a leaf that is writable in place is reached by one map only",
    REPLAY_FREES_KEPT: "nothing is allocated before recovery's own commit",
    LOADED_BORN: "a leaf that stayed absent since its row was read is the same leaf",
    JOURNAL_FIRST: "replay checks the data of every batch above synced_seq",
}
"""Rules that no breach of them alone was seen to need, and what stands behind each: two together do lose data."""
