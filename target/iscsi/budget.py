"""How much Data-Out may be buffered: by one session, and by all sessions of a worker together.

Two accounts, each bounded by the same limit. *Unsolicited* data is the initiator's doing: it is granted at once or
the command ends with TASK SET FULL. *Solicited* data is asked for by R2T: no buffer, no R2T, the write waits. They are
apart because unsolicited parts of many large writes would otherwise fill the account that each needs to finish.
Invariant: what is reserved equals the sum of what the living transfers hold, and never exceeds a limit.
"""

from __future__ import annotations

from collections.abc import Callable


class WorkerBudget:
    """The bytes shared by the sessions of one worker."""

    __slots__ = ("_starved", "limit", "solicited", "unsolicited")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.solicited = 0
        self.unsolicited = 0
        self._starved: dict[SessionBudget, None] = {}

    def wait(self, session: SessionBudget) -> None:
        self._starved[session] = None

    def leave(self, session: SessionBudget) -> None:
        self._starved.pop(session, None)

    def wake(self) -> None:
        """Let those who wait try again, in the order in which they began to wait."""
        for session in tuple(self._starved):
            if session.retry():
                self.leave(session)


class SessionBudget:
    """One session's share. ``retry`` tries again what could not be reserved and tells whether nothing waits now."""

    __slots__ = ("_worker", "limit", "retry", "solicited", "unsolicited")

    def __init__(self, limit: int, worker: WorkerBudget, retry: Callable[[], bool]) -> None:
        self.limit = limit
        self.solicited = 0
        self.unsolicited = 0
        self.retry = retry
        self._worker = worker

    def reserve_unsolicited(self, amount: int) -> bool:
        worker = self._worker
        if self.unsolicited + amount > self.limit or worker.unsolicited + amount > worker.limit:
            return False
        self.unsolicited += amount
        worker.unsolicited += amount
        return True

    def reserve(self, amount: int) -> bool:
        """Reserve for solicited data. False: ``wait``, and ``retry`` will be called."""
        worker = self._worker
        if self.solicited + amount > self.limit or worker.solicited + amount > worker.limit:
            return False
        self.solicited += amount
        worker.solicited += amount
        return True

    def wait(self) -> None:
        self._worker.wait(self)

    def release(self, solicited: int, unsolicited: int) -> None:
        self.solicited -= solicited
        self.unsolicited -= unsolicited
        self._worker.solicited -= solicited
        self._worker.unsolicited -= unsolicited
        if solicited:
            self._worker.wake()

    def close(self) -> None:
        """Give everything back: the session is gone."""
        self._worker.leave(self)
        self.release(self.solicited, self.unsolicited)
