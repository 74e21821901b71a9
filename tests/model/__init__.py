"""A model of the block store's protocol, explored state by state, next to the code that it mirrors.

What it is: the rules of ``blockstore`` with everything taken out that they do not need (bytes, sizes, time, SQLite),
as steps between small immutable states; and a search through every order of those steps, every crash and every set of
lost writes within small bounds. What it is not: a test of the code. When a rule of the store changes, the model
changes first. Run it wider with ``make soak NAME=model``.

State (``state.State``)     | the code
--------------------------- | ----------------------------------------------------------------------------------------
medium, cache, dirty        | ``data``: the value in each block on the medium and in the page cache
files                       | ``journal.0``, ``journal.1``: batches by position, on the medium and in the cache
meta                        | ``meta.db``: the committed image, on the medium and as SQLite sees its log
world                       | ``blockmap.BlockMap``: generation, maps, leaves with state and born, entries' private bits
log                         | ``journal.Journal``;  round: ``flush.FlushRounds``;  saver: ``saver.Checkpointer``
room, pin                   | ``space.Space`` with the allocator: free, pending, sealed, high water; what holds frees
sweep, kept                 | ``reclaim``: what the helper process read; what was unavailable at each image, by epoch
loads                       | ``residency``: rows on their way from ``meta.db``
write                       | ``writer.BatchWriter``: the batch of this tick
latch, mode                 | ``device.SyncGate.failure``, ``pool.EnginePool.reason``; or how far recovery is
history, must               | the oracle: what the maps held after each batch, and from where on a crash must leave it

Steps                       | the code
--------------------------- | ----------------------------------------------------------------------------------------
writing: write, append,     | ``BatchWriter._commit``: ``_write_data``, ``_append``, ``_apply``, ``_answer``; the permit
apply, acknowledge, revoke  | is read before the data is written, and no callback runs from there to the answer
writing: snapshots, ...     | ``EnginePool._control``: one batch over all volumes of the group
durability: rounds          | ``FlushRounds._start``, ``_finish``, the syncs in ``SyncGate.sync``
durability: checkpoints     | ``Checkpointer._begin``, ``_next_slice``, ``_commit``, ``_finish``, ``_take_back``
freeing                     | ``Space.free_later`` at the apply, ``release`` at the commit; pins (tokens, sends)
sweeping                    | ``reclaim``: keeping at ``Checkpointer._take_image``, the helper's reading, the result
residency                   | ``residency``: eviction, reading a row in a helper thread, taking it in on the loop
recovering                  | ``settle_database``, ``sync_before_reading``, ``replay``, ``_rescue``, ``finish``
disk                        | what a sync, a failed sync (pages called clean), a kill and a power cut leave

Invariants, in every state: the maps hold what the oracle's plain arithmetic says (so snapshots never change and groups
are atomic), absent leaves read from the committed image; no referenced block has another value than its checksum's;
none is free or pending; none is free twice; no block is taken that recovery or a pin could still need; no leaf is
retired twice. After a crash: recovery does not refuse, finds a state of the history that contains every flushed write
(after a kill: every acknowledged one), and its blocks are whole.

Teeth (``rules``, ``teeth``): rules broken one at a time. The search must find a counterexample for each.

Where the rules leave a choice, or the code differs from the design, the model says what it takes:
- A pin holds all that is mapped when it begins. What was freed since stays sealed while it exists; a commit after its
  end releases it. A sweep's result waits for the end of a pin that is older than the image it was read from.
- What was kept for sweeps is dropped when a result is applied, also what was kept since: an image begun before then
  does not know what the result released. What was kept for an image that was given up (SQLITE_FULL) is replaced when
  the next one begins, for that has the same epoch.
- No leaf is evicted while a row of it is on its way. "Still absent" then means "absent all the time"; that ``born``
  matches would not do, for it is the same after a change in place, and after a reuse of the id in one generation.
- The leaves of a pool just opened are absent if the scope has evictions, else loaded. Replay loads all of them.
- The permit is read before the data is written, not behind it: nothing else runs in between.
- A checkpoint begun again after SQLITE_FULL does not switch: its image begins within the current journal.
- A checkpoint syncs both journals where both hold unsynced batches. That hides a fuzzy node from recovery: the tooth
  for copy-aside syncs journal N only, as the design has it.
``rules.BACKED_UP``: rules of which no breach alone loses anything within the bounds, and what stands behind them.
Left out: pages (they obey the leaves' rules), catalogue, growth and punching of the data file, bit rot, COPY and REMAP.
"""
