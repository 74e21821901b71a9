"""The target's processes die or are restarted under a host that writes: no error reaches its file system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from integration.initiator import Initiator
from integration.product import Group, Product
from integration.writer import Writer, check_files

# What a file system or a program would notice, in the kernel's words.
BAD_WORDS = ("I/O error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Remounting filesystem read-only")


@dataclass(frozen=True, slots=True)
class Busy:
    """A mounted volume with somebody writing to it."""

    writer: Writer
    group: Group


@pytest.fixture
def busy(host_a: Initiator, target: Product) -> Iterator[Busy]:
    """Writing goes on during the test; afterwards every fsynced file is proved through a new session."""
    group = target.create_group(size="2G")
    device = host_a.connect(group.iqn)
    host_a.format(device, "ext4")
    folder = host_a.mount(device)
    host_a.guest.forget_kmsg()
    writer = Writer(host_a.guest, folder)
    writer.wait_for_more(5)

    yield Busy(writer, group)

    count = writer.stop()
    assert_no_errors(host_a)
    host_a.unmount(folder)
    host_a.logout(group.iqn)
    host_a.login(group.iqn)
    device = host_a.disk(group.iqn)
    host_a.guest.run(f"e2fsck -fn {device}", timeout=180)
    check_files(host_a.guest, host_a.mount(device), count)
    assert_no_errors(host_a)


def assert_no_errors(host: Initiator) -> None:
    """The host's kernel said nothing of a disk or a file system that failed."""
    messages = host.guest.kmsg().splitlines()
    assert [line for line in messages if any(word in line for word in BAD_WORDS)] == []


def test_fsynced_files_survive_kill_9_of_the_worker(busy: Busy, target: Product) -> None:
    for _ in range(4):
        target.kill_workers()
        busy.writer.wait_for_more(20)


def test_fsynced_files_survive_kill_9_of_the_worker_while_it_recovers(busy: Busy, target: Product) -> None:
    before = target.worker_pids()
    target.kill_workers()
    after = target.wait_for_other_workers(before)
    target.kill_workers()
    target.wait_for_other_workers(after)
    busy.writer.wait_for_more(20)


def test_fsynced_files_survive_a_stop_and_start_of_the_daemon(busy: Busy, target: Product) -> None:
    for _ in range(2):
        target.stop()
        target.start()
        busy.writer.wait_for_more(20)


def test_fsynced_files_survive_kill_9_of_the_daemon(busy: Busy, target: Product) -> None:
    workers = target.worker_pids()
    target.kill()
    target.wait_until_gone(workers)
    target.start()
    busy.writer.wait_for_more(20)
