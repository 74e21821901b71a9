"""What holds for every row of the command table."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pdus.scsi.cdb import Cdb
from target.scsi import sense
from target.scsi.commands import TABLE
from target.scsi.result import Result, Status
from target.scsi.row import Row
from tests.target.scsi.support import BLOCK, BLOCKS, SIZE, Yard, ending, pointed_field

ROWS = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
EXTENTS = [row for row in TABLE if row.extent is not None]
ROWS_WITH_EXTENT = pytest.mark.parametrize("row", EXTENTS, ids=[row.name for row in EXTENTS])


def good_cdb(row: Row, **fields: Any) -> Cdb:
    """A CDB that asks for something harmless: one block where there are blocks, 255 bytes where there are bytes."""
    if row.extent is not None:
        fields = {row.extent.length: 1, **fields}
    if "allocation_length" in row.cdb.FIELDS:
        fields = {"allocation_length": 255, **fields}
    if row.name.startswith("MODE SENSE"):
        fields = {"page_code": 0x3F, **fields}
    if row.name == "START STOP UNIT":
        fields = {"start": True, **fields}
    return row.cdb(**fields)


def send(yard: Yard, row: Row, cdb: Cdb | bytes) -> Result:
    task = yard.task(cdb)
    wanted = yard.server.admit(task)
    if isinstance(wanted, Result):
        return wanted
    task.data_out = b"\x5a" * wanted
    result = yard.execute(task)
    yard.runner.settle()
    return yard.result_of(task) if result is None else result


@ROWS
def test_a_sensible_command_ends_good(yard: Yard, row: Row) -> None:
    assert ending(send(yard, row, good_cdb(row))) is Status.GOOD


@ROWS
def test_every_reserved_bit_is_refused_and_pointed_at(yard: Yard, row: Row) -> None:
    cdb = good_cdb(row).encode()
    for at in range(row.size * 8):
        bit = 1 << (row.size * 8 - 1 - at)
        if row.forbidden & bit:
            wrong = (int.from_bytes(cdb, "big") | bit).to_bytes(row.size, "big")
            result = send(yard, row, wrong)
            assert ending(result) is sense.INVALID_FIELD_IN_CDB
            byte, top = pointed_field(result)
            assert byte == at // 8
            assert top >= 7 - at % 8


@ROWS
def test_naca_is_refused(yard: Yard, row: Row) -> None:
    cdb = bytearray(good_cdb(row).encode())
    cdb[-1] |= 0x04
    result = send(yard, row, bytes(cdb))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == (row.size - 1, 2)


@ROWS
def test_the_obsolete_link_and_flag_bits_are_ignored(yard: Yard, row: Row) -> None:
    cdb = bytearray(good_cdb(row).encode())
    cdb[-1] |= 0x03
    assert ending(send(yard, row, bytes(cdb))) is Status.GOOD


@ROWS
def test_bytes_after_the_cdb_are_ignored(yard: Yard, row: Row) -> None:
    assert ending(send(yard, row, good_cdb(row).encode().ljust(16, b"\xff"))) is Status.GOOD


@ROWS_WITH_EXTENT
def test_the_last_block_can_be_reached(yard: Yard, row: Row) -> None:
    assert ending(send(yard, row, good_cdb(row, lba=BLOCKS - 1))) is Status.GOOD


@ROWS_WITH_EXTENT
@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS, 0), (BLOCKS + 1, 0), (1 << 20, 1)])
def test_an_extent_beyond_the_end_is_out_of_range(yard: Yard, row: Row, lba: int, blocks: int) -> None:
    assert row.extent is not None
    result = send(yard, row, good_cdb(row, lba=lba, **{row.extent.length: blocks}))
    assert ending(result) is sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


@pytest.mark.parametrize("row", [row for row in EXTENTS if row.size == 16], ids=lambda row: row.name)
def test_an_lba_of_64_bits_does_not_wrap(yard: Yard, row: Row) -> None:
    result = send(yard, row, good_cdb(row, lba=(1 << 64) - 1))
    assert ending(result) is sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


@pytest.mark.parametrize(
    "row", [row for row in EXTENTS if row.size == 16 and row.extent and row.extent.limit], ids=lambda row: row.name
)
def test_an_extent_over_the_limit_is_refused_before_any_data_moves(row: Row) -> None:
    yard = Yard(1 << 40)
    assert row.extent is not None
    assert row.extent.limit is not None
    accepted = yard.server.admit(yard.task(good_cdb(row, **{row.extent.length: row.extent.limit})))
    refused = yard.server.admit(yard.task(good_cdb(row, **{row.extent.length: row.extent.limit + 1})))
    assert isinstance(accepted, int)
    assert isinstance(refused, Result)
    assert ending(refused) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(refused) == row.cdb.field_pointer(row.extent.length)


@ROWS
def test_a_lun_without_a_unit_answers_only_what_every_lun_answers(yard: Yard, row: Row) -> None:
    expected = Status.GOOD if row.name in ("INQUIRY", "REQUEST SENSE") else sense.LOGICAL_UNIT_NOT_SUPPORTED
    assert ending(yard.send(good_cdb(row), lun=7)) is expected


def test_every_pair_of_opcode_and_service_action_is_unique() -> None:
    assert len({(row.opcode, row.service_action) for row in TABLE}) == len(TABLE)


def test_an_unknown_opcode_is_refused(yard: Yard) -> None:
    known = {row.opcode for row in TABLE}
    for opcode in set(range(256)) - known:
        assert ending(yard.send(bytes([opcode]))) is sense.INVALID_COMMAND_OPERATION_CODE


def test_an_unknown_service_action_is_an_invalid_field(yard: Yard) -> None:
    result = yard.send(bytes([0x9E, 0x1F]))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == (1, 4)


@pytest.mark.parametrize("seed", range(4))
def test_random_cdbs_never_raise_and_leave_no_task_behind(seed: int) -> None:
    yard, random_ = Yard(SIZE, SIZE), random.Random(seed)
    for _ in range(500):
        row = random_.choice(TABLE)
        cdb = bytearray(good_cdb(row).encode() if random_.random() < 0.7 else bytes(row.size))
        cdb[0] = row.opcode if random_.random() < 0.9 else random_.randrange(256)
        for _ in range(random_.randrange(4)):
            cdb[random_.randrange(1, len(cdb))] = random_.randrange(256)
        task = yard.task(bytes(cdb), lun=random_.choice([-1, 0, 0, 1, 9]), attribute=random_.randrange(8))
        wanted = yard.server.admit(task)
        if not isinstance(wanted, Result):
            task.data_out = random_.randbytes(min(wanted, 4 * BLOCK)) if random_.random() < 0.9 else None
            yard.execute(task)
        yard.runner.settle()
    for unit in yard.server.units.values():
        assert not unit.task_set.tasks
        assert not unit.task_set.barriers
