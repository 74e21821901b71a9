"""UNMAP: its parameter list's checks, and the discards that follow (SBC-3, UNMAP command).

All descriptors are checked before the first block is unmapped.
"""

from __future__ import annotations

from blockstore.api import LOGICAL_BLOCK, Buffer
from pdus.scsi.cdb import Unmap
from pdus.scsi.parameters import UnmapBlockDescriptor, UnmapHeader
from target.scsi import limits, sense
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import GOOD, Result, check_condition, invalid_field_in_parameter_list
from target.scsi.sbc import discard_steps
from target.scsi.steps import Steps
from target.scsi.task import Completion, Finish, Task

_DESCRIPTORS_LENGTH_AT = 2  # offset of UNMAP BLOCK DESCRIPTOR DATA LENGTH in the parameter list
_BLOCKS_AT = 8  # offset of NUMBER OF LOGICAL BLOCKS in a descriptor


def parameter_list(cdb: Unmap, blocks: int) -> int | Result:
    """Data-Out of UNMAP. A list that ends within its header is refused before it is sent; an empty one is no error."""
    if 0 < cdb.parameter_list_length < UnmapHeader.SIZE:
        return check_condition(sense.PARAMETER_LIST_LENGTH_ERROR)
    return cdb.parameter_list_length


def unmap(unit: LogicalUnit, cdb: Unmap, task: Task, finish: Finish) -> Result | None:
    data = task.data_out or b""
    if len(data) != cdb.parameter_list_length:
        return check_condition(sense.INCORRECT_AMOUNT_OF_DATA)
    extents = _extents(unit, data) if data else []
    if isinstance(extents, Result):
        return extents
    if not extents:
        return GOOD
    Steps(discard_steps(unit, task, extents), Completion(unit, task, finish)).run()
    return None


def _extents(unit: LogicalUnit, data: Buffer) -> list[tuple[int, int]] | Result:
    """(offset, length) in bytes of every descriptor that names blocks, or the refusal of the list. A last descriptor
    that is cut off is ignored (SBC-3)."""
    described = UnmapHeader.decode(data).unmap_block_descriptor_data_length
    count = min(described, len(data) - UnmapHeader.SIZE) // UnmapBlockDescriptor.SIZE
    if count > limits.MAX_UNMAP_DESCRIPTORS:
        return invalid_field_in_parameter_list(_DESCRIPTORS_LENGTH_AT)
    extents: list[tuple[int, int]] = []
    capacity, total = unit.blocks, 0
    for number in range(count):
        at = UnmapHeader.SIZE + number * UnmapBlockDescriptor.SIZE
        one = UnmapBlockDescriptor.decode(data, at)
        if one.lba + one.number_of_logical_blocks > capacity:
            return check_condition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
        total += one.number_of_logical_blocks
        if total > limits.MAX_UNMAP_BLOCKS:
            return invalid_field_in_parameter_list(at + _BLOCKS_AT)
        if one.number_of_logical_blocks:
            extents.append((one.lba * LOGICAL_BLOCK, one.number_of_logical_blocks * LOGICAL_BLOCK))
    return extents
