"""kill -9 of the worker, or of the whole daemon, under a host's mounted ext4 that is written: round after round.

One round of each in ``make test``, five in ``make soak NAME=kill-guest``. What a host sees of a death in other moments
(while it recovers, a stop in good order) is ``scenario_restart``'s. After each round the store itself is proved too.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from integration.initiator import Initiator
from integration.product import Product
from integration.scenario_restart import assert_no_errors
from integration.writer import Writer, check_files
from tests.scale import SEED, scaled

WRITERS = ("one", "two")  # at once, so that more than one fsync is under way when the end comes
DEATHS = 3  # in a round, each at a moment of its own


def kill_worker(target: Product) -> None:
    before = target.worker_pids()
    target.kill_workers()
    target.wait_for_other_workers(before)


def kill_daemon(target: Product) -> None:
    workers = target.worker_pids()
    target.kill()
    target.wait_until_gone(workers)
    target.start()


@pytest.mark.parametrize("number", range(scaled(1)))
@pytest.mark.parametrize("kill", [kill_worker, kill_daemon])
def test_a_mounted_ext4_goes_on_and_keeps_every_fsynced_byte(
    host_a: Initiator,
    target: Product,
    kill: Callable[[Product], None],
    number: int,
    remark: Callable[[str], None],
) -> None:
    chance = random.Random(f"{SEED} {kill.__name__} {number}")
    group = target.create_group(size="2G")
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    mounted = host_a.mount(device)
    host_a.guest.forget_kmsg()
    folders = [f"{mounted}/{name}" for name in WRITERS]
    host_a.guest.run(["mkdir", *folders])

    writers = [Writer(host_a.guest, folder) for folder in folders]
    for _ in range(DEATHS):
        for writer in writers:
            writer.wait_for_more(chance.randrange(2, 12))
        kill(target)
    for writer in writers:
        writer.wait_for_more(5)
    counts = [writer.stop() for writer in writers]

    assert_no_errors(host_a)
    host_a.unmount(mounted)
    host_a.logout(group.iqn)
    host_a.login(group.iqn)
    device = host_a.disk(group.iqn)
    host_a.guest.run(f"e2fsck -fn {device}", timeout=180)
    mounted = host_a.mount(device)
    for folder, count in zip(folders, counts, strict=True):
        check_files(host_a.guest, folder, count)
    assert_no_errors(host_a)
    host_a.unmount(mounted)
    host_a.logout(group.iqn)
    target.stop()
    target.check(deep=True)
    target.start()
    remark(f"{kill.__name__}, round {number}: {DEATHS} deaths, {sum(counts)} fsynced files proved, check --deep clean")
