"""Nothing aborted lands: after a task management answer or a reinstating login, the old session's writes are history.

A session sends writes of one pattern and, before they are answered, has them aborted. Once the abort is answered, a
second session writes another pattern over the same blocks. If any aborted write were still on its way, the first
pattern would come back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pdus.iscsi.data import DataOut
from pdus.iscsi.task_management import Function, FunctionResponse
from tests.initiator import Disconnected, Initiator, read10, write10
from tests.product import Product
from tests.scale import SEED, scaled

ROUNDS = scaled(334)  # of each of three kinds: 1,002 in all
BLOCKS = 8  # of 4 KiB, each one write
SIZE = 4096
OURS = b"\x80\x00\x00\x00\x00\x77"
LARGE = 512 << 10


@pytest.fixture(scope="module")
def iqn(product: Product) -> str:
    return product.create_group("permits", 64 << 20)


@pytest.fixture
def second(product: Product, iqn: str) -> Iterator[Initiator]:
    with Initiator(product.address, iqn, name="iqn.2026-01.example:second") as session:
        yield settle(session.login())


def settle(session: Initiator) -> Initiator:
    """Take the unit attentions of a new session."""
    while session.run(bytes(6)).status:
        pass
    return session


def log_in(product: Product, iqn: str) -> Initiator:
    return settle(Initiator(product.address, iqn, isid=OURS).login())


def send_writes(session: Initiator, pattern: bytes) -> None:
    for block in range(BLOCKS):
        session.start(write10(block * 8, 8), data_out=pattern)


def overwrite_and_check(second: Initiator, pattern: bytes) -> None:
    """From here on the blocks are the second session's: nothing else may show."""
    commands = [second.start(write10(block * 8, 8), data_out=pattern) for block in range(BLOCKS)]
    second.wait_all()
    # 06/2f: our own write was met by the other's CLEAR; 06/29: its reset. A retry is what an initiator does.
    for block, command in enumerate(commands):
        if command.status:
            assert command.sense[2] & 0xF == 6, command.sense.hex()
            second.good(write10(block * 8, 8), data_out=pattern)
    expect_everywhere(second, pattern)


def expect_everywhere(second: Initiator, pattern: bytes) -> None:
    seen = bytes(second.good(read10(0, BLOCKS * 8), data_in=BLOCKS * SIZE).data_in)
    assert seen == pattern * BLOCKS, "an aborted write landed"


def patterns(number: int) -> tuple[bytes, bytes]:
    return bytes([number & 0x7F]) * SIZE, bytes([0x80 | (number & 0x7F)]) * SIZE


@pytest.mark.slow
@pytest.mark.parametrize("function", [Function.LOGICAL_UNIT_RESET, Function.ABORT_TASK_SET], ids=lambda f: f.name)
def test_no_aborted_write_lands_after_the_answer(
    product: Product, iqn: str, second: Initiator, function: Function
) -> None:
    shuffle = random.Random(SEED + function)
    with log_in(product, iqn) as first:
        mine = b""
        for number in range(ROUNDS):
            theirs, mine = patterns(number)
            send_writes(first, theirs)
            open_transfer = shuffle.random() < 0.3
            if open_transfer:
                send_half_of_a_large_write(first, theirs)
            assert first.manage(function) == FunctionResponse.COMPLETE
            first.commands.clear()
            overwrite_and_check(second, mine)
            if number % 50 == 49:
                settle(first)
                expect_everywhere(second, mine)
        assert settle(first).ping() == b"ping"
        expect_everywhere(second, mine)


def send_half_of_a_large_write(session: Initiator, pattern: bytes) -> None:
    """A write whose immediate data is there and whose solicited data never comes."""
    session.start(write10(0, LARGE // 512), data_out=pattern * (LARGE // SIZE))


@pytest.mark.slow
def test_no_write_of_a_reinstated_session_lands_after_the_login(product: Product, iqn: str, second: Initiator) -> None:
    mine = b""
    for number in range(ROUNDS):
        theirs, mine = patterns(number)
        old = log_in(product, iqn)
        send_writes(old, theirs)
        if number % 3 == 0:
            send_half_of_a_large_write(old, theirs)
        new = Initiator(product.address, iqn, isid=OURS).login()
        overwrite_and_check(second, mine)
        with pytest.raises((Disconnected, ConnectionError)):
            send_stale_data(old)
        old.close()
        new.close()
        expect_everywhere(second, mine)
    expect_everywhere(second, mine)


def send_stale_data(old: Initiator) -> None:
    """Data-Out on the dead connection, and whatever is still to be read there."""
    old.send(DataOut(final=True, initiator_task_tag=1, target_transfer_tag=1), bytes(512))
    while True:
        old.receive()
