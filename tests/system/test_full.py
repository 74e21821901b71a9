"""A pool that is full: writes are refused as "no space", everything else works, and freeing space heals it."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator

import pytest

from tests.initiator import Command, Initiator, read10, write10
from tests.product import Product
from tests.system.conftest import assert_whole

MIB = 1 << 20
VOLUME = 128 * MIB
POOL = 64 * MIB
DATA_PROTECT = 7
SPACE_ALLOCATION_FAILED = (0x27, 0x07)
TASK_SET_FULL, BUSY = 0x28, 0x08
HEAL_SECONDS = 30.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    served = Product(tmp_path_factory.mktemp("small"), "--pool-size", str(POOL))
    with served:
        yield served
    assert_whole(served.store)


@pytest.fixture
def session(small: Product) -> Iterator[tuple[Initiator, str]]:
    iqn = small.create_group("full", VOLUME)
    with Initiator(small.address, iqn) as client:
        client.login()
        while client.run(bytes(6)).status:
            pass
        yield client, iqn


def megabyte(number: int) -> bytes:
    return random.Random(number).randbytes(MIB)


def write(client: Initiator, number: int) -> Command:
    return client.run(write10(number * MIB // 512, MIB // 512), data_out=megabyte(number))


def fill(client: Initiator) -> int:
    """Write until there is no space; returns how many megabytes were taken. The refusal must be the right one."""
    for number in range(VOLUME // MIB):
        command = retry_busy(client, number)
        if command.status:
            sense = command.sense
            assert (sense[2] & 0xF, (sense[12], sense[13])) == (DATA_PROTECT, SPACE_ALLOCATION_FAILED), sense.hex()
            return number
    raise AssertionError(f"a pool of {POOL} bytes took {VOLUME}")


def retry_busy(client: Initiator, number: int) -> Command:
    deadline = time.monotonic() + HEAL_SECONDS
    while True:
        command = write(client, number)
        if command.status not in (BUSY, TASK_SET_FULL) or time.monotonic() > deadline:
            return command


def expect(client: Initiator, numbers: range) -> None:
    for number in numbers:
        seen = client.good(read10(number * MIB // 512, MIB // 512), data_in=MIB).data_in
        assert bytes(seen) == megabyte(number)


def unmap(client: Initiator, number: int) -> None:
    descriptor = struct.pack(">QI4x", number * MIB // 512, MIB // 512)
    data = struct.pack(">HH4x", 6 + len(descriptor), len(descriptor)) + descriptor
    client.good(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(data), 0), data_out=data)


def write_until_healed(client: Initiator, number: int) -> None:
    """Freed space comes back after a checkpoint: until then the refusal is allowed, after it is not."""
    deadline = time.monotonic() + HEAL_SECONDS
    while write(client, number).status:
        assert time.monotonic() < deadline, "space did not come back"
        time.sleep(0.1)


@pytest.mark.slow
def test_full_pool_refuses_writes_keeps_the_rest_and_heals(small: Product, session: tuple[Initiator, str]) -> None:
    client, _ = session
    taken = fill(client)
    assert taken >= POOL // MIB // 2
    expect(client, range(taken))

    for number in range(8):
        unmap(client, number)
    expect(client, range(8, taken))
    write_until_healed(client, taken)
    expect(client, range(8, taken + 1))

    small.cli("snapshot", "create", "full", "held")
    small.cli("group", "rm", "full", "--force")
    iqn = small.create_group("after", VOLUME)
    with Initiator(small.address, iqn) as later:
        later.login()
        while later.run(bytes(6)).status:
            pass
        write_until_healed(later, 0)
        write_until_healed(later, 1)
        expect(later, range(2))
