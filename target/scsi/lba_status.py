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
from target.scsi.task import Completion, Finish, Task

MAX_DESCRIPTORS = 128
"""An initiator asks again from where the answer ends; guessed, keeps a fragmented map from holding the loop."""
MAX_RUNS = 256
"""Runs of the map that one command looks at: 2 GiB of unfragmented volume, about a millisecond."""


class _NotThere(Exception):
    """Part of the map must be loaded first."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def get_lba_status(unit: LogicalUnit, cdb: cdbs.GetLbaStatus, task: Task, finish: Finish) -> Result | None:
    if cdb.lba >= unit.blocks:
        return check_condition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    try:
        return _status(unit, cdb)
    except StoreError as error:
        return translate(error)
    except _NotThere as missing:
        _load_first(unit, cdb, missing.offset, Completion(unit, task, finish))
        return None


def _load_first(unit: LogicalUnit, cdb: cdbs.GetLbaStatus, offset: int, completion: Completion) -> None:
    def loaded(error: StoreError | None) -> None:
        if error is not None or completion.task.revoked:
            completion.done(error)
            return
        try:
            completion.end(_status(unit, cdb))
        except StoreError as problem:
            completion.done(problem)
        except _NotThere as missing:  # the next part
            _load_first(unit, cdb, missing.offset, completion)

    unit.volume.load_map(offset, loaded)


def _status(unit: LogicalUnit, cdb: cdbs.GetLbaStatus) -> Result:
    room = (cdb.allocation_length - LbaStatusHeader.SIZE) // LbaStatusDescriptor.SIZE
    found = _descriptors(unit, cdb.lba, max(1, min(room, MAX_DESCRIPTORS)))
    body = b"".join(descriptor.encode() for descriptor in found)
    header = LbaStatusHeader(parameter_data_length=LbaStatusHeader.SIZE - 4 + len(body))
    return data_in(header.encode() + body, cdb.allocation_length)


def _descriptors(unit: LogicalUnit, lba: int, most: int) -> list[LbaStatusDescriptor]:
    found: list[LbaStatusDescriptor] = []
    for _ in range(MAX_RUNS):
        if lba >= unit.blocks:
            break
        run = unit.volume.unmapped_run(lba * LOGICAL_BLOCK)
        if run is None:
            raise _NotThere(lba * LOGICAL_BLOCK)
        mapped, length = run
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
