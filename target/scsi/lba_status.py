"""GET LBA STATUS: which blocks are mapped, straight from the volume's map (SBC-3, GET LBA STATUS command).

Invariant: the descriptors follow each other without a gap, and neighbours differ in state.
"""

from __future__ import annotations

from blockstore.api import LOGICAL_BLOCK, StoreError
from pdus.scsi import cdb as cdbs
from pdus.scsi.parameters import DEALLOCATED, MAPPED, LbaStatusDescriptor, LbaStatusHeader
from target.scsi import sense
from target.scsi.errors import translate
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import Result, check_condition, data_in
from target.scsi.task import Finish, Task

MAX_DESCRIPTORS = 128
"""An initiator asks again from where the answer ends; guessed, keeps a fragmented map from holding the loop."""
MAX_RUNS = 256
"""Runs of the map that one command looks at: 2 GiB of unfragmented volume, about a millisecond."""


def get_lba_status(unit: LogicalUnit, cdb: cdbs.GetLbaStatus, task: Task, finish: Finish) -> Result:
    if cdb.lba >= unit.blocks:
        return check_condition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    room = (cdb.allocation_length - LbaStatusHeader.SIZE) // LbaStatusDescriptor.SIZE
    try:
        found = _descriptors(unit, cdb.lba, max(1, min(room, MAX_DESCRIPTORS)))
    except StoreError as error:
        return translate(error)
    body = b"".join(descriptor.encode() for descriptor in found)
    header = LbaStatusHeader(parameter_data_length=LbaStatusHeader.SIZE - 4 + len(body))
    return data_in(header.encode() + body, cdb.allocation_length)


def _descriptors(unit: LogicalUnit, lba: int, most: int) -> list[LbaStatusDescriptor]:
    found: list[LbaStatusDescriptor] = []
    for _ in range(MAX_RUNS):
        if lba >= unit.blocks:
            break
        mapped, length = unit.volume.unmapped_run(lba * LOGICAL_BLOCK)
        status = MAPPED if mapped else DEALLOCATED
        blocks = min(length // LOGICAL_BLOCK, unit.blocks - lba)
        if found and found[-1].provisioning_status == status:
            found[-1].blocks += blocks
        elif len(found) == most:
            break
        else:
            found.append(LbaStatusDescriptor(lba=lba, blocks=blocks, provisioning_status=status))
        lba += blocks
    return found
