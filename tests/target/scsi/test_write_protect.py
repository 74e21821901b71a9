"""A nexus for which every unit is write protected: every command that writes is refused, before its data moves."""

from __future__ import annotations

import pytest

from pdus.scsi import cdb, mode
from pdus.scsi.mode import ModePage
from target.scsi import sense
from target.scsi.commands import TABLE
from target.scsi.nexus import Nexus
from target.scsi.result import Result, Status
from target.scsi.row import Access, Direction, Row
from tests.target.scsi.support import Yard, data, ending

WRITING = [row for row in TABLE if row.writes]


@pytest.fixture
def reader(yard: Yard) -> Nexus:
    nexus = Nexus("iqn.reader", bytes(6), read_only=True)
    yard.server.add_nexus(nexus)
    for unit in yard.server.units.values():
        while unit.attentions.take(nexus):
            pass
    return nexus


@pytest.mark.parametrize("row", WRITING, ids=lambda row: row.name)
def test_every_command_that_writes_is_refused_before_its_data(yard: Yard, reader: Nexus, row: Row) -> None:
    admitted = yard.server.admit(yard.task(row.cdb().encode(), nexus=reader))
    assert isinstance(admitted, Result)
    assert ending(admitted) is sense.WRITE_PROTECTED
    assert not isinstance(yard.server.admit(yard.task(row.cdb().encode())), Result) or row.name == "UNMAP"


def test_all_that_brings_data_to_the_medium_is_among_them() -> None:
    names = {row.name for row in TABLE if row.access is Access.WRITE and row.direction is not Direction.NONE}
    assert {row.name for row in WRITING} == names
    assert {"WRITE (6)", "WRITE (10)", "WRITE (12)", "WRITE (16)", "WRITE SAME (16)", "UNMAP"} <= names


def test_reading_flushing_and_asking_go_on(yard: Yard, reader: Nexus) -> None:
    assert len(data(yard.send(cdb.Read10(lba=0, transfer_length=1), nexus=reader))) == 512
    assert ending(yard.send(cdb.SynchronizeCache10(), nexus=reader)) is Status.GOOD
    assert ending(yard.send(cdb.TestUnitReady(), nexus=reader)) is Status.GOOD


def test_the_mode_header_says_so_to_this_nexus_alone(yard: Yard, reader: Nexus) -> None:
    short = cdb.ModeSense6(dbd=True, page_code=ModePage.ALL, allocation_length=255)
    long = cdb.ModeSense10(dbd=True, page_code=ModePage.ALL, allocation_length=255)
    assert mode.ModeParameterHeader6.decode(data(yard.send(short, nexus=reader))).wp
    assert mode.ModeParameterHeader10.decode(data(yard.send(long, nexus=reader))).wp
    assert not mode.ModeParameterHeader6.decode(data(yard.send(short))).wp
