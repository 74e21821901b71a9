"""A take-over is final: once it is answered no block of the old host lands, whatever is still on its way.

One host writes numbered patterns through a wire that can be cut; at a random moment, sometimes while it is cut off or
half deaf, another takes the group over, reads everything, and writes over a part of it. Then the wire is healed, so
that all that was held back reaches the target, and the old host tries to come back. If one of its blocks landed, the
second reading shows it. And nothing is lost: what the old host was told is written is in the first reading.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from blockyard.client import BlockyardClient
from blockyard.errors import InUse, Unavailable
from blockyard.model.attachments import Attached, AttachMode, AttachRequest
from pdus.iscsi.login import LoginStatus
from tests.initiator import Disconnected, Initiator, LoginRefused, read10, write10
from tests.product import Product
from tests.scale import SEED, scaled
from tests.system.conftest import assert_whole
from tests.wire import Wire

ROUNDS = scaled(5)
SIZE = 4096
BLOCKS = 256
DEPTH = 16
LARGE = 64  # blocks of a write that needs R2Ts
PROMPT = 5.0  # seconds that a take-over may take on a loaded machine; with nothing to wait for it takes some 10 ms
CUTS = ("none", "none", "partition", "half open", "half open")
FATAL = (LoginStatus.AUTHENTICATION_FAILURE, LoginStatus.AUTHORIZATION_FAILURE)
"""Statuses of a login after which Linux does not try again."""


def pattern(number: int) -> bytes:
    return number.to_bytes(8, "big") * (SIZE // 8)


def host_name(number: int) -> str:
    return f"iqn.2026-01.example:host-{number}"


@pytest.fixture(scope="module")
def fast_pings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product that notices dead hosts within some 2 s."""
    served = Product(tmp_path_factory.mktemp("pings"), "--ping-interval", "1", "--ping-timeout", "1")
    with served:
        yield served
    assert_whole(served.store)


@pytest.fixture
def api(product: Product) -> Iterator[BlockyardClient]:
    with BlockyardClient(product.api) as client:
        yield client


def log_in(address: tuple[str, int], attached: Attached) -> Initiator:
    chap = (attached.chap.user, attached.chap.secret.encode())
    session = Initiator(address, attached.attachment.target, name=attached.attachment.host, chap=chap).login()
    while session.run(bytes(6)).status:
        pass
    return session


class Writer:
    """A host that writes as fast as it can until its connection ends, and knows what it was promised."""

    def __init__(self, session: Initiator, first: int, chance: random.Random) -> None:
        self.session = session
        self.number = first
        self.acknowledged: dict[int, int] = {}
        self.attempted: dict[int, set[int]] = {block: set() for block in range(BLOCKS)}
        self._chance = chance
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        try:
            while True:
                self._burst()
        except (Disconnected, OSError):
            return

    def _burst(self) -> None:
        flying = []
        for block in self._chance.sample(range(BLOCKS), DEPTH):
            count = min(LARGE, BLOCKS - block) if self._chance.random() < 0.05 else 1
            self.number += 1
            for each in range(block, block + count):
                self.attempted[each].add(self.number)
            data = pattern(self.number) * count
            flying.append((block, count, self.number, self.session.start(write10(block * 8, count * 8), data_out=data)))
        try:
            self.session.wait_all()
        finally:
            for block, count, number, command in flying:
                if command.status == 0:
                    for each in range(block, block + count):
                        self.acknowledged[each] = max(number, self.acknowledged.get(each, 0))

    def end(self) -> None:
        self.session.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


def read_all(session: Initiator) -> list[int]:
    """The number in each block; every block is whole."""
    data = bytes(session.good(read10(0, BLOCKS * 8), data_in=BLOCKS * SIZE).data_in)
    numbers = [int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), SIZE)]
    assert data == b"".join(map(pattern, numbers)), "a block is torn"
    return numbers


def expect_promises_kept(writer: Writer, before: list[int], seen: list[int]) -> None:
    for block, number in enumerate(seen):
        promised = writer.acknowledged.get(block)
        # Writes of one burst overlap and may land in any order, so a younger attempt may stand in place of a promise.
        allowed = writer.attempted[block] | ({before[block]} if promised is None else set())
        assert number in allowed, f"block {block} holds {number}; promised {promised}, before {before[block]}"
        assert promised is None or number >= promised - DEPTH, f"block {block} went back to {number} from {promised}"


def expect_refused(address: tuple[str, int], attached: Attached) -> None:
    with pytest.raises(LoginRefused) as refused:
        log_in(address, attached)
    assert refused.value.status in FATAL, hex(refused.value.status)


def cut(wire: Wire, how: str) -> None:
    if how == "partition":
        wire.partition()
    elif how == "half open":
        wire.cut_answers()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_block_of_a_fenced_host_lands_after_the_take_over(product: Product, api: BlockyardClient) -> None:
    product.create_group("fenced", BLOCKS * SIZE)
    chance = random.Random(SEED)
    before, number, total = [0] * BLOCKS, 1, 0
    holder = api.attach("fenced", host_name(0), AttachRequest())
    for round_ in range(1, ROUNDS + 1):
        with Wire(product.address) as wire:
            writer = Writer(log_in(wire.address, holder), number, random.Random(chance.random()))
            time.sleep(chance.uniform(0.02, 0.3))
            cut(wire, chance.choice(CUTS))
            time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.1))))
            begin = time.monotonic()
            successor = api.attach("fenced", host_name(round_), AttachRequest(take_over=True))
            assert time.monotonic() - begin < PROMPT
            with log_in(product.address, successor) as session:
                seen = read_all(session)
                number = writer.number + 10_000
                for block in chance.sample(range(BLOCKS), BLOCKS // 2):
                    number += 1
                    session.start(write10(block * 8, 8), data_out=pattern(number))
                    seen[block], before[block] = number, number
                session.wait_all()
                first = list(seen)
                wire.heal()
                for _ in range(3):
                    expect_refused(wire.address, holder)
                    assert read_all(session) == first, f"round {round_}: a block of the fenced host landed"
                writer.end()
                assert read_all(session) == first, f"round {round_}: a block of the fenced host landed"
        total += writer.number
        before, holder = first, successor
    assert total > 100 * ROUNDS
    print(f"{ROUNDS} take-overs, writes up to number {number}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_acknowledged_before_the_take_over_is_there_for_the_successor(
    product: Product, api: BlockyardClient
) -> None:
    product.create_group("kept", BLOCKS * SIZE)
    chance = random.Random(SEED + 1)
    before, number = [0] * BLOCKS, 1
    holder = api.attach("kept", host_name(0), AttachRequest())
    for round_ in range(1, ROUNDS + 1):
        with Wire(product.address) as wire:
            writer = Writer(log_in(wire.address, holder), number, random.Random(chance.random()))
            time.sleep(chance.uniform(0.02, 0.2))
            cut(wire, chance.choice(CUTS))
            holder = api.attach("kept", host_name(round_), AttachRequest(take_over=True))
            with log_in(product.address, holder) as session:
                seen = read_all(session)
            wire.heal()
            writer.end()
            expect_promises_kept(writer, before, seen)
        before, number = seen, writer.number + 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_take_over_during_which_the_worker_dies_is_repeated_and_final(product: Product, api: BlockyardClient) -> None:
    product.create_group("dying", BLOCKS * SIZE)
    chance = random.Random(SEED + 2)
    holder = api.attach("dying", host_name(0), AttachRequest())
    for round_ in range(1, scaled(2) + 1):
        with Wire(product.address) as wire:
            writer = Writer(log_in(wire.address, holder), round_ << 32, random.Random(chance.random()))
            time.sleep(0.05)
            [worker] = product.workers()
            timer = threading.Timer(chance.uniform(0, 0.03), os.kill, (worker, signal.SIGKILL))
            timer.start()
            successor = take_over_patiently(api, "dying", host_name(round_))
            timer.join()
            with patient_log_in(product, api, successor) as session:
                seen = read_all(session)
                wire.heal()
                expect_refused_finally(wire.address, holder)
                writer.end()
                assert read_all(session) == seen, f"round {round_}: a block of the fenced host landed"
        holder = successor


def take_over_patiently(api: BlockyardClient, group: str, host: str) -> Attached:
    """As a plugin does: what got no answer is asked again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return api.attach(group, host, AttachRequest(take_over=True))
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def patient_log_in(product: Product, api: BlockyardClient, attached: Attached) -> Initiator:
    """The worker may be killed after it has answered."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return log_in(product.address, attached)
        except LoginRefused as refused:
            if refused.status in FATAL:
                raise
        except (Disconnected, OSError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def expect_refused_finally(address: tuple[str, int], attached: Attached) -> None:
    """While the worker starts again everybody is told to come back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            log_in(address, attached)
        except LoginRefused as refused:
            if refused.status in FATAL:
                return
        except (Disconnected, OSError):
            pass
        else:
            raise AssertionError("the fenced host is in again")
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_host_that_falls_silent_is_noticed_by_pings_and_its_session_ends(fast_pings: Product) -> None:
    fast_pings.create_group("silent", BLOCKS * SIZE)
    with BlockyardClient(fast_pings.api) as api, Wire(fast_pings.address) as wire:
        attached = api.attach("silent", host_name(1), AttachRequest())
        with log_in(wire.address, attached) as session:
            [shown] = api.attachments("silent")
            assert (shown.alive, shown.sessions) == (True, 1)
            wire.partition()
            session.start(write10(0, 8), data_out=pattern(1))
            deadline = time.monotonic() + 30
            while shown.sessions:
                assert time.monotonic() < deadline
                time.sleep(0.1)
                [shown] = api.attachments("silent")
            assert not shown.alive
            assert shown.seen is not None
            assert 1.9 < time.time() - shown.seen < 30
            with pytest.raises(InUse, match="not alive") as refused:
                api.attach("silent", host_name(2), AttachRequest())
            assert refused.value.details["alive"] is False
            # It holds the group all the same, and may come back.
            wire.heal()
            with log_in(wire.address, attached) as again:
                again.good(read10(0, 8), data_in=SIZE)


@pytest.mark.slow
def test_attachments_and_their_secrets_survive_a_restart_of_everything(product: Product) -> None:
    product.create_group("lasting", BLOCKS * SIZE, "--label", "blockyard.project=shop")
    with BlockyardClient(product.api) as api:
        attached = api.attach("lasting", host_name(1), AttachRequest())
    assert product.stop() == 0
    product.start()
    with BlockyardClient(product.api) as api:
        assert api.attach("lasting", host_name(1), AttachRequest()).chap == attached.chap
        assert api.show_group("lasting").labels == {"blockyard.project": "shop"}
        with pytest.raises(InUse):
            api.attach("lasting", host_name(2), AttachRequest())
        log_in(product.address, attached).close()
        expect_refused(product.address, api.attach("lasting", host_name(2), AttachRequest(take_over=True)).model_copy(
            update={"chap": attached.chap}))  # fmt: skip


@pytest.mark.slow
def test_readers_of_a_read_only_attachment_cannot_write(product: Product, api: BlockyardClient) -> None:
    product.create_group("readers", BLOCKS * SIZE)
    asked = AttachRequest(mode=AttachMode.READ_ONLY_MANY)
    with (
        log_in(product.address, api.attach("readers", host_name(1), asked)) as one,
        log_in(product.address, api.attach("readers", host_name(2), asked)) as two,
    ):
        for session in (one, two):
            refused = session.run(write10(0, 8), data_out=pattern(1))
            assert (refused.sense[2] & 0xF, refused.sense[12], refused.sense[13]) == (7, 0x27, 0)
            assert read_all(session) == [0] * BLOCKS


@pytest.mark.slow
def test_the_command_line_attaches_takes_over_lists_and_releases(product: Product) -> None:
    product.create_group("typed", BLOCKS * SIZE)
    ours, theirs = ("--host", host_name(1)), ("--host", host_name(2))
    first = product.cli("attachment", "create", "typed", *ours)
    assert product.cli("attachment", "create", "typed", *ours) == first
    assert product.try_cli("attachment", "create", "typed", *theirs) is None
    assert product.cli("attachment", "take-over", "typed", *theirs)["attachment"]["generation"] == 2
    [listed] = product.cli("attachment", "ls", "typed")
    assert (listed["host"], listed["alive"]) == (host_name(2), True)
    assert product.cli("attachment", "release", "typed", *theirs) == {"released": "typed", "host": host_name(2)}
    assert product.cli("attachment", "ls", "typed") == []
