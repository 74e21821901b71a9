"""Giving long free runs back to the host: a file's space to its file system, a device's by discard.

Which runs are free, and long enough, is the allocator's. Each run is out of its reach while it is punched: a block that
was handed out meanwhile would be lost. So runs are taken in slices, which a helper thread ends within milliseconds on
most hosts, and between slices the loop, the helpers and the host do other work.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from blockstore.allocator import Allocator, Run
from blockstore.api import Runner
from blockstore.device import File
from blockstore.layout import UNIT, UNIT_SHIFT

_SLICE = (64 << 20) >> UNIT_SHIFT  # blocks punched in one go: 64 calls of 0.2 ms at worst (ext4, runs of 1 MiB)
_RATE = (1 << 30) >> UNIT_SHIFT  # blocks a second at most; guessed: a discard takes the device from its users
_UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # the host cannot punch here, and never will
_log = logging.getLogger(__name__)


class Puncher:
    """``keep``: warm free blocks that are not punched; ``changed``: runs came back to the allocator."""

    def __init__(
        self, runner: Runner, data: File, allocator: Allocator, *, keep: int, changed: Callable[[], None]
    ) -> None:
        self._runner = runner
        self._data = data
        self._allocator = allocator
        self._keep = keep
        self._changed = changed
        self._resting = False
        self._stopped = False
        self.able = True
        self.runs: list[Run] = []
        """In hand: free, and not to be handed out."""
        self.punched = 0
        """Blocks given back since the start."""

    @property
    def blocks(self) -> int:
        """In hand."""
        return sum(run[1] for run in self.runs)

    def start(self) -> None:
        """Punch what there is to punch, unless that is being done."""
        if self.runs or self._resting or self._stopped or not self.able:
            return
        runs = self.runs = self._allocator.take_long_runs(self._keep, _SLICE)
        if runs:
            self._runner.in_thread(lambda: self._punch(runs), self._punched)

    def stop(self) -> None:
        self._stopped = True

    def _punch(self, runs: list[Run]) -> None:
        for start, count in runs:
            self._data.punch(start * UNIT, count * UNIT)

    def _punched(self, error: BaseException | None) -> None:
        # Where the host did not punch, the blocks are as free as before: only the host's space is not back.
        runs, self.runs = self.runs, []
        self._allocator.put_back_cold(runs)
        blocks = sum(run[1] for run in runs)
        if error is None:
            self.punched += blocks
        else:
            self.able = not (isinstance(error, OSError) and error.errno in _UNABLE)
            what = "gives no space back to its host" if not self.able else "could not give space back"
            _log.warning("%s %s: %s", self._data.name, what, error)
        self._resting = True
        self._runner.call_later(blocks / _RATE, self._go_on)
        self._changed()

    def _go_on(self) -> None:
        self._resting = False
        self.start()
