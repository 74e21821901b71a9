"""The journal: batches of map changes, appended before their acknowledgement, in two recycled, zero-filled files.

Epoch N lies in ``journal.<N % 2>``. Batches are chained by their checksums across files, so that a batch is believed
only behind the one it was written behind. Formats are ``layout``'s; which batches are replayed is ``recovery``'s.

Invariants: ``seq`` rises by one per batch; a batch never changes once written; a file is overwritten only after a
checkpoint that needs nothing of it has committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from blockstore.device import Directory, File
from blockstore.layout import (
    HEADER_BYTES,
    JOURNAL_MAGIC,
    SECTOR,
    BatchHeader,
    pack_batch,
    parse_batch,
    pool_tag,
)

NAMES = ("journal.0", "journal.1")
MIN_SIZE = 256 << 10  # bytes; a batch of the largest size in the smallest pieces needs 72 KiB
_ZEROS = bytes(1 << 20)


def create_files(directory: Directory, size: int) -> None:
    """Both files, zero-filled: a sync over written blocks costs half of one over merely allocated blocks."""
    for name in NAMES:
        file = directory.open(name, create=True)
        for offset in range(0, size, len(_ZEROS)):
            file.write(offset, (_ZEROS[: min(len(_ZEROS), size - offset)],))
        file.sync()
        file.close()


class Journal:
    """The writer. Starts empty at ``epoch``; whatever the files held is no longer needed."""

    def __init__(
        self, files: Sequence[File], size: int, pool: UUID, *, epoch: int, seq: int, chain: int, synced_seq: int
    ) -> None:
        self.size = size
        self.epoch = epoch
        self.next_seq = seq
        self.chain = chain  # crc of the last batch: what the next one carries
        self.synced_seq = synced_seq
        self.told_seq = 0  # the synced_seq that the last batch carried
        self.last_content_seq = 0  # the last batch that was not empty
        self.position = 0
        self.previous_live = False  # the other file holds batches that recovery would still need
        self._files = files
        self._tag = pool_tag(pool)
        self._last_seq = [0, 0]  # by file: the last batch in it, to know what a flush round must sync

    @property
    def last_seq(self) -> int:
        return self.next_seq - 1

    @property
    def unsynced(self) -> bool:
        return self.last_seq > self.synced_seq

    def fits(self, record_bytes: int) -> bool:
        """Whether a batch with so many bytes of records fits into the current file."""
        return self.position + -(-(HEADER_BYTES + record_bytes) // SECTOR) * SECTOR <= self.size

    def fits_when_empty(self, record_bytes: int) -> bool:
        return -(-(HEADER_BYTES + record_bytes) // SECTOR) * SECTOR <= self.size

    def append(self, records: list[bytes]) -> int:
        """Write a batch; its seq. Raises OSError: whether the batch is on the disk is then unknown."""
        seq = self.next_seq
        batch, crc = pack_batch(
            records,
            epoch=self.epoch,
            seq=seq,
            synced_seq=self.synced_seq,
            tag=self._tag,
            prev_crc=self.chain,
        )
        self._files[self.epoch & 1].write(self.position, (batch,))
        self.position += len(batch)
        self.chain = crc
        self.next_seq = seq + 1
        self._last_seq[self.epoch & 1] = seq
        self.told_seq = self.synced_seq
        if records:
            self.last_content_seq = seq
        return seq

    def switch(self) -> None:
        """Go on in the other file. Only when nothing of it is needed any more (``recycle``)."""
        assert not self.previous_live, "the other journal is still needed"
        self.epoch += 1
        self.position = 0
        self.previous_live = True

    def recycle(self) -> None:
        """A checkpoint that needs nothing of the other file has committed."""
        self.previous_live = False

    def files_to_sync(self) -> list[File]:
        """Those that hold batches which are not durable yet, oldest first."""
        order = (self.epoch + 1 & 1, self.epoch & 1)
        return [self._files[i] for i in order if self._last_seq[i] > self.synced_seq]

    def close(self) -> None:
        for file in self._files:
            file.close()


@dataclass(frozen=True, slots=True)
class StoredBatch:
    header: BatchHeader
    file: int
    offset: int
    records: memoryview


class JournalImage:
    """What both files held when they were read: for recovery and check, which never write them."""

    def __init__(self, contents: Sequence[bytes], pool: UUID) -> None:
        self._contents = [memoryview(content) for content in contents]
        self._tag = pool_tag(pool)

    @classmethod
    def read(cls, directory: Directory, pool: UUID) -> JournalImage:
        contents = []
        for name in NAMES:
            file = directory.open(name)
            contents.append(file.read_stored(0, file.size()))
            file.close()
        return cls(contents, pool)

    def batches(self, epoch: int, next_seq: int, chain: int) -> Iterator[StoredBatch]:
        """The unbroken chain from the batch ``next_seq`` on, through the file of ``epoch`` and then of the next one.

        A checkpoint taken again within an epoch leaves older batches at the start of the file: these are passed over.
        """
        for at_epoch in (epoch, epoch + 1):
            offset = 0
            while (batch := self._at(at_epoch & 1, offset)) is not None and batch.header.epoch == at_epoch:
                header = batch.header
                offset += -(-header.length // SECTOR) * SECTOR
                if header.seq < next_seq:
                    continue
                if header.seq != next_seq or header.prev_crc != chain:
                    return
                yield batch
                next_seq, chain = header.seq + 1, header.crc

    def later_batches(self, epoch: int, seq: int) -> Iterator[StoredBatch]:
        """Every intact batch of a live epoch with a seq above ``seq``, wherever it lies."""
        for index, content in enumerate(self._contents):
            offset = 0
            while offset + HEADER_BYTES <= len(content):
                if content[offset : offset + 4] == JOURNAL_MAGIC:
                    batch = self._at(index, offset)
                    if batch is not None and batch.header.epoch in (epoch, epoch + 1) and batch.header.seq > seq:
                        yield batch
                offset += SECTOR

    def _at(self, index: int, offset: int) -> StoredBatch | None:
        header = parse_batch(self._contents[index], offset, self._tag)
        if header is None:
            return None
        records = self._contents[index][offset + HEADER_BYTES : offset + header.length]
        return StoredBatch(header, index, offset, records)
