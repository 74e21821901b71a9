"""ABORT TASK SET, CLEAR TASK SET and the resets: whose tasks end, and who is told."""

from __future__ import annotations

from typing import Any

import pytest

from pdus.scsi import cdb
from target.scsi import sense
from target.scsi.device_server import NoSuchUnit
from target.scsi.result import UNANSWERED, Status
from tests.target.scsi.support import SIZE, FakeTask, Yard, data, ending

BLOCK_OF_A = b"a" * 512


class Two:
    """Two nexuses, each with a write under way on each of two units."""

    def __init__(self) -> None:
        self.yard = Yard(SIZE, SIZE)
        self.mine = self.yard.nexus
        self.other = self.yard.log_in("iqn.other", 1)
        self.tasks: dict[tuple[Any, int], FakeTask] = {}
        for number, nexus in enumerate((self.mine, self.other)):
            for lun in (0, 1):
                task = self.yard.task(cdb.Write10(lba=number, transfer_length=1), BLOCK_OF_A, nexus=nexus, lun=lun)
                assert self.yard.start(task) is None
                self.tasks[nexus, lun] = task

    def told(self, nexus: Any, lun: int = 0) -> object:
        return ending(self.yard.send(cdb.TestUnitReady(), nexus=nexus, lun=lun))

    def landed(self, lun: int) -> list[bool]:
        """Whether my write and the other's are on the medium."""
        self.yard.runner.settle()
        found = data(self.yard.send(cdb.Read10(transfer_length=2), lun=lun))
        return [found[:512] == BLOCK_OF_A, found[512:] == BLOCK_OF_A]


@pytest.fixture
def two() -> Two:
    return Two()


def test_abort_task_set_aborts_only_its_nexus_on_its_unit(two: Two) -> None:
    assert two.yard.server.abort_task_set(two.mine, 0) == [two.tasks[two.mine, 0]]
    assert [task.revoked for task in two.tasks.values()] == [True, False, False, False]
    assert two.landed(0) == [False, True]
    assert two.landed(1) == [True, True]
    assert two.told(two.other) is Status.GOOD


def test_aborted_tasks_are_not_answered(two: Two) -> None:
    two.yard.server.abort_task_set(two.mine, 0)
    two.yard.runner.settle()
    assert two.yard.result_of(two.tasks[two.mine, 0]) is UNANSWERED


def test_clear_task_set_aborts_everybodys_and_tells_the_others(two: Two) -> None:
    assert len(two.yard.server.clear_task_set(two.mine, 0)) == 2
    assert two.told(two.mine) is Status.GOOD
    assert two.told(two.other) is sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
    assert two.told(two.other, lun=1) is Status.GOOD
    assert two.landed(0) == [False, False]


def test_clear_task_set_tells_nobody_who_lost_nothing(two: Two) -> None:
    two.yard.runner.settle()
    assert two.yard.server.clear_task_set(two.mine, 0) == []
    assert two.told(two.other) is Status.GOOD


def test_logical_unit_reset_aborts_everybodys_and_tells_the_others(two: Two) -> None:
    assert len(two.yard.server.logical_unit_reset(two.mine, 0)) == 2
    assert two.told(two.mine) is Status.GOOD
    assert two.told(two.other) is sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    assert two.landed(0) == [False, False]
    assert two.landed(1) == [True, True]


def test_target_reset_resets_every_unit(two: Two) -> None:
    assert len(two.yard.server.target_reset(two.mine)) == 4
    for lun in (0, 1):
        assert two.told(two.other, lun) is sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
        assert two.landed(lun) == [False, False]


def test_removing_a_nexus_aborts_its_tasks(two: Two) -> None:
    two.yard.server.remove_nexus(two.mine)
    for lun in (0, 1):
        two.yard.runner.settle()
        found = data(two.yard.send(cdb.Read10(transfer_length=2), lun=lun, nexus=two.other))
        assert found == bytes(512) + BLOCK_OF_A


@pytest.mark.parametrize("function", ["abort_task_set", "clear_task_set", "logical_unit_reset"])
def test_task_management_of_an_unknown_lun_is_refused(two: Two, function: str) -> None:
    with pytest.raises(NoSuchUnit, match=r"LUN 5: the target has \[0, 1\]"):
        getattr(two.yard.server, function)(two.mine, 5)
