"""The daemon and its workers as processes, over real stores: start, stop, deaths, locks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.initiator import Initiator, LoginRefused
from tests.product import BLOCKYARD, Product, wait_gone

pytestmark = pytest.mark.slow

ESTABLISHED = "01"  # in /proc/net/tcp, proc(5)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One daemon for all: each test uses a group of its own, and leaves it running."""
    with Product(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def command(product: Product, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BLOCKYARD_API": product.api}
    return subprocess.run([BLOCKYARD, *words], env=environment, capture_output=True, text=True, timeout=30)


def holds(pid: int, inode: str) -> bool:
    return any(os.readlink(entry) == f"socket:[{inode}]" for entry in Path(f"/proc/{pid}/fd").iterdir())


def socket_to(peer: tuple[str, int]) -> str:
    """The inode of this machine's socket whose other end is ``peer``."""
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if int(fields[2].partition(":")[2], 16) == peer[1] and fields[3] == ESTABLISHED:
            return fields[9]
    raise AssertionError(f"no connection to {peer}")


def test_a_store_outlives_its_daemon_and_is_whole(product: Product) -> None:
    iqn = product.create_group("outlives", 1 << 20)
    busy = command(product, "check", "--store", str(product.store))
    assert (busy.returncode, "stop the daemon" in busy.stderr) == (10, True)
    started = time.monotonic()
    assert product.stop() == 0
    assert time.monotonic() - started < 10
    log = product.log.read_text()
    assert "is ready" in log
    assert f"export BLOCKYARD_API={product.api}" in log
    assert "Traceback" not in log
    assert command(product, "check", "--store", str(product.store), "--deep").returncode == 0
    product.start()
    assert product.cli("group", "show", "outlives")["iqn"] == iqn


def test_a_second_daemon_on_the_same_store_is_refused(product: Product, tmp_path: Path) -> None:
    options = ["--portal", "127.0.0.1:0", "--api", f"unix:{tmp_path / 'other.sock'}"]
    second = command(product, "serve", "--store", str(product.store), *options)
    assert (second.returncode, f"process {product.daemon}" in second.stderr) == (10, True)
    other_store = command(
        product, "serve", "--create", "--store", str(tmp_path / "b"), *options[:2], "--api", product.api
    )
    assert (other_store.returncode, "served by another daemon" in other_store.stderr) == (10, True)
    options[1] = f"127.0.0.1:{product.port}"
    taken = command(product, "serve", "--create", "--store", str(tmp_path / "c"), *options)
    assert (taken.returncode, "Address already in use" in taken.stderr) == (2, True)


def test_a_killed_worker_is_replaced_and_its_targets_come_back(product: Product) -> None:
    iqn = product.create_group("killed-worker", 1 << 20)
    [worker] = product.workers()
    os.kill(worker, signal.SIGKILL)
    shown = product.cli("pool", "ls")[0]
    assert (shown["state"], shown["restarts"] > 0, shown["worker"] != worker) == ("serving", True, True)
    with Initiator(product.address, iqn) as initiator:
        initiator.login()


def test_a_killed_daemon_takes_its_workers_along_and_the_next_one_serves(product: Product) -> None:
    iqn = product.create_group("killed-daemon", 1 << 20)
    [worker] = product.workers()
    product.kill()
    wait_gone(worker, 20)
    product.start()  # replaces the API socket that was left behind
    assert product.cli("group", "show", "killed-daemon")["iqn"] == iqn


def test_the_daemon_keeps_no_copy_of_a_connection_that_it_handed_over(product: Product) -> None:
    iqn = product.create_group("handed-over", 1 << 20)
    with Initiator(product.address, iqn) as initiator:
        initiator.login()
        inode = socket_to(initiator.sock.getsockname())
        assert [holds(pid, inode) for pid in (product.daemon, *product.workers())] == [False, True]
        assert product.cli("session", "ls")[0]["target"] == iqn
        code = command(product, "group", "rm", "handed-over").returncode
        assert code == 6


def test_a_failed_pool_is_visible_and_the_other_one_serves(tmp_path: Path) -> None:
    product = Product(tmp_path, "--workers", "2")
    damaged = product.store / "pools" / "pool-1"
    damaged.mkdir(parents=True)
    (damaged / "meta.db").write_bytes(b"\0" * 8192)
    with product:
        pools = {pool["name"]: pool for pool in product.cli("pool", "ls")}
        assert (pools["pool-0"]["state"], pools["pool-1"]["state"]) == ("serving", "failed")
        listed = command(product, "group", "ls")
        assert (listed.returncode, "pool-1 is failed" in listed.stderr) == (0, True)
        with pytest.raises(LoginRefused) as refused, Initiator(product.address, "iqn.2026-01.io.example:b") as unknown:
            unknown.login()
        assert refused.value.status == 0x0301
