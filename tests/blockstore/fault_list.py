"""The list of crashes and faults that the store must survive, and the tests of each.

``pytest -k rule_07`` (``rule_17d``) runs the tests of one item; ``test_fault_list.py`` proves that each item has some
and that they exist. An item names what happens; what must hold then is always the same: it opens or says why not,
``check`` finds nothing, nothing flushed is lost, nothing wrong is read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    what: str
    tests: tuple[str, ...]
    """Path under ``tests`` without the suffix, two colons, the function."""


FAULTS = {
    "01": Fault(
        "kill -9 before every I/O call of a mixed workload, and within writes",
        (
            "blockstore/test_kill_points::test_a_process_killed_at_any_io_call_loses_no_acknowledged_write",
            "blockstore/test_crash::test_a_killed_process_loses_no_acknowledged_write",
            "blockstore/test_engine::test_after_kill_9_every_acknowledged_write_is_there",
            "system/test_kill::test_every_acknowledged_write_survives_the_death_of_the_worker",
        ),
    ),
    "02": Fault(
        "power cut after every write, with subsets of the unsynced ones dropped",
        (
            "blockstore/test_crash::test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed",
            "blockstore/test_crash::test_the_judge_finds_out_a_disk_that_syncs_only_some_files",
        ),
    ),
    "03": Fault(
        "the last batch torn at every 512 bytes",
        ("blockstore/test_fault_cases::test_a_last_batch_torn_at_any_sector_is_no_batch",),
    ),
    "04": Fault(
        "the journal durable but the data not, and the reverse",
        (
            "blockstore/test_fault_cases::test_data_and_journal_become_durable_one_without_the_other",
            "blockstore/test_faults::test_after_another_boot_a_batch_without_its_data_ends_the_replay",
        ),
    ),
    "05": Fault(
        "crash at each step of a checkpoint, inside SQLite's commit and journal recycling; a flush after the switch",
        (
            "blockstore/test_sqlite_faults::test_a_cut_at_any_io_of_sqlite_finds_the_image_before_or_after",
            "blockstore/test_sqlite_faults::test_a_page_of_the_log_torn_at_every_sector_is_no_commit",
            "blockstore/test_fault_cases::test_a_flush_right_after_the_switch_covers_both_journals",
            "blockstore/test_journal::test_both_files_are_synced_after_a_switch_the_older_first",
            "blockstore/test_crash::test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed",
        ),
    ),
    "06": Fault(
        "crash during recovery, repeatedly",
        (
            "blockstore/test_crash::test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed",
            "blockstore/test_engine::test_recovering_again_and_again_changes_nothing",
            "blockstore/test_opening::test_a_creation_that_dies_at_any_step_is_begun_anew",
        ),
    ),
    "07": Fault(
        "a failing sync of data, of a journal, in SQLite: fail-stop; also after a restart on the same boot",
        (
            "blockstore/test_faults::test_after_a_failed_sync_nothing_is_acknowledged_any_more",
            "blockstore/test_faults::test_a_sync_write_whose_sync_fails_is_refused_and_a_later_success_means_nothing",
            "blockstore/test_sqlite_faults::test_an_error_inside_a_commit_stops_the_pool_and_loses_nothing",
            "blockstore/test_sqlite_faults::test_an_error_while_sqlite_copies_its_log_loses_nothing",
            "blockstore/test_sqlite_faults::test_whichever_sync_of_the_log_fails_nothing_flushed_is_lost",
            "blockstore/test_sqlite_faults::test_an_error_in_recoverys_own_commit_leaves_all_to_the_next_start",
        ),
    ),
    "08": Fault(
        "no space for data, journal, meta.db; UNMAP and deleting snapshots work when full",
        (
            "blockstore/test_faults::test_a_failed_data_write_changes_nothing_and_the_pool_goes_on",
            "blockstore/test_faults::test_a_full_host_makes_writes_fail_and_reads_and_unmap_go_on",
            "blockstore/test_fault_cases::test_a_journal_that_takes_nothing_or_a_part_stops_the_pool",
            "blockstore/test_sqlite_faults::test_a_full_host_inside_a_commit_changes_nothing_and_is_tried_again",
            "blockstore/test_full_host::test_a_pool_on_a_full_host_reads_unmaps_deletes_checkpoints_and_opens",
            "blockstore/test_full_host::test_a_checkpoint_of_many_nodes_finds_no_room_and_heals_when_there_is_some",
            "blockstore/test_opening::test_a_pool_on_a_full_host_opens_with_the_space_of_its_reserve",
        ),
    ),
    "09": Fault(
        "short writes and reads, EINTR, EAGAIN",
        (
            "blockstore/test_engine::test_short_writes_are_continued",
            "blockstore/test_fault_cases::test_reads_of_a_signal_ridden_host_are_whole",
            "blockstore/test_fault_cases::test_a_part_of_a_write_of_data_is_no_write",
            "blockstore/test_faults::test_a_cold_read_waits_in_a_helper_and_is_verified",
        ),
    ),
    "10": Fault(
        "bit rot and misdirected writes in each file; corruption of what was flushed is refused, not a torn tail",
        (
            "blockstore/test_faults::test_a_rotten_grain_is_a_medium_error_at_its_offset_and_its_neighbours_are_read",
            "blockstore/test_faults::test_corruption_of_a_flushed_batch_is_refused_and_not_taken_for_a_torn_tail",
            "blockstore/test_faults::test_a_rotten_tail_that_was_never_flushed_is_dropped",
            "blockstore/test_faults::test_check_names_the_rotten_grain",
            "blockstore/test_fault_cases::test_a_grain_that_was_written_elsewhere_is_a_medium_error_in_both_places",
            "blockstore/test_fault_cases::test_a_batch_that_was_written_elsewhere_is_not_replayed_there",
            "blockstore/test_fault_cases::test_a_node_of_the_database_that_is_not_its_own_is_refused",
            "blockstore/test_opening::test_a_damaged_node_is_a_medium_error_where_it_is_read",
        ),
    ),
    "11": Fault(
        "snapshot, clone, delete, rollback of groups racing writes, then a crash, compared with a model",
        (
            "blockstore/test_model::test_a_pool_behaves_like_its_model",
            "blockstore/test_crash::test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed",
            "blockstore/test_contract::test_a_snapshot_includes_what_joined_before_it",
        ),
    ),
    "12": Fault(
        "sweep and block reuse racing cold reads; no live block reused, no leak after a last sweep",
        (
            "blockstore/test_sweep_races::test_what_changes_during_a_sweep_keeps_its_blocks",
            "blockstore/test_engine::test_a_sweep_during_writes_and_verbs_frees_nothing_that_is_referenced",
            "blockstore/test_engine::test_used_follows_what_is_mapped_after_a_sweep",
            "blockstore/test_scrub::test_a_block_that_was_overwritten_while_it_was_read_is_no_error",
            "blockstore/test_fault_cases::test_a_cold_read_whose_block_is_freed_meanwhile_reads_what_it_looked_up",
        ),
    ),
    "13": Fault(
        "a block written, overwritten and reused between two checkpoints, then a crash",
        (
            "blockstore/test_engine::test_a_block_reused_between_two_checkpoints_costs_no_acknowledged_write",
            "blockstore/test_crash::test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed",
        ),
    ),
    "14": Fault(
        "two writes of 512 bytes into one grain in one tick; UNMAP and others meeting a pending grain",
        (
            "blockstore/test_contract::test_two_sector_writes_into_one_grain_in_one_tick_both_land",
            "blockstore/test_contract::test_the_last_of_two_writes_to_one_grain_in_one_tick_wins",
            "blockstore/test_contract::test_a_read_that_meets_a_pending_write_sees_it_committed",
            "blockstore/test_faults::test_a_ragged_write_meeting_something_else_while_its_grain_is_read",
        ),
    ),
    "15": Fault(
        "permits: no aborted, fenced or logged-out write lands after the answer",
        (
            "blockstore/test_contract::test_a_write_whose_permit_is_revoked_before_the_commit_never_lands",
            "blockstore/test_contract::test_a_revoked_discard_never_lands",
            "blockstore/test_faults::test_a_revoked_write_that_waits_for_space_never_lands",
            "blockstore/test_faults::test_a_revoked_write_is_not_there_after_a_crash_either",
            "system/test_permits::test_no_aborted_write_lands_after_the_answer",
            "system/test_permits::test_no_write_of_a_reinstated_session_lands_after_the_login",
        ),
    ),
    "16": Fault(
        "files of different pools, a stale journal, a second opener: refused",
        (
            "blockstore/test_faults::test_files_of_another_pool_are_refused",
            "blockstore/test_journal::test_a_stale_journal_of_an_older_epoch_is_not_replayed",
            "blockstore/test_engine::test_a_second_opener_is_refused",
        ),
    ),
    "17a": Fault(
        "switch, write, kill: the first batch of the new journal must replay",
        ("blockstore/test_engine::test_a_write_right_after_the_switch_survives_a_kill",),
    ),
    "17b": Fault(
        "a write in flight across switch, commit and sweep keeps its block",
        ("blockstore/test_fault_cases::test_a_write_in_flight_across_switch_commit_and_sweep_keeps_its_block",),
    ),
    "17c": Fault(
        "append, then switch before apply",
        ("blockstore/test_engine::test_a_write_that_joined_before_the_switch_is_in_the_image",),
    ),
    "17d": Fault(
        "failed sync of data, restart on the same boot, then power cut",
        ("blockstore/test_faults::test_a_block_that_only_the_cache_has_is_rescued_on_the_same_boot",),
    ),
    "17e": Fault(
        "failed sync inside SQLite's commit, restart on the same boot, then power cut",
        ("blockstore/test_sqlite_faults::test_a_failed_sync_in_a_commit_then_a_restart_then_a_power_cut",),
    ),
    "17f": Fault(
        "the saver's sync fails while the flusher's returns 0",
        ("blockstore/test_faults::test_a_failed_sync_of_a_checkpoint_wakes_no_flusher",),
    ),
    "17g": Fault(
        "an append returns EIO but the bytes are there, and an ABORT waits",
        (
            "blockstore/test_faults::test_a_failed_append_leaves_writes_undecided_and_their_grains_unreadable",
            "blockstore/test_faults::test_after_an_undecided_rollback_nothing_is_promised_and_nothing_old_is_read",
        ),
    ),
    "17h": Fault(
        "a block that something still reads is overwritten and checkpointed, and not reused",
        (
            "blockstore/test_send_receive::test_blocks_of_a_snapshot_that_is_sent_are_not_reused_by_writes_and_sweeps",
            "blockstore/test_send_receive::test_a_snapshot_cannot_be_deleted_while_it_is_sent",
        ),
    ),
    "17i": Fault(
        "equal content on a pending block, and on a private one followed by a crash",
        ("blockstore/test_fault_cases::test_equal_content_never_shares_a_block_that_may_go",),
    ),
    "17j": Fault(
        "boot_id written early",
        ("blockstore/test_fault_cases::test_a_recovery_that_died_does_not_make_its_boot_the_one_of_the_writes",),
    ),
    "17k": Fault(
        "SNAP, write, DELETE, switch, SNAP, write, commit, kill",
        ("blockstore/test_engine::test_an_image_has_every_node_as_it_was_at_the_switch",),
    ),
    "17l": Fault(
        "TRIM in a frozen leaf",
        ("blockstore/test_engine::test_a_trim_in_a_frozen_leaf_leaves_the_snapshot",),
    ),
}


def rules_of(test: str) -> list[str]:
    """Keywords of the test named as in ``Fault.tests``."""
    return [f"rule_{number}" for number, fault in FAULTS.items() if test in fault.tests]
