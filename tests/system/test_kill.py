"""The worker is killed in the middle of writes: every acknowledged write is there when the next worker serves."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from tests.initiator import Disconnected, Initiator, LoginRefused, read10, synchronize_cache, write10
from tests.product import Product
from tests.scale import SEED, scaled

SIZE = 4096
BLOCKS = 2048
DEPTH = 16
RECONNECT_SECONDS = 20.0


def log_in(product: Product, iqn: str) -> Initiator:
    """As an initiator does: again and again until the next worker serves."""
    deadline = time.monotonic() + RECONNECT_SECONDS
    while True:
        try:
            session = Initiator(product.address, iqn).login()
            while session.run(bytes(6)).status:
                pass
            return session
        except (Disconnected, LoginRefused, OSError):
            if time.monotonic() > deadline:
                raise


class VerifiedLoad:
    """Writes of numbered patterns; remembers for each block what was acknowledged and what may have happened since."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.acknowledged = [0] * BLOCKS
        self.attempted: list[set[int]] = [set() for _ in range(BLOCKS)]
        self.number = 0

    @staticmethod
    def pattern(number: int) -> bytes:
        return number.to_bytes(8, "big") * (SIZE // 8)

    def until_killed(self, session: Initiator) -> None:
        """Keep ``DEPTH`` writes to different blocks in flight until the connection breaks."""
        try:
            while True:
                self._burst(session)
        except (Disconnected, OSError):
            return

    def _burst(self, session: Initiator) -> None:
        blocks = self.chance.sample(range(BLOCKS), DEPTH)
        flying = {}
        for block in blocks:
            self.number += 1
            self.attempted[block].add(self.number)
            flying[block] = session.start(write10(block * 8, 8), data_out=self.pattern(self.number)), self.number
        if self.chance.random() < 0.1:
            session.start(synchronize_cache())
        try:
            session.wait_all()
        finally:
            for block, (command, number) in flying.items():
                if command.status == 0:
                    self.acknowledged[block] = number
                    self.attempted[block] = {other for other in self.attempted[block] if other > number}

    def verify(self, session: Initiator) -> None:
        for block in range(BLOCKS):
            data = bytes(session.good(read10(block * 8, 8), data_in=SIZE).data_in)
            seen = int.from_bytes(data[:8], "big")
            assert data == self.pattern(seen), f"block {block} is torn"
            allowed = self.attempted[block] | {self.acknowledged[block]}
            assert seen in allowed, f"block {block} holds write {seen}, acknowledged was {self.acknowledged[block]}"
            self.acknowledged[block], self.attempted[block] = seen, set()


def kill_after(pid: int, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    return timer


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_every_acknowledged_write_survives_the_death_of_the_worker(product: Product, cache: str) -> None:
    iqn = product.create_group(f"kill-{cache}", 16 << 20, "--cache", cache)
    load = VerifiedLoad(SEED)
    for _ in range(scaled(5)):
        [worker] = product.workers()
        with log_in(product, iqn) as session:
            timer = kill_after(worker, load.chance.uniform(0.05, 0.5))
            load.until_killed(session)
            timer.join()
        with log_in(product, iqn) as session:
            load.verify(session)
    assert load.number > 1000


@pytest.mark.slow
def test_every_acknowledged_write_survives_the_death_of_the_daemon(product: Product) -> None:
    iqn = product.create_group("kill-daemon", 16 << 20)
    load = VerifiedLoad(SEED + 1)
    for _ in range(scaled(2)):
        with log_in(product, iqn) as session:
            timer = threading.Timer(0.3, product.kill)
            timer.start()
            load.until_killed(session)
            timer.join()
        product.start()
        with log_in(product, iqn) as session:
            load.verify(session)


@pytest.mark.slow
def test_clean_stop_and_start_keeps_everything_without_recovery(product: Product) -> None:
    iqn = product.create_group("stop", 16 << 20)
    with log_in(product, iqn) as session:
        session.good(write10(0, 8), data_out=b"kept" * 1024)
    assert product.stop() == 0
    product.start()
    with log_in(product, iqn) as session:
        assert bytes(session.good(read10(0, 8), data_in=SIZE).data_in) == b"kept" * 1024
