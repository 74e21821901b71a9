"""The allocator: every block is handed out once, in as few runs as there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blockstore import allocator as module
from blockstore.allocator import LONG_RUN, Allocator, Run
from tests.scale import scaled

BLOCKS = 4000


def free_runs(allocator: Allocator) -> list[Run]:
    """Without what is never handed out."""
    return [(start, count) for start, count in allocator.free_runs().tolist() if start]


def blocks_of(runs: list[Run]) -> list[int]:
    return [block for start, count in runs for block in range(start, start + count)]


class Helper:
    """Work "in a thread" that is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Callable[[], object], Callable[[BaseException | None], None]]] = []

    def __call__(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        self.work.append((work, then))

    def run(self) -> None:
        work, then = self.work.pop(0)
        work()
        then(None)


def at_once(work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
    raise AssertionError("few runs are joined without a helper")


def of_singles(blocks: list[int]) -> Allocator:
    allocator = Allocator(1, 1)
    for block in blocks:
        allocator.release(block, 1)
    return allocator


def test_blocks_come_in_one_run_where_there_is_one() -> None:
    allocator = Allocator(1, 1000)
    assert allocator.allocate(10) == [(1, 10)]
    assert allocator.allocate(5) == [(11, 5)]
    assert allocator.free == 999 - 15
    assert allocator.high_water == 16


def test_too_few_blocks_are_none() -> None:
    allocator = Allocator(1, 11)
    assert allocator.allocate(11) == []
    assert allocator.allocate(10) == [(1, 10)]
    assert allocator.allocate(1) == []


def test_pieces_are_put_together_when_no_run_is_long_enough() -> None:
    allocator = Allocator(1, 1)
    for start in (10, 20, 30):
        allocator.release(start, 4)
    runs = allocator.allocate(12)
    assert sorted(blocks_of(runs)) == [*range(10, 14), *range(20, 24), *range(30, 34)]


def test_neighbours_are_joined() -> None:
    allocator = of_singles(list(range(100, 100 + LONG_RUN)))
    allocator.release(50, 10)
    allocator.coalesce(at_once)
    assert sorted(free_runs(allocator)) == [(50, 10), (100, LONG_RUN)]


def test_growth_and_cold_runs_are_the_last_choice() -> None:
    allocator = Allocator(1, 1)
    allocator.grow(10_000)
    allocator.release(0x10000, 1000)
    assert allocator.allocate(100) == [(0x10000, 100)]


def test_the_long_run_that_was_freed_last_is_used_first_also_after_a_join() -> None:
    allocator = Allocator(1, 1)
    for start in (50_000, 90_000, 10_000, 70_000):
        allocator.release(start, LONG_RUN)
    allocator.release(10_000 + LONG_RUN, 1)  # joined: as recent as its most recent part
    allocator.coalesce(at_once)
    order = [allocator.allocate(LONG_RUN)[0][0] for _ in range(4)]
    assert order == [70_000, 10_000, 90_000, 50_000]


def test_a_large_request_takes_a_recent_run_that_holds_it() -> None:
    allocator = Allocator(1, 1)
    allocator.release(1000, 1024)
    allocator.release(5000, LONG_RUN)
    assert allocator.allocate(1024) == [(1000, 1024)]


def test_blocks_that_are_never_handed_out_are_not_for_the_sweep_to_find() -> None:
    allocator = Allocator(1, 1000, never_below=256)
    assert allocator.allocate(1) == [(256, 1)]
    assert [0, 256] in allocator.free_runs().tolist()
    assert allocator.free == 1000 - 257


# ------------------------------------------------------------------------------------------------- punching


def test_long_runs_are_taken_for_punching_as_far_as_enough_warm_ones_stay() -> None:
    allocator = Allocator(1, 1)
    for start in (1000, 2000, 3000):
        allocator.release(start, LONG_RUN)
    allocator.release(10, 5)
    taken = allocator.take_long_runs(LONG_RUN, 1 << 20)
    assert taken == [(1000, LONG_RUN), (2000, LONG_RUN)]
    assert allocator.free == LONG_RUN + 5
    allocator.put_back_cold(taken)
    assert allocator.free == 3 * LONG_RUN + 5
    assert allocator.take_long_runs(LONG_RUN, 1 << 20) == []  # what is punched counts no longer as kept


def test_a_run_that_is_too_long_to_punch_at_once_is_cut() -> None:
    allocator = Allocator(1, 1)
    allocator.release(1000, 10 * LONG_RUN)
    assert allocator.take_long_runs(0, 4 * LONG_RUN) == [(1000, 4 * LONG_RUN)]
    assert free_runs(allocator) == [(1000 + 4 * LONG_RUN, 6 * LONG_RUN)]


def test_the_rest_of_a_cold_run_stays_cold() -> None:
    allocator = Allocator(1, 1)
    allocator.grow(1 + 4 * LONG_RUN)
    allocator.allocate(10)
    allocator.release(1 << 20, 5 * LONG_RUN)
    assert allocator.allocate(5 * LONG_RUN) == [(1 << 20, 5 * LONG_RUN)]
    assert allocator.free == 4 * LONG_RUN - 10
    assert allocator.take_long_runs(0, 1 << 20) == []


# ------------------------------------------------------------------------------------------------- many runs


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a hundred runs are many."""
    monkeypatch.setattr(module, "_JOIN_AT_ONCE", 100)


@pytest.mark.usefixtures("many")
def test_many_runs_are_joined_by_a_helper_while_the_rest_is_handed_out() -> None:
    allocator, helper = of_singles(list(range(1000, 3000, 2))), Helper()
    allocator.grow(100)
    allocator.coalesce(helper)
    assert allocator.free == 1000 + 99
    assert allocator.allocate(50) == [(1, 50)]
    allocator.release(5000, 1)
    helper.run()
    assert len(blocks_of(free_runs(allocator))) == allocator.free == 1000 + 49 + 1
    assert allocator.allocate(1) == [(51, 1)]  # still the run in use
    for block in range(1001, 3000, 2):
        allocator.release(block, 1)
    allocator.coalesce(helper)
    helper.run()
    assert (1000, 2000) in free_runs(allocator)


@pytest.mark.usefixtures("many")
def test_runs_that_are_being_joined_are_taken_back_when_nothing_else_is_left() -> None:
    allocator, helper = of_singles(list(range(1000, 1200))), Helper()
    allocator.coalesce(helper)
    assert len(blocks_of(allocator.allocate(150))) == 150
    helper.run()  # too late: dropped
    assert allocator.free == 50
    assert len(set(blocks_of(allocator.allocate(50)))) == 50
    assert free_runs(allocator) == []


@pytest.mark.usefixtures("many")
def test_a_join_that_failed_leaves_the_runs_as_they_were() -> None:
    allocator, helper = of_singles(list(range(1000, 1200))), Helper()
    allocator.coalesce(helper)
    helper.work.pop()[1](MemoryError())
    assert len(blocks_of(allocator.allocate(200))) == 200


@pytest.mark.usefixtures("many")
def test_many_runs_are_joined_again_only_when_a_good_part_is_new() -> None:
    allocator, helper = of_singles(list(range(1000, 3000, 2))), Helper()
    allocator.coalesce(helper)
    helper.run()
    for block in range(10_000, 10_100, 2):
        allocator.release(block, 1)
    allocator.coalesce(helper)
    assert helper.work == []
    for block in range(20_000, 20_300, 2):
        allocator.release(block, 1)
    allocator.coalesce(helper)
    assert len(helper.work) == 1


class AllocatorMachine(RuleBasedStateMachine):
    """Against a set of blocks: whatever is done, in whatever order helpers end, each block is free or held, once."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(1, BLOCKS, never_below=8)
        self.free = set(range(8, BLOCKS))
        self.held: list[Run] = []
        self.punching: list[list[Run]] = []
        self.helper = Helper()
        self.many, module._JOIN_AT_ONCE = module._JOIN_AT_ONCE, 20

    def teardown(self) -> None:
        module._JOIN_AT_ONCE = self.many

    @rule(count=st.one_of(st.just(1), st.integers(1, 40), st.integers(200, 1024)))
    def allocate(self, count: int) -> None:
        runs = self.allocator.allocate(count)
        blocks = blocks_of(runs)
        assert len(blocks) == (count if len(self.free) >= count else 0)
        assert self.free.issuperset(blocks)
        assert len(set(blocks)) == len(blocks)
        self.free -= set(blocks)
        self.held += runs

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 1 << 20), cut=st.integers(0, 3))
    def release(self, at: int, cut: int) -> None:
        start, count = self.held.pop(at % len(self.held))
        parts = [(start, count)]
        if cut == 1 and count <= 300:  # block by block, the odd ones first
            parts = [(block, 1) for block in [*range(start + 1, start + count, 2), *range(start, start + count, 2)]]
        elif cut == 2 and count > 1:
            parts = [(start + count // 2, count - count // 2), (start, count // 2)]
        for part in parts:
            self.allocator.release(*part)
            self.free |= set(blocks_of([part]))

    @rule()
    def coalesce(self) -> None:
        self.allocator.coalesce(self.helper)

    @precondition(lambda self: self.helper.work)
    @rule()
    def helper_ends(self) -> None:
        self.helper.run()

    @rule(blocks=st.integers(1, 500))
    def grow(self, blocks: int) -> None:
        before = self.allocator.blocks
        self.allocator.grow(before + blocks)
        self.free |= set(range(before, before + blocks))

    @rule(keep=st.integers(0, 2000), most=st.integers(0, 2000))
    def punch(self, keep: int, most: int) -> None:
        taken = self.allocator.take_long_runs(keep, most)
        assert len(blocks_of(taken)) <= most
        assert all(count >= LONG_RUN for _, count in taken)
        self.free -= set(blocks_of(taken))
        self.punching.append(taken)

    @precondition(lambda self: self.punching)
    @rule()
    def punched(self) -> None:
        runs = self.punching.pop(0)
        self.allocator.put_back_cold(runs)
        self.free |= set(blocks_of(runs))

    @invariant()
    def free_blocks_are_those_of_the_model(self) -> None:
        blocks = blocks_of(free_runs(self.allocator))
        assert len(blocks) == len(set(blocks)) == self.allocator.free
        assert set(blocks) == self.free
        assert all(block < self.allocator.high_water for block in blocks_of(self.held))


TestAllocatorAgainstASetOfBlocks = AllocatorMachine.TestCase
TestAllocatorAgainstASetOfBlocks.settings = settings(
    max_examples=scaled(40), stateful_step_count=40, deadline=None, derandomize=True
)
