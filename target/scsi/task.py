"""The task as the device server sees it, and how a task ends that had to wait.

The object is made by the transport; this room and the transport's know each other only through this Protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from blockstore.api import Buffer, StoreError
from target.scsi.errors import translate
from target.scsi.result import GOOD, UNANSWERED, Result

if TYPE_CHECKING:
    from target.scsi.logical_unit import Unit


class TaskAttribute(IntEnum):
    """SAM-5, Task attributes, with the values of RFC 7143 11.3.1."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3


class Task(Protocol):
    """One SCSI command. It is the store's Permit for what it writes."""

    revoked: bool
    scsi: Any
    """The device server's own slot: what ``admit`` found out, for ``execute``."""

    @property
    def lun(self) -> int:
        """-1 if the address method is not understood."""

    @property
    def cdb(self) -> bytes:
        """At least 16 bytes."""

    @property
    def attribute(self) -> int: ...

    @property
    def data_out(self) -> Buffer | None:
        """All the Data-Out there will be; shorter than wanted if the initiator expected to send less."""

    @property
    def nexus(self) -> Any:
        """A Nexus; Any because the transport carries it without knowing it."""

    def data_in(self, length: int) -> memoryview:
        """A writable buffer of ``length`` bytes, to be given to the Result before the handler returns."""

    def begin_reading(self, length: int) -> None:
        """A handler that waits holds ``length`` bytes of memory for a read, until ``end_reading``."""

    def end_reading(self, length: int) -> None: ...


Finish = Callable[[Any, Result], None]
"""``finish(task, result)``, called once for a task whose handler returned None; perhaps before it returned."""


class Completion:
    """A task that waits. ``end`` is called exactly once: it answers, then lets those go on that waited for the task."""

    __slots__ = ("_finish", "_unit", "task")

    def __init__(self, unit: Unit, task: Task, finish: Finish) -> None:
        self._unit = unit
        self.task = task
        self._finish = finish

    def end(self, result: Result) -> None:
        task = self.task
        self._finish(task, UNANSWERED if task.revoked else result)
        self._unit.task_set.leave(task)

    def done(self, error: StoreError | None) -> None:
        """The store's ``done`` of a task that has nothing else to do."""
        self.end(GOOD if error is None else translate(error))
