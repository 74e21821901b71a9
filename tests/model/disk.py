"""The disk in small: what a sync, a failed sync, a kill and a power cut leave of unsynced writes.

dm-log-writes' rules: an unsynced write may be on the medium or not, independently of others; a synced one is there. A
failed sync writes back any part and calls everything clean (the cache goes on showing what the medium lacks), and the
next sync returns 0. A torn write reads as one that is not there: its checksum matches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model.maps import Image, Maps
from tests.model.state import Interned, JournalFile, Meta, State

Medium = tuple[tuple[int, ...], tuple[JournalFile, JournalFile], Meta]
"""(values of blocks, journals, database)."""


class Batch(NamedTuple):
    """``layout.BatchHeader`` and the records; its number is its crc. ``prev``: that of the one before, or a seed."""

    epoch: int
    seq: int
    synced_seq: int
    prev: int
    records: tuple[Any, ...]


def subsets(mask: int) -> Iterator[int]:
    """Every subset of a set of bits, the empty one first."""
    part = 0
    while True:
        yield part
        if part == mask:
            return
        part = (part - mask) & mask


def mixed(medium: tuple[int, ...], cache: tuple[int, ...], kept: int) -> tuple[int, ...]:
    if not kept:
        return medium
    return tuple([new if kept >> i & 1 else old for i, (old, new) in enumerate(zip(medium, cache, strict=True))])


def append(file: JournalFile, position: int, batch: int) -> JournalFile:
    medium, cache = file.medium, file.cache
    if position == len(cache):
        medium, cache = (*medium, 0), (*cache, 0)
    cache = (*cache[:position], batch, *cache[position + 1 :])
    return JournalFile(medium, cache, file.dirty | 1 << position)


def synced_file(file: JournalFile) -> JournalFile:
    return JournalFile(mixed(file.medium, file.cache, file.dirty), file.cache)


def failed_syncs(file: JournalFile) -> Iterator[JournalFile]:
    """What a failed sync may leave."""
    for kept in subsets(file.dirty):
        if kept != file.dirty:
            yield JournalFile(mixed(file.medium, file.cache, kept), file.cache)


def sync_journals(s: State, files: int) -> tuple[JournalFile, JournalFile]:
    first, second = s.files
    return synced_file(first) if files & 1 else first, synced_file(second) if files & 2 else second


def fail_journals(s: State, files: int) -> Iterator[tuple[JournalFile, JournalFile]]:
    first, second = s.files
    if files & 1:
        for left in failed_syncs(first):
            yield left, second
    if files & 2:
        for left in failed_syncs(second):
            yield (synced_file(first) if files & 1 else first), left


def commit_synced(meta: Meta) -> Meta:
    """A log with a hole stays cut off there, whatever is written behind it."""
    return meta if meta.hole else Meta(meta.cache, meta.cache)


class Crashes:
    """What is left after a crash, remembered per disk: many states of a process have the same disk."""

    def __init__(self, maps: Maps, batches: Interned) -> None:
        self._maps = maps
        self._batches = batches
        self._cuts: dict[Any, list[tuple[Any, Medium]]] = {}
        self._kills: dict[Any, tuple[Any, ...]] = {}

    def cuts(self, s: State) -> list[tuple[Any, Medium]]:
        key = s.medium, s.cache, s.dirty, s.files, s.meta
        found = self._cuts.get(key)
        if found is None:
            found = self._cuts[key] = list(self._cut(s))
        return found

    def kill(self, s: State) -> tuple[Any, ...]:
        """(medium, cache, dirty, files) without what nothing names any more."""
        key = s.medium, s.cache, s.dirty, s.files, s.meta
        found = self._kills.get(key)
        if found is None:
            found = self._kills[key] = self._kill(s)
        return found

    def _cut(self, s: State) -> Iterator[tuple[Any, Medium]]:
        images = [s.meta.medium, s.meta.cache] if s.meta.dirty and not s.meta.hole else [s.meta.medium]
        for meta in [Meta(image, image) for image in images]:
            for first in subsets(s.files[0].dirty):
                for second in subsets(s.files[1].dirty):
                    yield from self._cut_data(s, meta, (first, second))

    def _cut_data(self, s: State, meta: Meta, kept: tuple[int, int]) -> Iterator[tuple[Any, Medium]]:
        media = [mixed(file.medium, file.cache, part) for file, part in zip(s.files, kept, strict=True)]
        epoch = self._maps.images.items[meta.medium].epoch
        files = tuple(self._live(JournalFile(medium, medium), epoch) for medium in media)
        named = self._named(files, (meta.medium,))
        asked = sum(1 << b for b in range(len(s.cache)) if s.dirty >> b & 1 and (b, s.cache[b]) in named)
        for part in subsets(asked):
            values = mixed(s.medium, s.cache, part)
            values = tuple(value if (b, value) in named else 0 for b, value in enumerate(values))
            yield ("power cut; survivors: journals", kept, "blocks", part, "image", meta.medium), (values, files, meta)

    def _kill(self, s: State) -> tuple[Any, ...]:
        epoch = min(self._maps.images.items[image].epoch for image in s.meta[:2])
        files = tuple(self._live(file, epoch) for file in s.files)
        named = self._named(files, s.meta[:2])
        medium = tuple(value if (b, value) in named else 0 for b, value in enumerate(s.medium))
        cache = tuple(value if (b, value) in named else medium[b] for b, value in enumerate(s.cache))
        dirty = sum(1 << b for b in range(len(cache)) if s.dirty >> b & 1 and cache[b] != medium[b])
        return medium, cache, dirty, files

    def _live(self, file: JournalFile, epoch: int) -> JournalFile:
        """Without batches that no replay from ``epoch`` on can look at."""
        medium = tuple(batch if batch and self._batches.items[batch].epoch >= epoch else 0 for batch in file.medium)
        cache = tuple(batch if batch and self._batches.items[batch].epoch >= epoch else 0 for batch in file.cache)
        end = len(cache)
        while end and not medium[end - 1] and not cache[end - 1]:
            end -= 1
        return JournalFile(medium[:end], cache[:end], file.dirty & (1 << end) - 1)

    def _named(self, files: tuple[JournalFile, ...], images: tuple[int, ...]) -> set[tuple[int, int]]:
        """Every (block, value) that journals or images name: data that nothing names is never looked at."""
        named = set()
        for file in files:
            for batch in {*file.medium, *file.cache} - {0}:
                for record in self._batches.items[batch].records:
                    if record[0] == "WRITE":
                        named.add((record[3], record[4]))
        for number in images:
            named |= self._entries(self._maps.images.items[number])
        return named

    def _entries(self, image: Image) -> set[tuple[int, int]]:
        roots = {leaf for _, _, leaf in image.roots}
        return {entry[:2] for node, _, entries in image.nodes if node in roots for entry in entries}

    def replayable(self, s: State, block: int) -> bool:
        """Whether an image that recovery may load, or a batch that it may replay behind one, names ``block``."""
        stored = {self._batches.items[at]: at for file in s.files for at in (*file.medium, *file.cache) if at}
        for number in s.meta[:2]:
            image: Image = self._maps.images.items[number]
            if any(entry[0] == block for entry in self._entries(image)):
                return True
            ends = {image.seed}
            for batch in sorted(stored, key=lambda batch: batch.seq):
                if batch.epoch in (image.epoch, image.epoch + 1) and batch.prev in ends:
                    ends.add(stored[batch])
                    if any(record[0] == "WRITE" and record[3] == block for record in batch.records):
                        return True
        return False
