"""The allocator: every block is handed out once, in as few runs as there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockstore.allocator import LONG_RUN, Allocator


def blocks_of(runs: list[tuple[int, int]]) -> list[int]:
    return [block for start, count in runs for block in range(start, start + count)]


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
    allocator = Allocator(1, 1)
    for start in range(100, 100 + LONG_RUN):
        allocator.release(start, 1)
    allocator.release(50, 10)
    allocator.coalesce()
    assert sorted(allocator.free_runs()) == [(50, 10), (100, LONG_RUN)]


def test_growth_and_cold_runs_are_the_last_choice() -> None:
    allocator = Allocator(1, 1)
    allocator.grow(10_000)
    allocator.release(0x10000, 1000)
    assert allocator.allocate(100) == [(0x10000, 100)]


def test_long_runs_are_taken_for_punching_as_far_as_enough_stays() -> None:
    allocator = Allocator(1, 1)
    for start in (1000, 2000, 3000):
        allocator.release(start, LONG_RUN)
    allocator.release(10, 5)
    taken = allocator.take_long_runs(keep=LONG_RUN)
    assert taken == [(1000, LONG_RUN), (2000, LONG_RUN)]
    assert allocator.free == LONG_RUN + 5
    allocator.put_back_cold(taken)
    assert allocator.free == 3 * LONG_RUN + 5


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=60))
def test_no_block_is_handed_out_twice(steps: list[tuple[bool, int]]) -> None:
    allocator = Allocator(1, 2000)
    held: list[tuple[int, int]] = []
    for allocate, count in steps:
        if allocate:
            runs = allocator.allocate(count)
            assert not runs or sum(run[1] for run in runs) == count
            held += runs
        elif held:
            allocator.release(*held.pop(count % len(held)))
            allocator.coalesce()
        taken, free = blocks_of(held), blocks_of(allocator.free_runs())
        assert len(free) == allocator.free
        assert sorted(taken + free) == list(range(1, 2000))
