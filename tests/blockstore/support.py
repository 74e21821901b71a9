"""What the store's tests share: a loop stepped by hand, and short words for common steps."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from blockstore.api import Group, NewVolume, Pool, StandingPermit, StoreError, Volume
from blockstore.check import CheckReport, check_pool
from blockstore.pool import EnginePool, Tuning, open_pool

T = TypeVar("T")
PERMIT = StandingPermit()
KIB = 1 << 10
MIB = 1 << 20
GRAIN = 4096


class ManualRunner:
    """api.Runner whose time and threads move only when the test says so.

    ``tick`` runs what is due now; ``run_thread_work`` runs one piece of helper work; ``settle`` both, until nothing is
    left; ``advance`` moves the clock. Work "in a thread" runs on the caller's thread, which is what makes runs repeat.
    """

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()
        self._later: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._work: deque[tuple[Callable[[], object], Callable[[BaseException | None], None]]] = deque()
        self._order = itertools.count()
        self._now = 0.0

    def call_soon(self, function: Callable[[], None]) -> None:
        self._soon.append(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        cell = [function]
        heapq.heappush(self._later, (self._now + seconds, next(self._order), cell))
        return cell.clear

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        self._work.append((work, then))

    def now(self) -> float:
        return self._now

    def tick(self) -> bool:
        """Run what was due when called; False if that was nothing."""
        due, self._soon = self._soon, deque()
        for function in due:
            function()
        return bool(due)

    def run_thread_work(self) -> bool:
        """Run the oldest piece of helper work and its continuation; False if there is none."""
        if not self._work:
            return False
        work, then = self._work.popleft()
        error: BaseException | None = None
        try:
            work()
        except Exception as raised:
            error = raised
        then(error)
        return True

    def set_work_aside(self) -> Callable[[], None]:
        """No helper comes to what is waiting now, until the returned function is called."""
        aside, self._work = self._work, deque()
        return lambda: self._work.extend(aside)

    def settle(self) -> None:
        """Run until nothing is due and no helper works; the clock stands still."""
        while self.tick() or self.run_thread_work():
            pass

    def elapse(self, seconds: float) -> None:
        """Move the clock and run the timers that became due, but nothing that these began."""
        self._now += seconds
        while self._later and self._later[0][0] <= self._now:
            _, _, cell = heapq.heappop(self._later)
            if cell:
                cell[0]()

    def advance(self, seconds: float) -> None:
        """Move the clock, running timers in their order and settling after each."""
        end = self._now + seconds
        self.settle()
        while self._later and self._later[0][0] <= end:
            self._now, _, cell = heapq.heappop(self._later)
            if cell:
                cell[0]()
            self.settle()
        self._now = end


class Answer:
    """A ``done`` callback that remembers: ``Answer()`` goes in, ``.ok`` or ``.error`` comes out."""

    def __init__(self) -> None:
        self.calls: list[StoreError | None] = []

    def __call__(self, error: StoreError | None) -> None:
        self.calls.append(error)

    @property
    def answered(self) -> bool:
        return bool(self.calls)

    @property
    def ok(self) -> bool:
        return self.calls == [None]

    @property
    def error(self) -> StoreError | None:
        assert len(self.calls) == 1, f"answered {len(self.calls)} times"
        return self.calls[0]


class Driver:
    """A pool and its runner, with verbs that run until they are answered."""

    def __init__(self, runner: ManualRunner, pool: Pool) -> None:
        self.runner = runner
        self.pool = pool

    @property
    def engine(self) -> EnginePool:
        assert isinstance(self.pool, EnginePool)
        return self.pool

    def wait(self, future: Future[T], patience: float = 60) -> T:
        """The future's result, moving the clock as far as ``patience`` seconds."""
        self.runner.settle()
        waited = 0.0
        while not future.done() and waited < patience:
            self.runner.advance(0.01)
            waited += 0.01
        assert future.done(), "no answer"
        return future.result(timeout=0)

    def group(self, name: str = "db", size: int = 16 * MIB, count: int = 1, **more: object) -> Group:
        volumes = [NewVolume(size) for _ in range(count)]
        future = self.pool.create_group(name, iqn=f"iqn.2026-01.test:{name}", volumes=volumes, **more)  # type: ignore[arg-type]
        return self.wait(future)

    def write(self, volume: Volume, offset: int, data: bytes, *, sync: bool = False) -> None:
        self.finish(lambda answer: volume.write(offset, data, PERMIT, answer, sync=sync))

    def discard(self, volume: Volume, offset: int, length: int) -> None:
        self.finish(lambda answer: volume.discard(offset, length, PERMIT, answer))

    def flush(self, volume: Volume) -> None:
        self.finish(volume.flush)

    def finish(self, start: Callable[[Answer], None], patience: float = 60) -> None:
        """Run ``start(answer)`` until it is answered; raises what was answered."""
        answer = Answer()
        start(answer)
        self.runner.settle()
        waited = 0.0
        while not answer.answered and waited < patience:
            self.runner.advance(0.01)
            waited += 0.01
        if answer.error is not None:
            raise answer.error

    def read(self, volume: Volume, offset: int, length: int) -> bytes:
        into = bytearray(length)
        self.finish(lambda answer: volume.read(offset, memoryview(into), answer))
        return bytes(into)


def pattern(seed: int, length: int = GRAIN) -> bytes:
    """``length`` bytes that differ from those of every other seed, never all zero."""
    return ((seed * 2654435761 + 0x9E3779B9) % (1 << 61)).to_bytes(8, "little") * (length // 8)


TUNING = Tuning(grow_step=2 * MIB, keep_free=64 * MIB, reserve=0, map_leaves=1 << 14, helper_processes=False)


class Store:
    """A pool directory that is opened, crashed and opened again."""

    def __init__(self, path: Path, *, tuning: Tuning = TUNING, size_limit: int | None = None) -> None:
        self.path = path
        self.tuning = tuning
        self.size_limit = size_limit
        self.driver: Driver | None = None
        self.expect_findings = False  # the test damages the store on purpose

    def open(self) -> Driver:
        runner = ManualRunner()
        pool = open_pool(
            self.path,
            runner,
            create=True,
            journal_size=256 * KIB,
            size_limit=self.size_limit,
            tuning=self.tuning,
        )
        self.driver = Driver(runner, pool)
        return self.driver

    def kill(self) -> None:
        """The process dies: what was due never runs, and the kernel closes its files."""
        assert self.driver is not None
        pool = self.driver.engine
        self.driver = None
        if pool.closed:
            return
        pool._database.close()
        pool._journal.close()
        pool.data.close()
        pool._directory.close()

    def close(self) -> None:
        assert self.driver is not None
        self.driver.wait(self.driver.pool.close())
        self.driver = None

    def reopen(self) -> Driver:
        """Kill and recover."""
        self.kill()
        return self.open()

    def check(self) -> CheckReport:
        return check_pool(self.path, deep=True)

    def prove_whole(self) -> None:
        """Leave as a crash would, check, recover, close, check again."""
        if self.driver is not None:
            self.kill()
        if not self.path.exists() or self.expect_findings:
            return
        assert self.check().findings == ()
        driver = self.open()
        driver.runner.advance(2)
        self.close()
        assert self.check().findings == ()
