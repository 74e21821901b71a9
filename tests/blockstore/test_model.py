"""The pool as a state machine: every operation in any order, with crashes anywhere, against a model of plain dicts.

Hypothesis chooses the steps and shrinks what fails. After a crash the machine goes on with what was recovered, once it
is proved to be one of the states that the model allows.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from blockstore.api import CachePolicy
from blockstore.check import check_directory
from tests.blockstore.powercut import Cutter, FakeDisk
from tests.blockstore.support import GRAIN
from tests.blockstore.workload import VARIANTS, Judge, Variant, Workload, observe
from tests.scale import scaled

seeds = st.integers(0, (1 << 16) - 1)
MIXED_IO = ["write", "ragged", "zeros", "discard", "flush", "ragged"]
SWITCH_AND_WRITE = ["write", "checkpoint", "write", "ragged", "sweep", "write"]
FATES = ["killed", "nothing landed", "everything landed", "the last write torn", "something landed"]


class Machine(RuleBasedStateMachine):
    """What is done is ``workload``'s; when, and with which crashes, is the machine's."""

    variant: Variant

    @initialize(cache=st.sampled_from(CachePolicy), seed=seeds)
    def make_a_pool(self, cache: CachePolicy, seed: int) -> None:
        self.work = Workload(cache, seed, self.variant)
        self.before = FakeDisk()  # what the trace of the present disk began with
        self.boots = 1

    def do(self, verb: str, seed: int) -> None:
        self.work.rng = random.Random(seed)
        self.work.do(verb)

    @rule(verb=st.sampled_from(["write", "write", "ragged", "zeros", "discard", "ragged discard"]), seed=seeds)
    def write(self, verb: str, seed: int) -> None:
        self.do(verb, seed)

    @rule(verbs=st.sampled_from([MIXED_IO, SWITCH_AND_WRITE]), seed=seeds)
    def do_much_in_one_tick(self, verbs: list[str], seed: int) -> None:
        self.work.rng = random.Random(seed)
        self.work.do_together(verbs)

    @rule(verb=st.sampled_from(["snapshot", "snapshot", "clone", "rollback", "delete snapshot"]), seed=seeds)
    def use_snapshots(self, verb: str, seed: int) -> None:
        self.do(verb, seed)

    @rule(
        verb=st.sampled_from(["delete group", "resize", "add volume", "remove volume", "clients", "cache"]), seed=seeds
    )
    def change_a_group(self, verb: str, seed: int) -> None:
        self.do(verb, seed)

    @rule(verb=st.sampled_from(["flush", "checkpoint", "sweep", "idle"]), seed=seeds)
    def let_time_pass(self, verb: str, seed: int) -> None:
        self.do(verb, seed)

    @rule(verb=st.sampled_from(["close", "kill"]), seed=seeds)
    def reopen(self, verb: str, seed: int) -> None:
        self.do(verb, seed)

    @rule(fate=st.sampled_from(FATES), seed=seeds)
    def crash(self, fate: str, seed: int) -> None:
        """With whatever is under way; the machine goes on in what is left."""
        if fate != "killed":
            self.boots += 1
        disk = self.remains(fate, random.Random(seed))
        judge = Judge(self.work)
        judge.born_at = 0
        judge.judge(self.work.events, disk.copy(), fate, killed=fate == "killed")
        self.before = disk.copy()
        self.work.go_on_with(disk)

    def remains(self, fate: str, rng: random.Random) -> FakeDisk:
        trace = list(self.work.disk.trace)
        self.work.disk.new_process()
        cutter = Cutter(trace, f"boot-{self.boots}")
        cutter.start_from(self.before)
        for _ in trace:
            cutter.step()
        if fate == "nothing landed":
            return cutter.none_landed()
        if fate == "something landed":
            return cutter.some_landed(rng)
        if fate == "the last write torn" and cutter.unsynced:
            return cutter.last_torn(rng)
        return cutter.all_landed()

    @rule()
    def compare(self) -> None:
        """Everything is as the model says; counts of mapped bytes too."""
        self.work.driver.runner.settle()
        model = self.work.model
        for name, group in self.work.driver.pool.groups.items():
            for lun, disk in model.groups[name].items():
                assert group.mapped_bytes(lun) == len(disk.content) * GRAIN
            for snapshot, disks in model.snapshots[name].items():
                mapped = sum(len(disk.content) for disk in disks.values())
                assert group.snapshot_bytes(snapshot) == mapped * GRAIN
        assert observe(self.work.driver, forget=True) == model.history[-1]

    def teardown(self) -> None:
        if not hasattr(self, "work"):
            return
        self.compare()
        disk = self.remains("killed", random.Random(0))
        report = check_directory(disk.copy(), deep=True, map_leaves=self.variant.tuning.map_leaves)
        assert report.findings == ()
        assert observe(self.variant.open(disk)) == self.work.model.history[-1]
        disk.new_process()


@pytest.mark.slow
@pytest.mark.timeout(900)  # of which a failure uses minutes to shrink
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_pool_behaves_like_its_model(variant: Variant) -> None:
    machine = type("Machine", (Machine,), {"variant": variant})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=scaled(20),
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
        ),
    )
