"""The journal: chains over files, what ends them, what lies behind."""

from __future__ import annotations

from uuid import uuid4

import pytest

from blockstore.journal import NAMES, Journal, JournalImage, create_files
from blockstore.layout import pack_trim
from tests.blockstore.powercut import FakeDisk

SIZE = 256 << 10
POOL = uuid4()


@pytest.fixture
def disk() -> FakeDisk:
    disk = FakeDisk()
    create_files(disk, SIZE)
    return disk


def writer(disk: FakeDisk, *, epoch: int = 4, seq: int = 10, chain: int = 77) -> Journal:
    files = [disk.open(name) for name in NAMES]
    return Journal(files, SIZE, POOL, epoch=epoch, seq=seq, chain=chain, synced_seq=seq - 1)


def seqs(disk: FakeDisk, *, epoch: int = 4, seq: int = 10, chain: int = 77) -> list[int]:
    return [batch.header.seq for batch in JournalImage.read(disk, POOL).batches(epoch, seq, chain)]


def test_batches_are_found_in_order(disk: FakeDisk) -> None:
    journal = writer(disk)
    for i in range(5):
        journal.append([pack_trim(1, i, 1)] * (1 + 30 * i))
    assert seqs(disk) == [10, 11, 12, 13, 14]


def test_the_chain_crosses_the_switch(disk: FakeDisk) -> None:
    journal = writer(disk)
    journal.append([pack_trim(1, 0, 1)])
    journal.switch()
    seed, start = journal.chain, journal.next_seq
    journal.append([pack_trim(1, 1, 1)])
    assert seqs(disk) == [10, 11]
    assert seqs(disk, epoch=5, seq=start, chain=seed) == [11]


def test_a_chain_from_within_an_epoch_passes_over_older_batches(disk: FakeDisk) -> None:
    journal = writer(disk)
    journal.append([pack_trim(1, 0, 1)])
    seed, start = journal.chain, journal.next_seq
    journal.append([pack_trim(1, 1, 1)])
    assert seqs(disk, seq=start, chain=seed) == [11]


def test_a_wrong_seed_replays_nothing(disk: FakeDisk) -> None:
    writer(disk).append([pack_trim(1, 0, 1)])
    assert seqs(disk, chain=78) == []


def test_a_stale_journal_of_an_older_epoch_is_not_replayed(disk: FakeDisk) -> None:
    old = writer(disk, epoch=2)
    for _ in range(3):
        old.append([pack_trim(1, 0, 1)])
    writer(disk).append([pack_trim(1, 5, 1)])
    assert seqs(disk) == [10]


def test_a_gap_ends_the_chain_and_what_lies_behind_is_seen(disk: FakeDisk) -> None:
    journal = writer(disk)
    for _ in range(4):
        journal.append([pack_trim(1, 0, 1)])
    content = disk.files[NAMES[0]]
    content.write(512, (bytes(512),))
    assert seqs(disk) == [10]
    assert [batch.header.seq for batch in JournalImage.read(disk, POOL).later_batches(4, 10)] == [12, 13]


def test_both_files_are_synced_after_a_switch_the_older_first(disk: FakeDisk) -> None:
    journal = writer(disk)
    journal.append([])
    journal.switch()
    journal.append([])
    assert journal.files_to_sync() == [disk.files["journal.0"], disk.files["journal.1"]]
    journal.synced_seq = 10
    assert journal.files_to_sync() == [disk.files["journal.1"]]
    journal.synced_seq = 11
    assert journal.files_to_sync() == []


def test_what_does_not_fit_is_known_before(disk: FakeDisk) -> None:
    journal = writer(disk)
    record = pack_trim(1, 0, 1)
    while journal.fits(100 * len(record)):
        journal.append([record] * 100)
    assert journal.position <= SIZE
    assert SIZE - journal.position < 3072
