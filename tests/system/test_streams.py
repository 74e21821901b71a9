"""Snapshots compared, sent, received, verified and scrubbed through a real daemon, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from blockyard.client import BlockyardClient
from blockyard.errors import Damaged, InUse, NotFound
from blockyard.model import ClientSpec
from blockyard.model.attachments import AttachRequest
from tests.initiator import Initiator, read10, write10
from tests.product import BLOCKYARD, Product
from tests.system.conftest import assert_whole

pytestmark = pytest.mark.slow

MIB = 1 << 20
HOST = "iqn.2004-10.com.example:host"
SECTORS = 1024  # of one write: 512 KiB


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Two pools; group ``db`` with snapshots ``a`` and ``b``."""
    served = Product(tmp_path_factory.mktemp("product"), "--workers", "2")
    with served:
        iqn = served.create_group("db", 64 * MIB)
        write(served, iqn, {megabyte: os.urandom(MIB // 2) for megabyte in range(20)})
        served.cli("snapshot", "create", "db@a")
        write(served, iqn, {3: os.urandom(MIB // 2), 50: b"x" * (MIB // 2), 60: bytes(MIB // 2)})
        served.cli("snapshot", "create", "db@b")
        yield served
    assert_whole(served.store)


def write(product: Product, iqn: str, pieces: dict[int, bytes]) -> None:
    """Megabyte → half a megabyte of data."""
    with Initiator(product.address, iqn) as session:
        session.login()
        while session.run(bytes(6)).status:
            pass
        for megabyte, data in pieces.items():
            session.good(write10(megabyte * 2048, SECTORS), data_out=data)
        session.logout()


def run(product: Product, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "BLOCKYARD_API": product.api}
    return subprocess.run([BLOCKYARD, *arguments], env=environment, input=stdin, capture_output=True, timeout=60)


def good(product: Product, *arguments: str, stdin: bytes | None = None) -> bytes:
    done = run(product, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def client(product: Product) -> Iterator[BlockyardClient]:
    """Where the command line is not the point: starting it takes most of a second."""
    with BlockyardClient(product.api) as daemon:
        yield daemon


def home(client: BlockyardClient) -> str:
    return client.show_group("db").pool


def other_pool(client: BlockyardClient) -> str:
    return next(pool.name for pool in client.list_pools() if pool.name != home(client))


def fingerprint(client: BlockyardClient, group: str, snapshot: str) -> str:
    *_, last = client.verify_snapshot(group, snapshot)
    assert last.fingerprint is not None
    return last.fingerprint.sha256


def stream(client: BlockyardClient, snapshot: str, base: str | None = None, resume: str | None = None) -> bytes:
    return b"".join(client.send_snapshot("db", snapshot, base=base, resume=resume))


def test_a_diff_lists_ranges_and_totals(product: Product) -> None:
    lines = [json.loads(line) for line in good(product, "diff", "db@a", "db@b", "--json").splitlines()]

    assert lines[:-1] == [{"lun": 0, "offset": at * MIB, "length": MIB // 2, "kind": "changed"} for at in (3, 50)]
    (totals,) = lines[-1]["totals"]["volumes"]
    assert (totals["changed"], totals["zero"], totals["ranges"]) == (MIB, 0, 2)


def test_a_snapshot_goes_to_another_pool_in_full_and_then_by_its_changes(
    product: Product, client: BlockyardClient
) -> None:
    pool = other_pool(client)
    whole = good(product, "snapshot", "send", "db@a")
    received = json.loads(good(product, "snapshot", "receive", "copy", "--pool", pool, "--json", stdin=whole))
    assert received["name"] == "a"
    assert client.show_group("copy").pool == pool
    changes = stream(client, "b", base="a")
    assert len(changes) < 2 * MIB
    assert client.receive_snapshot("copy", iter([changes]), pool=None).name == "b"

    for name in ("a", "b"):
        assert fingerprint(client, "copy", name) == fingerprint(client, "db", name)
    assert fingerprint(client, "copy", "a") != fingerprint(client, "copy", "b")
    client.allow_client("copy", ClientSpec(initiator="any"))
    with Initiator(product.address, client.show_group("copy").iqn) as session:
        session.login()
        while session.run(bytes(6)).status:
            pass
        assert session.good(read10(50 * 2048, 8), data_in=4096).data_in == b"x" * 4096
        with pytest.raises(InUse, match="open session"):
            client.receive_snapshot("copy", iter([changes]), pool=None)
    client.attach("copy", HOST, AttachRequest(take_over=True))
    with pytest.raises(InUse, match=f"attached to {HOST}"):
        client.receive_snapshot("copy", iter([changes]), pool=None)


def test_a_stream_that_was_cut_goes_on_where_it_was_even_after_a_restart(
    product: Product, client: BlockyardClient
) -> None:
    whole = stream(client, "b")

    cut = run(product, "snapshot", "receive", "half", "--pool", other_pool(client), stdin=whole[: len(whole) // 2])

    assert cut.returncode == 12
    assert b"cut at LUN 0" in cut.stderr
    assert all(group.name != "half" for group in client.list_groups().groups)
    environment = {**os.environ, "BLOCKYARD_API": product.api}
    with subprocess.Popen(
        [BLOCKYARD, "snapshot", "receive", "half"], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stdin is not None
        assert waiting.stderr is not None
        waiting.stdin.write(whole[: len(whole) // 2])
        waiting.stdin.flush()
        while not client.show_receive("half").active:
            assert waiting.poll() is None
        product.stop()
        waiting.stdin.close()
        assert waiting.wait(20) == 8
        assert b"what a receive got is kept" in waiting.stderr.read()
    product.start()
    with BlockyardClient(product.api) as daemon:
        status = daemon.show_receive("half")
        assert (status.snapshot, status.active) == ("b", False)
        assert status.offset > 4 * MIB
        rest = stream(daemon, "b", resume=status.token)
        assert len(rest) < len(whole) * 3 // 4
        daemon.receive_snapshot("half", iter([rest]), pool=None)
        assert fingerprint(daemon, "half", "b") == fingerprint(daemon, "db", "b")


def test_a_damaged_stream_is_refused_with_the_reason_and_can_be_forgotten(client: BlockyardClient) -> None:
    damaged = bytearray(stream(client, "b"))
    damaged[len(damaged) // 4] ^= 1

    with pytest.raises(Damaged, match="checksum of frame"):
        client.receive_snapshot("bad", iter([bytes(damaged)]), pool=None)

    client.abort_receive("bad")
    with pytest.raises(NotFound):
        client.show_receive("bad")


def test_a_sender_whose_reader_goes_away_lets_the_snapshot_go(product: Product, client: BlockyardClient) -> None:
    client.create_snapshot("db", "last")
    sending = client.send_snapshot("db", "last", base=None, resume=None)
    next(sending)
    with BlockyardClient(product.api) as other:
        with pytest.raises(InUse, match="is being read"):
            other.delete_snapshot("db", "last")
        sending.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                return other.delete_snapshot("db", "last")
            except InUse:
                assert time.monotonic() < deadline, "the snapshot is held for ever"


def test_a_scrub_reports_a_flipped_bit_and_nothing_once_it_is_right_again(
    product: Product, client: BlockyardClient
) -> None:
    pool = home(client)
    with (product.store / "pools" / pool / "data").open("r+b") as data:
        at = data.read(64 * MIB).index(b"x" * (MIB // 2))
        data.seek(at)
        data.write(b"y")
        data.flush()
        done = run(product, "pool", "scrub", pool, "--rate", "1G")
        data.seek(at)
        data.write(b"x")

    assert done.returncode == 1
    assert b"db, LUN 0 (vol0), LBA 102400: block" in done.stdout
    assert "group db, LUN 0 (vol0), LBA 102400" in product.log.read_text()
    *_, last = client.scrub_pool(pool, None)
    assert last.scrub is not None
    assert last.scrub.blocks >= 20 * 128
    assert last.scrub.error_count == 0
    assert client.show_pool(pool).counters["scrubbed_bytes"] >= 10 * MIB
