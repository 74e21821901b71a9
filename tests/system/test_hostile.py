"""Peers that break the rules: the RFC's answer or a dropped connection, nobody else notices, memory stays bounded."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pdus.iscsi.bhs import Opcode
from pdus.iscsi.login import LoginRequest
from pdus.iscsi.text import encode_pairs
from tests.initiator import Disconnected, Initiator, LoginRefused, read10, write10
from tests.product import Product
from tests.scale import SEED, scaled

PDUS = scaled(10_000)
PER_CONNECTION = 20
REACTION_SECONDS = 0.0005
"""How long the target may take before the next PDU is on its way all the same."""
MAX_GROWTH = 64 << 20
OPCODES = [int(opcode) for opcode in Opcode]


@pytest.fixture(scope="module")
def iqn(product: Product) -> str:
    return product.create_group("hostile", 256 << 20)


@pytest.fixture(scope="module")
def peaceful(product: Product) -> str:
    """Another target: who is let in to a target may reset it and write to it, so that would be no disturbance."""
    return product.create_group("peaceful", 64 << 20)


def resident(product: Product) -> int:
    """Bytes resident in the daemon and its workers."""
    total = 0
    for pid in product.pids():
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10
    return total


class Bystander(threading.Thread):
    """A well-behaved client: writes, reads back, compares, until told to stop. ``failure`` says what went wrong."""

    def __init__(self, product: Product, iqn: str) -> None:
        super().__init__(daemon=True)
        self._session = Initiator(product.address, iqn, name="iqn.2026-01.example:bystander").login()
        while self._session.run(bytes(6)).status:
            pass
        self._stop_asked = threading.Event()
        self.failure: str | None = None
        self.rounds = 0

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self._round()
        except Exception as error:
            self.failure = repr(error)

    def _round(self) -> None:
        self.rounds += 1
        data = random.Random(self.rounds).randbytes(16384)
        lba = (self.rounds % 100) * 32
        self._session.good(write10(lba, 32), data_out=data)
        seen = bytes(self._session.good(read10(lba, 32), data_in=len(data)).data_in)
        assert seen == data, f"other data at block {lba}"

    def end(self) -> None:
        self._stop_asked.set()
        self.join(30)
        self._session.close()


@contextmanager
def bystander(product: Product, iqn: str) -> Iterator[Bystander]:
    client = Bystander(product, iqn)
    client.start()
    try:
        yield client
    finally:
        client.end()
    assert client.failure is None
    assert client.rounds > 10


def malformed(chance: random.Random) -> bytes:
    """A header that looks like something, and is wrong somewhere; sometimes truncated, sometimes with data."""
    header = bytearray(chance.randbytes(48))
    header[0] = chance.choice(OPCODES) | chance.choice((0, 0x40))
    if chance.random() < 0.7:
        header[4] = 0
        header[5:8] = chance.choice((0, 0, 4, 48, 512, 8192, 70_000, 0xFFFFFF)).to_bytes(3, "big")
    if chance.random() < 0.5:
        header[16:20] = chance.randrange(8).to_bytes(4, "big")
    length = int.from_bytes(header[5:8], "big")
    data = chance.randbytes(min(length, 9000) & ~3) if chance.random() < 0.8 else b""
    whole = bytes(header) + data
    return whole[: chance.randrange(1, len(whole))] if chance.random() < 0.1 else whole


def attack(product: Product, iqn: str, chance: random.Random) -> int:
    """One connection's worth of malformed PDUs, in a random phase; returns how many reached an open connection."""
    session = Initiator(product.address, iqn, isid=b"\x80\0\0" + chance.randbytes(3), timeout=5)
    taken = 0
    with session:
        try:
            if chance.random() < 0.6:
                session.login()
            while taken < PER_CONNECTION and still_open(session):
                session.sock.sendall(malformed(chance))
                taken += 1
            session.sock.shutdown(socket.SHUT_WR)
            while session.sock.recv(65536):
                pass
        except (Disconnected, LoginRefused, OSError):
            return taken
    return taken


def still_open(session: Initiator) -> bool:
    """Take the answers that are there; False once the target has dropped the connection."""
    while select.select([session.sock], [], [], REACTION_SECONDS)[0]:
        if not session.sock.recv(65536):
            return False
    return True


@pytest.mark.slow
def test_ten_thousand_malformed_pdus_disturb_nobody(product: Product, iqn: str, peaceful: str) -> None:
    chance = random.Random(SEED)
    attack(product, iqn, chance)
    before = resident(product)
    lines = product.log.read_text().count("\n")
    connections = sent = 0
    with bystander(product, peaceful):
        while sent < PDUS:
            sent += attack(product, iqn, chance)
            connections += 1
    assert resident(product) - before <= MAX_GROWTH
    said = product.log.read_text().count("\n") - lines
    assert said <= 4 * connections, f"{said} log lines for {connections} connections"
    assert "Traceback" not in product.log.read_text()


@pytest.mark.slow
def test_client_that_never_reads_costs_bounded_memory(product: Product, iqn: str, peaceful: str) -> None:
    with Initiator(product.address, iqn) as greedy:
        greedy.login()
        while greedy.run(bytes(6)).status:
            pass
        greedy.good(write10(0, 2048), data_out=random.Random(1).randbytes(1 << 20))
        before = resident(product)
        with bystander(product, peaceful) as client:
            for _ in range(128):
                greedy.start(read10(0, 2048), data_in=1 << 20)
            while client.rounds < 200 and client.failure is None:
                client.join(0.05)
        assert resident(product) - before <= MAX_GROWTH
        greedy.wait_all()


def test_login_text_without_an_end_is_dropped(product: Product, iqn: str) -> None:
    """Keys spread with the C bit for ever: the target must stop collecting."""
    with Initiator(product.address, iqn) as session, pytest.raises((Disconnected, LoginRefused, ConnectionError)):
        send_keys_for_ever(session)


def send_keys_for_ever(session: Initiator) -> None:
    for number in range(200):
        request = LoginRequest(continue_=True, current_stage=1, isid=session.isid, cmd_sn=1)
        session.send(request, encode_pairs([(f"X-{number}", "x" * 200)] * 30))
        header, _ = session.receive()
        if header.status:
            raise LoginRefused(header.status)


def test_second_daemon_on_the_same_store_is_refused(product: Product) -> None:
    rival = Product(product.store.parent)
    rival.api = f"unix:{product.store.parent / 'rival.sock'}"
    rival.log = product.store.parent / "rival.log"
    with pytest.raises(RuntimeError, match="did not come up"):
        rival.start()
    assert "another daemon" in rival.log.read_text() or "in use" in rival.log.read_text()
    assert product.cli("group", "ls")
