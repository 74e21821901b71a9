"""Commands of direct access block devices (SBC-3): handlers of the command table.

Extents were checked when the command was admitted. Handlers know LBAs, the volume knows bytes: the multiplication by
the logical block's length happens here and nowhere else. READ and WRITE of 4 KiB are the hot path of the product
(``tests/target/scsi/measure.py`` measures them): a handler makes no object that it does not need.

Invariant: whatever changes the medium carries its task as permit, so that revoking the task stops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from blockstore.api import LOGICAL_BLOCK, Buffer, StoreError
from pdus.scsi import cdb as cdbs
from pdus.scsi.parameters import ReadCapacity10Data, ReadCapacity16Data
from target.scsi import limits, sense
from target.scsi.errors import translate
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import GOOD, Result, check_condition, data_in, invalid_field_in_cdb
from target.scsi.row import Extent, Zero
from target.scsi.steps import Step, Steps
from target.scsi.task import Completion, Finish, Task

Read = cdbs.Read10 | cdbs.Read12 | cdbs.Read16
Write = cdbs.Write10 | cdbs.Write12 | cdbs.Write16
SynchronizeCache = cdbs.SynchronizeCache10 | cdbs.SynchronizeCache16

TRANSFER = Extent("transfer_length", limit=limits.MAX_TRANSFER_LENGTH)
TRANSFER_6 = Extent("transfer_length", zero=Zero.BLOCKS_256)
VERIFICATION = Extent("verification_length", limit=limits.MAX_TRANSFER_LENGTH)
CACHED = Extent("number_of_logical_blocks", zero=Zero.TO_END)
SAME = Extent("number_of_logical_blocks", zero=Zero.TO_END, limit=limits.MAX_WRITE_SAME_LENGTH)

# --- READ and WRITE ----------------------------------------------------------------------------------------------


def read(unit: LogicalUnit, cdb: Read, task: Task, finish: Finish) -> Result | None:
    if cdb.fua and not unit.volume.write_through:
        _read_from_medium(unit, cdb, task, finish)
        return None
    return _read(unit, cdb.lba, cdb.transfer_length, task, finish)


def read_6(unit: LogicalUnit, cdb: cdbs.Read6, task: Task, finish: Finish) -> Result | None:
    return _read(unit, cdb.lba, TRANSFER_6.blocks(unit, cdb), task, finish)


def _read(unit: LogicalUnit, lba: int, blocks: int, task: Task, finish: Finish) -> Result | None:
    length = blocks * LOGICAL_BLOCK
    if not length:
        return GOOD
    data = task.data_in(length)
    try:
        if unit.volume.read_now(lba * LOGICAL_BLOCK, data):
            return Result(0, b"", data)
    except StoreError as error:
        Completion(unit, task, finish).done(error)
        return None
    _read_later(unit, lba, length, Completion(unit, task, finish))
    return None


def _read_later(unit: LogicalUnit, lba: int, length: int, completion: Completion) -> None:
    def done(error: StoreError | None, data: bytearray) -> None:
        completion.end(Result(0, b"", data) if error is None else translate(error))

    _fetch(unit, lba, length, completion.task, done)


def _fetch(
    unit: LogicalUnit, lba: int, length: int, task: Task, then: Callable[[StoreError | None, bytearray], None]
) -> None:
    """Read ``length`` bytes into a buffer of their own: the task's may be lent out again while this read waits."""
    data = bytearray(length)
    task.begin_reading(length)

    def done(error: StoreError | None) -> None:
        task.end_reading(length)
        then(error, data)

    try:
        unit.volume.read(lba * LOGICAL_BLOCK, memoryview(data), done)
    except StoreError as error:
        done(error)


def _read_from_medium(unit: LogicalUnit, cdb: Read, task: Task, finish: Finish) -> None:
    """SBC-3, FUA bit of READ: what the cache holds of these blocks is written to the medium first."""
    completion = Completion(unit, task, finish)

    def flushed(error: StoreError | None) -> None:
        if error is not None or not cdb.transfer_length:
            completion.done(error)
        else:
            _read_later(unit, cdb.lba, cdb.transfer_length * LOGICAL_BLOCK, completion)

    unit.volume.flush(flushed)


def write(unit: LogicalUnit, cdb: Write, task: Task, finish: Finish) -> Result | None:
    return _write(unit, cdb.lba, task, finish, sync=cdb.fua)


def write_6(unit: LogicalUnit, cdb: cdbs.Write6, task: Task, finish: Finish) -> Result | None:
    return _write(unit, cdb.lba, task, finish, sync=False)


def _write(unit: LogicalUnit, lba: int, task: Task, finish: Finish, *, sync: bool) -> Result | None:
    data = task.data_out or b""
    ragged = len(data) % LOGICAL_BLOCK
    if ragged:
        # The initiator expected to send less: the whole blocks that it sent are written, the rest is residual.
        data = memoryview(data)[:-ragged]
    if not data:
        return GOOD
    unit.volume.write(lba * LOGICAL_BLOCK, data, task, Completion(unit, task, finish).done, sync=sync)
    return None


def all_blocks(cdb: object, blocks: int) -> int:
    """Data-Out of WRITE: every block."""
    return blocks * LOGICAL_BLOCK


# --- cache, medium, capacity -------------------------------------------------------------------------------------


def synchronize_cache(unit: LogicalUnit, cdb: SynchronizeCache, task: Task, finish: Finish) -> Result | None:
    """The whole cache, whatever the range: a flush round costs the same."""
    if not cdb.immed:
        unit.volume.flush(Completion(unit, task, finish).done)
        return None
    unit.volume.flush(_ignore)
    return GOOD


def _ignore(error: StoreError | None) -> None:
    """IMMED asked for no outcome. A failed flush stops the pool, so the next write is told."""


def start_stop_unit(unit: LogicalUnit, cdb: cdbs.StartStopUnit, task: Task, finish: Finish) -> Result:
    """There is nothing to stop, and saying so beats taking the unit from the other initiators."""
    return GOOD if cdb.start else invalid_field_in_cdb(cdbs.StartStopUnit, "start")


def read_capacity_10(unit: LogicalUnit, cdb: cdbs.ReadCapacity10, task: Task, finish: Finish) -> Result:
    last = min(unit.blocks - 1, 0xFFFFFFFF)
    data = ReadCapacity10Data(returned_lba=last, logical_block_length=LOGICAL_BLOCK).encode()
    return data_in(data, len(data))


def read_capacity_16(unit: LogicalUnit, cdb: cdbs.ReadCapacity16, task: Task, finish: Finish) -> Result:
    data = ReadCapacity16Data(
        returned_lba=unit.blocks - 1,
        logical_block_length=LOGICAL_BLOCK,
        logical_blocks_per_physical_block_exponent=limits.LOGICAL_PER_PHYSICAL_EXPONENT,
        lbpme=True,
        lbprz=True,
    )
    return data_in(data.encode(), cdb.allocation_length)


# --- WRITE SAME --------------------------------------------------------------------------------------------------


def one_block(cdb: cdbs.WriteSame10 | cdbs.WriteSame16, blocks: int) -> int:
    """Data-Out of WRITE SAME: the pattern, unless NDOB says that it is zeros."""
    return 0 if isinstance(cdb, cdbs.WriteSame16) and cdb.ndob else LOGICAL_BLOCK


def write_same(
    unit: LogicalUnit, cdb: cdbs.WriteSame10 | cdbs.WriteSame16, task: Task, finish: Finish
) -> Result | None:
    """Zeros are unmapped even without UNMAP=1, since unmapped blocks read as zeros and nothing is anchored; a pattern
    is written even with UNMAP=1 (SBC-3, WRITE SAME: a read afterwards has to return it)."""
    pattern = bytes(LOGICAL_BLOCK) if not one_block(cdb, 0) else bytes(task.data_out or b"")
    if len(pattern) != LOGICAL_BLOCK:
        return check_condition(sense.INCORRECT_AMOUNT_OF_DATA)
    offset, length = cdb.lba * LOGICAL_BLOCK, SAME.blocks(unit, cdb) * LOGICAL_BLOCK
    if any(pattern):
        steps = _pattern_steps(unit, task, offset, length, pattern)
    else:
        steps = discard_steps(unit, task, [(offset, length)])
    Steps(steps, Completion(unit, task, finish)).run()
    return None


def _pattern_steps(unit: LogicalUnit, task: Task, offset: int, length: int, pattern: bytes) -> Iterator[Step]:
    whole = memoryview(pattern * (min(length, limits.PATTERN_SLICE) // LOGICAL_BLOCK))
    for at, size in _slices(offset, length, limits.PATTERN_SLICE):
        yield partial(unit.volume.write, at, whole[:size], task)


def discard_steps(unit: LogicalUnit, task: Task, extents: list[tuple[int, int]]) -> Iterator[Step]:
    """Unmap every (offset, length), in bytes."""
    for offset, length in extents:
        for at, size in _slices(offset, length, limits.DISCARD_SLICE):
            yield partial(unit.volume.discard, at, size, task)


def _slices(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut at multiples of ``most``, so that slices end where the store's own units end."""
    end = offset + length
    while offset < end:
        size = min(most - offset % most, end - offset)
        yield offset, size
        offset += size


# --- VERIFY ------------------------------------------------------------------------------------------------------

Verify = cdbs.Verify10 | cdbs.Verify12 | cdbs.Verify16
_MEDIUM_ONLY, _COMPARE_ALL, _COMPARE_ONE = 0b00, 0b01, 0b11  # SBC-3, BYTCHK field


def compared_data(cdb: Verify, blocks: int) -> int | Result:
    """Data-Out of VERIFY: nothing, all blocks, or the one that every block is compared with."""
    if cdb.bytchk not in (_MEDIUM_ONLY, _COMPARE_ALL, _COMPARE_ONE):
        return invalid_field_in_cdb(type(cdb), "bytchk")
    if cdb.bytchk == _MEDIUM_ONLY or not blocks:
        return 0
    return (blocks if cdb.bytchk == _COMPARE_ALL else 1) * LOGICAL_BLOCK


def verify(unit: LogicalUnit, cdb: Verify, task: Task, finish: Finish) -> Result | None:
    """Reads with checksums verified are the medium's proof; the comparison comes on top."""
    blocks = cdb.verification_length
    wanted = compared_data(cdb, blocks)
    expected = memoryview(task.data_out or b"")
    if len(expected) != wanted:
        return check_condition(sense.INCORRECT_AMOUNT_OF_DATA)
    if not blocks:
        return GOOD
    if cdb.bytchk == _COMPARE_ONE:
        expected = memoryview(bytes(expected) * blocks)
    completion = Completion(unit, task, finish)

    def done(error: StoreError | None, found: bytearray) -> None:
        if error is not None or not expected or found == expected:
            completion.done(error)
        else:
            completion.end(_miscompare(cdb.lba, found, expected))

    _fetch(unit, cdb.lba, blocks * LOGICAL_BLOCK, task, done)
    return None


def _miscompare(lba: int, found: Buffer, expected: Buffer) -> Result:
    """INFORMATION is the first block that differs (SBC-3, INFORMATION field of direct access block devices)."""
    blocks = range(0, len(found), LOGICAL_BLOCK)
    first = next(at for at in blocks if found[at : at + LOGICAL_BLOCK] != expected[at : at + LOGICAL_BLOCK])
    return check_condition(sense.MISCOMPARE_DURING_VERIFY_OPERATION, information=lba + first // LOGICAL_BLOCK)
