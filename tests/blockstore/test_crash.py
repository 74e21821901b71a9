"""Crashes at every point of recorded traces of a mixed workload: what opens is a prefix of what was done, with
everything flushed in it, and ``check`` finds nothing.

``make test`` takes a sample of the cut points and one way to lose writes at each; ``make soak NAME=crash`` takes every
cut point and every way. A power cut loses what no sync covered, in part or as a whole; the death of the process loses
nothing that was written.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import pytest

from blockstore.api import CachePolicy
from tests.blockstore.powercut import Cutter, Event, FakeDisk
from tests.blockstore.workload import VARIANTS, Judge, Workload
from tests.scale import SEED, scaled

ROUNDS = scaled(1)
EVERY = ROUNDS > 1  # every cut point and several fates; otherwise a sample of both
STRIDE = 1 if EVERY else 24
RECOVERY_STRIDE = 6 if EVERY else 120
LEAST_IOS, LEAST_STATES = (2000, 20_000) if EVERY else (2000, 200)

Fate = Callable[[Cutter, random.Random], FakeDisk]
FATES: dict[str, Fate] = {
    "no unsynced write landed": lambda cutter, rng: cutter.none_landed(),
    "everything landed": lambda cutter, rng: cutter.all_landed(),
    "the last write torn": lambda cutter, rng: cutter.last_torn(rng),
    "some writes landed": lambda cutter, rng: cutter.some_landed(rng),
    "some other writes landed": lambda cutter, rng: cutter.some_landed(rng),
    "again other writes landed": lambda cutter, rng: cutter.some_landed(rng),
}


def fates(cutter: Cutter, event: Event, rng: random.Random) -> list[str]:
    """How the power cut behind ``event`` may end: all ways that differ, some of them while SQLite writes one page after
    the other, one of them in a sample."""
    if not cutter.unsynced:
        return ["no unsynced write landed"]
    different = [name for name in FATES if name != "the last write torn" or event.kind == "write"]
    if EVERY and not event.file.startswith("meta.db"):
        return different
    return rng.sample(different, 2 if EVERY else 1)


def works() -> Iterator[Workload]:
    """Recorded traces: in every variant, with both policies, from ``ROUNDS`` seeds."""
    for variant, cache, round_ in product(VARIANTS, CachePolicy, range(ROUNDS)):
        work = Workload(cache, SEED + round_, variant)
        work.run(decks=2 if variant.size_limit else 1)
        yield work


@pytest.mark.slow
def test_a_power_cut_at_any_io_leaves_a_whole_pool_with_everything_flushed() -> None:
    ios = states = 0
    done = Counter[str]()
    for work in works():
        judge, rng = Judge(work), random.Random(SEED)
        cutter = Cutter(work.disk.trace, "boot-2")
        while cutter.at < work.events:
            event = cutter.step()
            if cutter.at % STRIDE == 0:
                for fate in fates(cutter, event, rng):
                    judge.judge(cutter.at, FATES[fate](cutter, rng), fate)
            if cutter.at % RECOVERY_STRIDE == 0:
                judge.judge_after_crashes_in_recovery(cutter.at, cutter.some_landed(rng), rng)
        ios, states = ios + work.events, states + judge.states
        done.update(work.done)
        print(f"  {work.variant}, {work.cache.value}: {work.events} I/Os, {judge.states} states")
    print(f"power cuts: {ios} I/Os, {states} states, after {sum(done.values())} operations")
    assert ios >= LEAST_IOS
    assert states >= LEAST_STATES
    assert all(done.values()), f"never done: {[verb for verb in done if not done[verb]]}"


@pytest.mark.slow
def test_a_killed_process_loses_no_acknowledged_write() -> None:
    """The page cache has everything that was written; the same boot goes on."""
    ios = states = 0
    for work in works():
        judge = Judge(work)
        cutter = Cutter(work.disk.trace, work.disk.boot)
        while cutter.at < work.events:
            cutter.step()
            if cutter.at % STRIDE == 0 or cutter.at == work.events:
                judge.judge(cutter.at, cutter.all_landed(), "killed", killed=True)
        ios, states = ios + work.events, states + judge.states
    print(f"kills: {ios} I/Os, {states} states")
    assert ios >= LEAST_IOS


@pytest.mark.parametrize("kept", ["sync of data", "sync of journals"])
def test_the_judge_finds_out_a_disk_that_syncs_only_some_files(kept: str) -> None:
    work = Workload(CachePolicy.WRITETHROUGH, SEED, VARIANTS[0])
    for _ in range(12):
        work.do("write")
    work.driver.runner.advance(0.5)
    judge, trace = Judge(work), work.disk.trace
    lost = {"sync of data": "journal", "sync of journals": "data"}[kept]
    honest = [each for i, each in enumerate(trace) if i < work.born_at or each.kind != "sync" or lost not in each.file]
    cutter = Cutter(honest, "boot-2")
    for _ in honest:
        cutter.step()
    with pytest.raises(AssertionError, match=r"the state after operation|rule=9"):
        judge.judge(work.events, cutter.none_landed(), "a lying disk")
