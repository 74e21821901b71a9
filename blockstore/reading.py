"""Reading many grains at once in a helper thread, every one verified: what send and the fingerprint are made of.

Works on columns handed to it and the data file; knows no map. The blocks must be kept from reuse by the caller
(``hold``). Invariant: no byte is returned whose checksum did not match.
"""

from __future__ import annotations

import numpy as np
from crc32c import crc32c

from blockstore.api import MediumError
from blockstore.device import File
from blockstore.diff import Changes
from blockstore.layout import UNIT, UNIT_SHIFT
from blockstore.volume import runs_of_blocks


def read_grains(data: File, wanted: Changes, what: str) -> bytearray:
    """The contents of all grains of ``wanted``, which are mapped, behind each other. ``what`` names the volume in
    errors. Raises MediumError with the offset of the first bad grain."""
    content = bytearray(len(wanted.grains) << UNIT_SHIFT)
    view = memoryview(content)
    for start, count, block in runs_of_blocks(wanted.blocks):
        part = view[start << UNIT_SHIFT : (start + count) << UNIT_SHIFT]
        try:
            data.read(block << UNIT_SHIFT, part)
        except OSError as error:
            raise MediumError(f"{what}: block {block} cannot be read: {error}", _offset(wanted, start)) from error
    for i, crc in enumerate(wanted.crcs.tolist()):
        if crc32c(view[i * UNIT : (i + 1) * UNIT]) != crc:
            offset = _offset(wanted, i)
            block = int(wanted.blocks[i])
            raise MediumError(f"{what}, LBA {offset >> 9}: checksum of block {block} does not match", offset)
    return content


def _offset(wanted: Changes, index: int) -> int:
    return int(wanted.grains[index]) << UNIT_SHIFT


def select(of: Changes, which: np.ndarray[tuple[int], np.dtype[np.bool_]] | slice) -> Changes:
    """The same columns for some of the grains."""
    return Changes(of.grains[which], of.entries[which], of.crcs[which])


def concatenate(parts: list[Changes]) -> Changes:
    if len(parts) == 1:
        return parts[0]
    return Changes(
        np.concatenate([part.grains for part in parts]),
        np.concatenate([part.entries for part in parts]),
        np.concatenate([part.crcs for part in parts]),
    )
