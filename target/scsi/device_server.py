"""The device server of one target: admits tasks, runs them when their turn has come, aborts them (SAM-5).

It holds wiring only: what a command is stands in the table, what it does in its handler, who waits for whom in the
task set. It knows no sockets, no clock, no event loop; everything is called on the loop thread.

Order of the checks (SAM-5 leaves some of it open): logical unit, task attribute, operation code, reserved bits of the
CDB, unit attention, write protection, (reservations,) extent, amount of data. All of them come before any data moves;
only what depends on parameter data is checked by the handler.

Invariant: a task is in its unit's task set from ``admit`` until its end, its abort or its removal, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from blockstore.api import Volume
from target.scsi import sense
from target.scsi.commands import BY_OPCODE, OPCODES_WITH_SERVICE_ACTIONS, find_by_service_action
from target.scsi.logical_unit import AbsentUnit, LogicalUnit, Unit
from target.scsi.nexus import Nexus
from target.scsi.result import UNANSWERED, Result, check_condition, invalid_bit_in_cdb
from target.scsi.row import Flags, Row
from target.scsi.sense import Condition
from target.scsi.task import Task, TaskAttribute

__all__ = ["UNANSWERED", "DeviceServer", "NoSuchUnit"]

T = TypeVar("T", bound=Task)

_REMEMBERED_PORTS = 1024  # guessed; a forgotten port is told of a power on instead of a nexus loss, which says more


class NoSuchUnit(Exception):
    """Task management for a LUN that has no logical unit."""


class DeviceServer:
    def __init__(self) -> None:
        self.units: dict[int, LogicalUnit] = {}
        self._nexuses: dict[Nexus, None] = {}
        self._known_ports: dict[str, None] = {}
        """Initiator ports that had a nexus before, the latest last."""

    # --- what it serves ------------------------------------------------------------------------------------------

    def set_units(self, volumes: Mapping[int, Volume], names: Mapping[int, str]) -> bool:
        """Serve exactly these volumes, by LUN. True if a unit came or went; every nexus is then told that the list of
        LUNs changed. A LUN that now has another volume is a unit that went and one that came."""
        gone = [lun for lun, unit in self.units.items() if volumes.get(lun) is not unit.volume]
        for lun in gone:
            del self.units[lun]
        came = [lun for lun in volumes if lun not in self.units]
        if came or gone:
            for nexus in self._nexuses:
                self._establish(nexus, sense.REPORTED_LUNS_DATA_HAS_CHANGED, self.units.values())
        for lun in came:
            unit = self.units[lun] = LogicalUnit(lun, self.units, volumes[lun], names[lun])
            for nexus in self._nexuses:
                unit.attentions.establish(nexus, sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)
        for lun, unit in self.units.items():
            unit.name = names[lun]
        return bool(came or gone)

    def capacity_changed(self, lun: int) -> None:
        """The volume behind ``lun`` has another size than before: tell every nexus."""
        self._tell_all(lun, sense.CAPACITY_DATA_HAS_CHANGED)

    def mode_changed(self, lun: int) -> None:
        """A mode page of ``lun`` has other values than before (WCE, with the cache policy): tell every nexus."""
        self._tell_all(lun, sense.MODE_PARAMETERS_CHANGED)

    def _tell_all(self, lun: int, condition: Condition) -> None:
        for nexus in self._nexuses:
            self.units[lun].attentions.establish(nexus, condition)

    def add_nexus(self, nexus: Nexus) -> None:
        """A session begins. Its first command is told of the power on, or, if this initiator port was here before, of
        the loss of its nexus."""
        known = nexus.initiator_port in self._known_ports
        self._known_ports.pop(nexus.initiator_port, None)
        self._known_ports[nexus.initiator_port] = None
        if len(self._known_ports) > _REMEMBERED_PORTS:
            del self._known_ports[next(iter(self._known_ports))]
        self._nexuses[nexus] = None
        reset = sense.I_T_NEXUS_LOSS_OCCURRED if known else sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
        self._establish(nexus, reset, self.units.values())

    def remove_nexus(self, nexus: Nexus) -> None:
        """A session has ended: its tasks are aborted, its unit attentions forgotten."""
        self._nexuses.pop(nexus, None)
        for unit in self.units.values():
            self.abort(*_tasks_of(unit, nexus))
            unit.attentions.forget(nexus)

    def _establish(self, nexus: Nexus, condition: Condition, units: Iterable[Unit]) -> None:
        for unit in units:
            unit.attentions.establish(nexus, condition)

    # --- a task's life -------------------------------------------------------------------------------------------

    def admit(self, task: Task) -> Result | int:
        """Check a new task and take it into its unit's task set. Returns the bytes of Data-Out that it wants (0: none),
        to be followed by ``execute`` when they are there; or the Result of a task that ended here."""
        cdb = task.cdb
        unit: Unit | None = self.units.get(task.lun)
        row = BY_OPCODE[cdb[0]]
        if unit is None or row is None or task.attribute > TaskAttribute.HEAD_OF_QUEUE:
            found = self._look_further(task, unit, row)
            if isinstance(found, Result):
                return found
            unit, row = found
        if int.from_bytes(cdb[: row.size], "big") & row.forbidden:
            return invalid_bit_in_cdb(*row.reserved_bit(cdb))
        if unit.attentions.pending and Flags.PASSES_ATTENTION not in row.flags:
            condition = unit.attentions.take(task.nexus)
            if condition is not None:
                return check_condition(condition)
        if row.writes and task.nexus.read_only:
            return check_condition(sense.WRITE_PROTECTED)
        decoded = row.decode(cdb)
        blocks = 0
        if row.extent is not None:
            assert isinstance(unit, LogicalUnit)
            checked = row.extent.check(unit, decoded)
            if isinstance(checked, Result):
                return checked
            blocks = checked
        wanted = 0 if row.data_out is None else row.data_out(decoded, blocks)
        if type(wanted) is int:
            task.scsi = (unit, row, decoded)
            unit.task_set.enter(task)
        return wanted

    def _look_further(self, task: Task, unit: Unit | None, row: Row | None) -> Result | tuple[Unit, Row]:
        """Admission of whatever the straight path does not know: no unit there, a service action, an odd attribute."""
        opcode = task.cdb[0]
        if row is None and opcode in OPCODES_WITH_SERVICE_ACTIONS:
            row = find_by_service_action(task.cdb)
        if unit is None:
            unit = AbsentUnit(task.lun, self.units)
            if row is None or Flags.ANY_LUN not in row.flags or (row.name == "REPORT LUNS" and task.lun != 0):
                return check_condition(sense.LOGICAL_UNIT_NOT_SUPPORTED)
        if task.attribute > TaskAttribute.HEAD_OF_QUEUE:
            # ACA without an auto contingent allegiance, or a reserved value (SAM-5, Task attributes).
            return check_condition(sense.INVALID_MESSAGE_ERROR)
        if row is not None:
            return unit, row
        if opcode in OPCODES_WITH_SERVICE_ACTIONS:
            return invalid_bit_in_cdb(1, 4)  # the SERVICE ACTION field (SPC-4, commands with service actions)
        return check_condition(sense.INVALID_COMMAND_OPERATION_CODE)

    def execute(self, task: T, finish: Callable[[T, Result], None]) -> Result | None:
        """Run an admitted task whose Data-Out is there, or keep it until its turn. Returns its Result, or None if
        ``finish(task, result)`` was or will be called; not called for a task that is aborted before its turn."""
        unit, row, cdb = task.scsi
        task_set = unit.task_set
        if task_set.barriers and not task_set.may_start(task):
            task_set.park(task, partial(self._start, task, finish))
            return None
        result: Result | None = row.handler(unit, cdb, task, finish)
        if result is not None:
            task_set.leave(task)
        return result

    def _start(self, task: T, finish: Callable[[T, Result], None]) -> None:
        """The turn of a task that waited has come."""
        unit, row, cdb = task.scsi
        result = row.handler(unit, cdb, task, finish)
        if result is not None:
            finish(task, result)
            unit.task_set.leave(task)

    # --- task management (SAM-5, Task management functions) --------------------------------------------------------

    def abort(self, *tasks: Task) -> None:
        """Revoke tasks, admitted or not. None of them is answered, and none starts that waits."""
        # All are revoked and dormant no more before the end of one can start another.
        for task in tasks:
            task.revoked = True
        by_unit: dict[Unit, list[Task]] = {}
        for task in tasks:
            if task.scsi is not None:
                by_unit.setdefault(task.scsi[0], []).append(task)
        for unit, of_unit in by_unit.items():
            unit.task_set.remove(of_unit)

    def abort_task_set(self, nexus: Nexus, lun: int) -> list[Any]:
        """Abort all tasks of ``nexus`` on the unit; returns them, as does every function below (Any: the very objects
        that ``admit`` was given). Raises NoSuchUnit."""
        tasks = _tasks_of(self._unit(lun), nexus)
        self.abort(*tasks)
        return tasks

    def clear_task_set(self, nexus: Nexus, lun: int) -> list[Any]:
        """Abort everybody's tasks on the unit; the others who lost some are told. Raises NoSuchUnit."""
        unit = self._unit(lun)
        tasks = list(unit.task_set.tasks)
        self.abort(*tasks)
        for other in {task.nexus: None for task in tasks if task.nexus is not nexus}:
            unit.attentions.establish(other, sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
        return tasks

    def logical_unit_reset(self, nexus: Nexus, lun: int) -> list[Any]:
        """Abort everybody's tasks on the unit; the other nexuses are told of the reset. Raises NoSuchUnit."""
        unit = self._unit(lun)
        return self._reset(nexus, unit, sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def target_reset(self, nexus: Nexus) -> list[Any]:
        """Reset every unit."""
        tasks: list[Any] = []
        for unit in self.units.values():
            tasks += self._reset(nexus, unit, sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)
        return tasks

    def _reset(self, nexus: Nexus, unit: LogicalUnit, condition: Condition) -> list[Any]:
        for other in self._nexuses:
            if other is not nexus:
                unit.attentions.establish(other, condition)
        tasks = list(unit.task_set.tasks)
        self.abort(*tasks)
        return tasks

    def _unit(self, lun: int) -> LogicalUnit:
        unit = self.units.get(lun)
        if unit is None:
            raise NoSuchUnit(f"LUN {lun}: the target has {sorted(self.units)}")
        return unit


def _tasks_of(unit: Unit, nexus: Nexus) -> list[Any]:
    return [task for task in unit.task_set.tasks if task.nexus is nexus]
