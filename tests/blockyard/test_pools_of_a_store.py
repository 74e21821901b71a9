"""Several pools, pools on block devices, and pools that are not there: as an operator meets them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.initiator import Initiator, LoginRefused, read10, write10
from tests.loopdevice import loop_device
from tests.product import BLOCKYARD, Product, free_port

pytestmark = pytest.mark.slow
MIB = 1 << 20


def blockyard(*words: object) -> subprocess.CompletedProcess[str]:
    command = [BLOCKYARD, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def made(*words: object) -> str:
    done = blockyard("pool", "create", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pools_on_a_device_and_in_a_file_serve_side_by_side_and_outlive_a_kill(tmp_path: Path) -> None:
    product = Product(tmp_path)
    with loop_device(tmp_path, 256 * MIB, 4096) as device:
        assert str(device.path) in made("fast", "--store", product.store, "--device", device.path)
        made("slow", "--store", product.store)
        with product:
            pools = {pool["name"]: pool for pool in product.cli("pool", "ls")}
            assert {name: pool["data"] for name, pool in pools.items()} == {"fast": str(device.path), "slow": "data"}
            assert pools["fast"]["path"] == str(product.store / "pools" / "fast")
            assert pools["fast"]["size"] == 255 * MIB
            for name in ("a", "b", "c"):  # each goes where most is free
                product.create_group(name, 16 * MIB)
            assert {group["pool"] for group in product.cli("group", "ls")} == {"fast", "slow"}
            iqns = [product.create_group(f"on-{name}", 16 * MIB, "--pool", name) for name in ("fast", "slow")]
            for seed, iqn in enumerate(iqns):
                with Initiator(product.address, iqn) as initiator:
                    ready(initiator)
                    for lba in range(0, 8192, 2048):
                        assert initiator.run(write10(lba, 2048), data_out=megabyte(seed + lba)).status == 0
            for pid in product.workers():
                os.kill(pid, signal.SIGKILL)
            restarted = {pool["name"]: pool for pool in product.cli("pool", "ls")}
            assert {pool["state"] for pool in restarted.values()} == {"serving"}
            assert len(product.cli("group", "ls")) == 5
            for seed, iqn in enumerate(iqns):
                with Initiator(product.address, iqn) as initiator:
                    ready(initiator)
                    for lba in range(0, 8192, 2048):
                        assert initiator.run(read10(lba, 2048), data_in=MIB).data_in == megabyte(seed + lba)
        checked = blockyard("check", "--store", product.store, "--deep")
        assert (checked.returncode, checked.stdout.count("is whole")) == (0, 2)


def test_pool_create_refuses_what_would_be_overwritten(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with loop_device(tmp_path, 64 * MIB) as device:
        subprocess.run(["mkfs.ext4", "-q", str(device.path)], check=True, timeout=60)
        refused = blockyard("pool", "create", "fast", "--store", store, "--device", device.path)
        assert (refused.returncode, "carries ext4" in refused.stderr, "--force" in refused.stderr) == (6, True, True)
        made("fast", "--store", store, "--device", device.path, "--force")
        twice = blockyard("pool", "create", "fast", "--store", store)
        assert (twice.returncode, "holds a pool already" in twice.stderr) == (5, True)
    wrong = blockyard("pool", "create", "Fast!", "--store", store)
    assert (wrong.returncode, "is not a pool name" in wrong.stderr) == (2, True)
    absent = blockyard("pool", "create", "other", "--store", store, "--device", "/dev/none-of-that-name")
    assert (absent.returncode, "No such file" in absent.stderr) == (2, True)


def test_a_store_that_is_not_mounted_is_refused_before_anything_listens(tmp_path: Path) -> None:
    product = Product(tmp_path)
    with product:
        product.create_group("db", 16 * MIB)
    product.store.rename(tmp_path / "elsewhere")
    product.store.mkdir()
    refused = blockyard(
        "serve", "--store", product.store, "--portal", f"127.0.0.1:{free_port()}", "--api", f"unix:{tmp_path / 'x'}"
    )
    assert (refused.returncode, "mount its file system" in refused.stderr) == (4, True)
    assert list(product.store.iterdir()) == []
    product.store.rmdir()
    (tmp_path / "elsewhere").rename(product.store)
    with product:
        assert [group["name"] for group in product.cli("group", "ls")] == ["db"]


def test_targets_of_a_pool_that_is_not_mounted_are_answered_try_again_until_it_is_back(tmp_path: Path) -> None:
    product = Product(tmp_path, "--workers", "2")
    with product:
        iqns = {product.cli("group", "show", name)["pool"]: iqn for name in ("a", "b")
                if (iqn := product.create_group(name, 16 * MIB))}  # fmt: skip
    assert set(iqns) == {"pool-0", "pool-1"}
    place, away = product.store / "pools" / "pool-1", tmp_path / "away"
    place.rename(away)
    place.mkdir()  # what a mount point is before its file system is there
    with product:
        pools = {pool["name"]: pool for pool in product.cli("pool", "ls")}
        assert pools["pool-1"]["state"] == "failed"
        assert "not mounted" in pools["pool-1"]["reason"]
        with pytest.raises(LoginRefused) as refused, Initiator(product.address, iqns["pool-1"]) as initiator:
            initiator.login()
        assert refused.value.status == 0x0301
        with Initiator(product.address, iqns["pool-0"]) as initiator:
            initiator.login()
        assert list(place.iterdir()) == []
        place.rmdir()
        away.rename(place)
        wait_until_served(product, "pool-1")
        with Initiator(product.address, iqns["pool-1"]) as initiator:
            initiator.login()


def ready(initiator: Initiator) -> None:
    initiator.login()
    while initiator.run(bytes(6)).status:  # TEST UNIT READY: unit attentions
        pass


def megabyte(seed: int) -> bytes:
    return random.Random(seed).randbytes(MIB)


def wait_until_served(product: Product, pool: str) -> None:
    deadline = time.monotonic() + 60
    while product.cli("pool", "show", pool)["state"] != "serving":
        assert time.monotonic() < deadline, f"{pool} is not served again"


def test_a_pool_that_is_gone_for_good_is_forgotten(tmp_path: Path) -> None:
    product = Product(tmp_path, "--workers", "2")
    with product:
        assert len(product.cli("pool", "ls")) == 2
        busy = blockyard("pool", "forget", "pool-1", "--store", product.store)
        assert busy.returncode == 10
    (product.store / "pools" / "pool-1").rename(tmp_path / "gone")
    missed = blockyard("check", "--store", product.store)
    assert (missed.returncode, "pool-1 was not checked" in missed.stderr, "pool-0 is whole" in missed.stdout) == (
        12,
        True,
        True,
    )
    assert blockyard("pool", "forget", "pool-1", "--store", product.store).returncode == 0
    assert blockyard("check", "--store", product.store).returncode == 0
    alone = Product(tmp_path)
    with alone:
        assert [pool["name"] for pool in alone.cli("pool", "ls")] == ["pool-0"]
