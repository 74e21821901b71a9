"""Unit attentions: who is told what, when, and once."""

from __future__ import annotations

import pytest

from pdus.scsi import cdb
from pdus.scsi.sense import FixedFormat, SenseKey
from target.scsi import sense
from target.scsi.nexus import Nexus
from target.scsi.result import Status
from target.scsi.sense import Condition
from target.scsi.unit_attention import UnitAttentions
from tests.target.scsi.support import CONDITIONS, SIZE, Yard, data, ending

TUR = cdb.TestUnitReady()


def told(yard: Yard, nexus: Nexus | None = None, lun: int = 0) -> list[Condition]:
    """What a nexus hears until TEST UNIT READY is good."""
    heard = []
    while (end := ending(yard.send(TUR, nexus=nexus, lun=lun))) is not Status.GOOD:
        assert isinstance(end, Condition)
        heard.append(end)
    return heard


def test_a_new_nexus_is_told_of_the_power_on_for_every_unit() -> None:
    yard = Yard(SIZE, SIZE)
    nexus = yard.log_in("iqn.other", 1, hear=False)
    for lun in (0, 1):
        assert told(yard, nexus, lun) == [sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED]


def test_a_port_that_comes_back_is_told_of_the_nexus_loss(yard: Yard) -> None:
    yard.server.remove_nexus(yard.nexus)
    nexus = yard.log_in("iqn.host", 1, hear=False)
    assert told(yard, nexus) == [sense.I_T_NEXUS_LOSS_OCCURRED]


def test_a_new_unit_raises_reported_luns_changed_on_the_old_ones() -> None:
    yard = Yard(SIZE, SIZE)
    yard.set_units({0: yard.group.volumes[0]})
    told(yard)
    assert yard.set_units(yard.group.volumes)
    assert told(yard) == [sense.REPORTED_LUNS_DATA_HAS_CHANGED]
    assert told(yard, lun=1) == [sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED]


def test_the_same_units_again_change_nothing(yard: Yard) -> None:
    assert not yard.set_units(yard.group.volumes)
    assert told(yard) == []


def test_report_luns_clears_the_change_on_every_unit_of_its_nexus() -> None:
    yard = Yard(SIZE, SIZE, SIZE)
    other = yard.log_in("iqn.other", 1)
    yard.set_units({lun: yard.group.volumes[lun] for lun in (0, 1)})
    data(yard.send(cdb.ReportLuns(allocation_length=64)))
    assert told(yard, lun=0) == told(yard, lun=1) == []
    assert told(yard, other, lun=1) == [sense.REPORTED_LUNS_DATA_HAS_CHANGED]


def test_a_changed_capacity_is_told_to_every_nexus_once(yard: Yard) -> None:
    other = yard.log_in("iqn.other", 1)
    yard.server.capacity_changed(0)
    yard.server.capacity_changed(0)
    for nexus in (yard.nexus, other):
        assert told(yard, nexus) == [sense.CAPACITY_DATA_HAS_CHANGED]


@pytest.mark.parametrize("command", [cdb.Inquiry(allocation_length=96), cdb.ReportLuns(allocation_length=16)])
def test_inquiry_and_report_luns_pass_a_unit_attention_without_clearing_it(yard: Yard, command: cdb.Cdb) -> None:
    yard.server.capacity_changed(0)
    assert ending(yard.send(command)) is Status.GOOD
    assert told(yard) == [sense.CAPACITY_DATA_HAS_CHANGED]


def test_request_sense_reports_a_unit_attention_and_clears_it(yard: Yard) -> None:
    yard.server.capacity_changed(0)
    found = FixedFormat.decode(data(yard.send(cdb.RequestSense(allocation_length=18))))
    key = CONDITIONS[SenseKey(found.sense_key), found.additional_sense_code, found.additional_sense_code_qualifier]
    assert key is sense.CAPACITY_DATA_HAS_CHANGED
    assert told(yard) == []


def test_a_reset_is_told_before_what_waited_and_once() -> None:
    attentions, nexus = UnitAttentions(), Nexus("iqn.a", bytes(6))
    attentions.establish(nexus, sense.CAPACITY_DATA_HAS_CHANGED)
    attentions.establish(nexus, sense.I_T_NEXUS_LOSS_OCCURRED)
    attentions.establish(nexus, sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    heard = [attentions.take(nexus) for _ in range(3)]
    assert heard == [sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, sense.CAPACITY_DATA_HAS_CHANGED, None]
    assert not attentions.pending


def test_an_invalid_command_does_not_use_up_a_unit_attention(yard: Yard) -> None:
    yard.server.capacity_changed(0)
    assert ending(yard.send(bytes([0xC0]))) is sense.INVALID_COMMAND_OPERATION_CODE
    assert told(yard) == [sense.CAPACITY_DATA_HAS_CHANGED]


def test_ports_are_remembered_within_bounds() -> None:
    yard = Yard()
    for number in range(5000):
        yard.server.remove_nexus(yard.log_in("iqn.many", number))
    assert len(yard.server._known_ports) <= 1024
