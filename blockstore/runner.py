"""A Runner that knows when no helper thread works for the pool any more: only then may its files be closed."""

from __future__ import annotations

from collections.abc import Callable

from blockstore.api import Runner


class CountingRunner:
    """api.Runner over another one, counting the helper work that has not returned."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._working = 0
        self._when_idle: Callable[[], None] | None = None
        self.call_soon = runner.call_soon
        self.call_later = runner.call_later
        self.now = runner.now

    def in_thread(self, work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        self._working += 1

        def finish(error: BaseException | None) -> None:
            try:
                then(error)
            finally:  # whatever went wrong there, the pool must be able to close
                self._working -= 1
                self._look()

        self._runner.in_thread(work, finish)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Run ``action`` as soon as no helper works, once."""
        self._when_idle = action
        self._look()

    def _look(self) -> None:
        if self._working == 0 and self._when_idle is not None:
            action, self._when_idle = self._when_idle, None
            self._runner.call_soon(action)
