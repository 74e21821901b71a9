"""Who waits for whom in a task set, and what aborting does to it."""

from __future__ import annotations

import pytest

from blockstore.api import Done
from pdus.scsi import cdb
from target.scsi import sense
from target.scsi.result import UNANSWERED, Result, Status
from target.scsi.task import TaskAttribute
from tests.target.scsi.support import SIZE, FakeTask, Yard, ending

SIMPLE, ORDERED, HEAD = TaskAttribute.SIMPLE, TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE


class Stage:
    """A yard where SYNCHRONIZE CACHE waits until the test ends it, and TEST UNIT READY ends at once."""

    def __init__(self) -> None:
        self.yard = Yard(SIZE)
        self.flushes: list[Done] = []
        self.started: list[FakeTask] = []
        self.yard.group.volumes[0].flush = self.flushes.append  # type: ignore[assignment, method-assign]

    def slow(self, attribute: int = SIMPLE) -> FakeTask:
        return self._begin(cdb.SynchronizeCache10(), attribute)

    def quick(self, attribute: int = SIMPLE) -> FakeTask:
        return self._begin(cdb.TestUnitReady(), attribute)

    def _begin(self, command: cdb.Cdb, attribute: int) -> FakeTask:
        task = self.yard.task(command, attribute=attribute)
        result = self.yard.start(task)
        if result is not None:
            self.yard.finished.append((task, result))
        return task

    def end_flush(self, number: int = 0) -> None:
        self.flushes.pop(number)(None)

    @property
    def ended(self) -> list[FakeTask]:
        return [task for task, result in self.yard.finished if result is not UNANSWERED]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize("attribute", [TaskAttribute.UNTAGGED, SIMPLE])
def test_simple_tasks_overtake_each_other(stage: Stage, attribute: int) -> None:
    stage.slow(attribute)
    young = stage.quick(attribute)
    assert stage.ended == [young]


def test_an_ordered_task_waits_for_everything_older(stage: Stage) -> None:
    first, second = stage.slow(), stage.slow()
    ordered = stage.quick(ORDERED)
    stage.end_flush(1)
    assert stage.ended == [second]
    stage.end_flush()
    assert stage.ended == [second, first, ordered]


def test_younger_tasks_wait_for_an_ordered_one(stage: Stage) -> None:
    ordered = stage.slow(ORDERED)
    young = stage.quick()
    assert stage.ended == []
    stage.end_flush()
    assert stage.ended == [ordered, young]


def test_ordered_tasks_run_one_after_another(stage: Stage) -> None:
    first, second = stage.slow(ORDERED), stage.slow(ORDERED)
    assert len(stage.flushes) == 1
    stage.end_flush()
    assert len(stage.flushes) == 1
    stage.end_flush()
    assert stage.ended == [first, second]


def test_a_head_of_queue_task_runs_at_once(stage: Stage) -> None:
    stage.slow(ORDERED)
    stage.quick()
    head = stage.quick(HEAD)
    assert stage.ended == [head]


def test_whoever_has_not_begun_waits_for_a_head_of_queue_task(stage: Stage) -> None:
    head = stage.slow(HEAD)
    simple, ordered = stage.quick(), stage.quick(ORDERED)
    assert stage.ended == []
    stage.end_flush()
    assert stage.ended == [head, simple, ordered]


def test_a_task_that_waits_for_its_data_holds_back_an_ordered_one(stage: Stage) -> None:
    write = stage.yard.task(cdb.Write10(transfer_length=1))
    assert stage.yard.server.admit(write) == 512
    ordered = stage.quick(ORDERED)
    assert stage.ended == []
    write.data_out = bytes(512)
    stage.yard.execute(write)
    stage.yard.runner.settle()
    assert stage.ended == [write, ordered]


def test_a_long_queue_of_waiting_tasks_is_not_deep_recursion(stage: Stage) -> None:
    stage.slow(ORDERED)
    tasks = [stage.quick(ORDERED if number % 2 else SIMPLE) for number in range(2000)]
    stage.end_flush()
    assert stage.ended[1:] == tasks


def test_the_test_of_the_hot_path_is_zero_again_when_all_have_ended(stage: Stage) -> None:
    stage.slow(ORDERED)
    stage.slow(HEAD)
    stage.end_flush()
    stage.end_flush()
    task_set = stage.yard.server.units[0].task_set
    assert (task_set.barriers, dict(task_set.tasks)) == (0, {})


@pytest.mark.parametrize("attribute", [4, 5, 6, 7])
def test_aca_and_reserved_attributes_are_refused(stage: Stage, attribute: int) -> None:
    result = stage.yard.send(cdb.TestUnitReady(), attribute=attribute)
    assert ending(result) is sense.INVALID_MESSAGE_ERROR


def test_a_waiting_task_that_is_aborted_never_runs(stage: Stage) -> None:
    stage.slow(ORDERED)
    waiting = stage.slow()
    stage.yard.server.abort(waiting)
    stage.end_flush()
    assert waiting.revoked
    assert stage.flushes == []
    assert waiting not in [task for task, _ in stage.yard.finished]


def test_aborting_an_ordered_task_lets_the_others_go(stage: Stage) -> None:
    stage.slow()
    ordered = stage.slow(ORDERED)
    young = stage.quick()
    stage.yard.server.abort(ordered)
    assert stage.ended == [young]


def test_an_aborted_running_task_ends_unanswered(stage: Stage) -> None:
    task = stage.slow()
    stage.yard.server.abort(task)
    stage.end_flush()
    assert stage.yard.finished == [(task, UNANSWERED)]


def test_aborting_a_task_that_was_never_admitted_only_revokes_it(stage: Stage) -> None:
    task = stage.yard.task(cdb.TestUnitReady())
    stage.yard.server.abort(task)
    assert task.revoked


def test_a_task_that_ended_by_a_check_is_not_in_the_task_set(stage: Stage) -> None:
    assert isinstance(stage.yard.server.admit(stage.yard.task(cdb.Read10(lba=1 << 30))), Result)
    assert not stage.yard.server.units[0].task_set.tasks


def test_a_unit_that_is_removed_lets_its_tasks_end(stage: Stage) -> None:
    task = stage.slow()
    stage.yard.set_units({})
    stage.end_flush()
    assert ending(stage.yard.result_of(task)) is Status.GOOD
