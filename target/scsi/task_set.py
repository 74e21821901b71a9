"""The task set of one logical unit: who may run, and who waits for whom (SAM-5, Task set management).

One task set per logical unit (TST=000b). SIMPLE tasks run in any order (QUEUE ALGORITHM MODIFIER 1), an ORDERED task
after everything older and before everything younger, a HEAD OF QUEUE task at once and before whoever has not begun.

Invariant: ``barriers`` counts the ORDERED and HEAD OF QUEUE tasks in ``tasks``. While it is zero nobody waits, and
the hot path looks at nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from target.scsi.task import Task, TaskAttribute

_ORDERED = int(TaskAttribute.ORDERED)
_HEAD_OF_QUEUE = int(TaskAttribute.HEAD_OF_QUEUE)


class TaskSet:
    __slots__ = ("_dormant", "_heads", "_waking", "barriers", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[Task, None] = {}
        """In order of arrival."""
        self.barriers = 0
        self._heads = 0
        """HEAD OF QUEUE tasks in ``tasks``; such a task never waits."""
        self._dormant: dict[Task, Callable[[], None]] = {}
        """Tasks that must wait, and how each is started."""
        self._waking = False

    def enter(self, task: Task) -> None:
        self.tasks[task] = None
        if task.attribute >= _ORDERED:
            self.barriers += 1
            self._heads += task.attribute == _HEAD_OF_QUEUE

    def may_start(self, task: Task) -> bool:
        """Whether the task, which is in the set, need not wait."""
        if not self.barriers or task.attribute == _HEAD_OF_QUEUE:
            return True
        return not self._heads and task in self._front()

    def park(self, task: Task, start: Callable[[], None]) -> None:
        """Keep a task that may not start; ``start`` is called when its turn has come, unless it is removed first."""
        self._dormant[task] = start

    def leave(self, task: Task) -> None:
        """The task has ended. Nothing happens if it was removed before."""
        if task not in self.tasks:
            return
        self._drop(task)
        # The end of a SIMPLE task matters only to an ORDERED one that is now the eldest.
        if self._dormant and (task.attribute >= _ORDERED or next(iter(self.tasks)) in self._dormant):
            self._wake()

    def remove(self, tasks: Iterable[Task]) -> None:
        """Take aborted tasks out; those that wait never start. The others keep their order."""
        for task in tasks:
            if task in self.tasks:
                self._drop(task)
                self._dormant.pop(task, None)
        self._wake()

    def _drop(self, task: Task) -> None:
        del self.tasks[task]
        if task.attribute >= _ORDERED:
            self.barriers -= 1
            self._heads -= task.attribute == _HEAD_OF_QUEUE

    def _front(self) -> dict[Task, None]:
        """Who may run while no HEAD OF QUEUE task is there: the eldest if it is ORDERED, else all before the first
        ORDERED one."""
        front: dict[Task, None] = {}
        for task in self.tasks:
            if task.attribute == _ORDERED:
                return front or {task: None}
            front[task] = None
        return front

    def _wake(self) -> None:
        """Start whoever waits no longer. A started task may end at once and come here again: the outer call goes
        on for it, so that a long queue does not become deep recursion."""
        if self._waking:
            return
        self._waking = True
        try:
            while self._dormant and not self._heads:
                ready = [task for task in self._front() if task in self._dormant]
                if not ready:
                    break
                for task in ready:
                    start = self._dormant.pop(task, None)
                    if start is not None:
                        start()
        finally:
            self._waking = False
