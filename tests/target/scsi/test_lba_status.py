"""GET LBA STATUS."""

from __future__ import annotations

import pytest

from pdus.scsi import cdb
from pdus.scsi.parameters import DEALLOCATED, MAPPED, LbaStatusDescriptor, LbaStatusHeader
from target.scsi import sense
from target.scsi.result import Status
from tests.target.scsi.support import BLOCK, BLOCKS, Yard, data, ending


def states(yard: Yard, lba: int = 0, allocation_length: int = 4096) -> list[tuple[int, int, int]]:
    answer = data(yard.send(cdb.GetLbaStatus(lba=lba, allocation_length=allocation_length)))
    length = LbaStatusHeader.decode(answer).parameter_data_length + 4
    found = [
        LbaStatusDescriptor.decode(answer, at)
        for at in range(LbaStatusHeader.SIZE, min(length, len(answer)), LbaStatusDescriptor.SIZE)
    ]
    return [(one.lba, one.blocks, one.provisioning_status) for one in found]


def write(yard: Yard, lba: int, blocks: int) -> None:
    result = yard.send(cdb.Write10(lba=lba, transfer_length=blocks), b"x" * BLOCK * blocks)
    assert ending(result) is Status.GOOD


def test_an_untouched_unit_is_one_deallocated_run(yard: Yard) -> None:
    assert states(yard) == [(0, BLOCKS, DEALLOCATED)]


def test_written_blocks_are_mapped_in_whole_grains(yard: Yard) -> None:
    write(yard, 16, 8)
    write(yard, 33, 1)
    expected = [
        (0, 16, DEALLOCATED),
        (16, 8, MAPPED),
        (24, 8, DEALLOCATED),
        (32, 8, MAPPED),
        (40, BLOCKS - 40, DEALLOCATED),
    ]
    assert states(yard) == expected


def test_the_first_descriptor_begins_at_the_starting_block(yard: Yard) -> None:
    write(yard, 16, 8)
    assert states(yard, lba=19)[0] == (19, 5, MAPPED)


def test_only_as_many_descriptors_come_as_there_is_room_for(yard: Yard) -> None:
    write(yard, 16, 8)
    assert states(yard, allocation_length=24) == [(0, 16, DEALLOCATED)]
    assert len(states(yard, allocation_length=8 + 2 * 16)) == 2


@pytest.mark.parametrize("lba", [BLOCKS, BLOCKS + 1, (1 << 64) - 1])
def test_a_starting_block_beyond_the_end_is_out_of_range(yard: Yard, lba: int) -> None:
    result = yard.send(cdb.GetLbaStatus(lba=lba, allocation_length=24))
    assert ending(result) is sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


def test_volume_removed_under_a_waiting_command_is_no_unit_any_more(yard: Yard) -> None:
    task = yard.task(cdb.GetLbaStatus(allocation_length=4096))
    assert yard.server.admit(task) == 0
    yard.group.remove_volume(0)
    yard.runner.settle()
    result = yard.execute(task)
    assert result is not None
    assert ending(result) is sense.LOGICAL_UNIT_NOT_SUPPORTED
