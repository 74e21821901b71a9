"""The content fingerprint of a snapshot: equal for equal content, wherever and however it is stored.

It depends on nothing but sizes, LUNs and bytes: an unmapped grain and a grain of zeros are the same, and where blocks
lie, which pool they are in and what names they have does not matter. So two pools can be compared by one line each.

Definition (docs/streams.md): of a volume, SHA-256 over ``blockyard content 1\\n``, its size as u64, then for every
4096-byte grain that is not all zeros, by rising number, the number as u64 and the grain; of a snapshot, SHA-256 over
``blockyard snapshot 1\\n``, then for every volume by rising LUN the LUN as u32 and the volume's digest. Little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from blockstore.api import Closed
from blockstore.device import File
from blockstore.diff import Absent, Changes, changes
from blockstore.hold import Hold
from blockstore.layout import UNIT, UNIT_SHIFT, ZERO_CRC
from blockstore.pool import EnginePool
from blockstore.reading import read_grains
from blockstore.send import batches
from blockstore.steps import Steps, in_thread, pause, run

_VOLUME_PREFIX = b"blockyard content 1\n"
_SNAPSHOT_PREFIX = b"blockyard snapshot 1\n"
_STEPS_PER_SLICE = 8  # as in ``diff``
_NUMBER = 8  # bytes of a grain's number before it


@dataclass(frozen=True, slots=True)
class VolumeFingerprint:
    lun: int
    name: str
    size: int
    mapped: int
    """Bytes that were read and verified."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    sha256: str
    volumes: tuple[VolumeFingerprint, ...]


class Verifier:
    """Reads every mapped grain of a snapshot, verifies it, and makes the fingerprint. ``progress`` is called with
    (bytes read, bytes mapped) now and then; ``close`` always."""

    def __init__(self, pool: EnginePool, group: str, snapshot: str, progress: Callable[[int, int], None]) -> None:
        """Holds the snapshot. Raises NotFound."""
        self._pool = pool
        self._hold = Hold(pool.catalog, group, snapshot)
        self._progress = progress
        self._closed = False
        self._done = 0
        self._total = sum(pool.mapped_bytes(number) for number in self._hold.snapshot.maps.values())

    def close(self) -> None:
        self._closed = True
        self._hold.release()

    def verify(self) -> Future[Fingerprint]:
        """Raises MediumError at the first bad grain, Closed."""
        return run(self._verify())

    def _verify(self) -> Steps[Fingerprint]:
        whole = hashlib.sha256(_SNAPSHOT_PREFIX)
        volumes: list[VolumeFingerprint] = []
        for record in sorted(self._hold.snapshot.record.volumes, key=lambda each: each.lun):
            before = self._done
            digest: bytes = yield from self._volume(record.lun, record.size)
            whole.update(struct.pack("<I", record.lun) + digest)
            mapped = self._done - before
            volumes.append(VolumeFingerprint(record.lun, record.name, record.size, mapped, digest.hex()))
        return Fingerprint(whole.hexdigest(), tuple(volumes))

    def _volume(self, lun: int, size: int) -> Steps[bytes]:
        pool = self._pool
        group, snapshot = self._hold.group.record.name, self._hold.snapshot
        what = f"group {group}, snapshot {snapshot.record.name}, LUN {lun}"
        hashed = hashlib.sha256(_VOLUME_PREFIX + struct.pack("<Q", size))
        one = pool.blockmap.maps[snapshot.maps[lun]]
        for number, some in enumerate(batches(changes(pool.blockmap, None, one)), 1):
            if isinstance(some, Absent):
                yield pool.residency.fetch(some.nodes)
            elif some is not None:
                packed: bytes = yield in_thread(pool.runner, partial(_hashed_bytes, pool.data, some, what))
                yield in_thread(pool.runner, partial(hashed.update, packed))
                self._done += len(some.grains) << UNIT_SHIFT
                self._progress(self._done, self._total)
            elif number % _STEPS_PER_SLICE == 0:
                yield pause(pool.runner)
            if self._closed or isinstance(pool.writer.refusal, Closed):
                raise Closed("the verification was ended")
        return hashed.digest()


def _hashed_bytes(data: File, some: Changes, what: str) -> bytes:
    """Numbers and contents of the grains that are not zero, as they are hashed. Raises MediumError."""
    content = np.frombuffer(read_grains(data, some, what), np.uint8).reshape(-1, UNIT)
    kept = np.ones(len(some.grains), np.bool_)
    for i in np.flatnonzero(
        some.crcs == ZERO_CRC
    ).tolist():  # such grains are not written today; a checksum is no proof
        kept[i] = bool(content[i].any())
    rows = np.empty((int(np.count_nonzero(kept)), _NUMBER + UNIT), np.uint8)
    rows[:, :_NUMBER] = some.grains[kept].astype("<u8").view(np.uint8).reshape(-1, _NUMBER)
    rows[:, _NUMBER:] = content[kept]
    return rows.tobytes()
