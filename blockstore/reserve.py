"""Space kept aside in the host file system, so that a checkpoint can finish when that is full.

It is given up when a checkpoint finds no room, and made again, by a helper thread, once the host has room to spare.
Without it the pool works on, only with less of a margin. Invariant: ``held`` means that all of it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from blockstore.api import Runner
from blockstore.device import Directory

NAME = "reserve"
_LOOK_EVERY = 10.0  # seconds between looks whether the host has room again; guessed
_SPARE = 4  # so many times its length must be free: what little comes back first is for writes; guessed
_log = logging.getLogger(__name__)


class Reserve:
    """``length`` bytes; 0: none is kept."""

    def __init__(self, runner: Runner, directory: Directory, length: int) -> None:
        self._runner = runner
        self._directory = directory
        self._length = length
        self._cancel_timer: Callable[[], None] = lambda: None
        self._stopped = False
        self.held = False

    def open(self) -> None:
        """Make it now, on the caller's thread: before the pool serves."""
        if not self._length:
            return
        try:
            make(self._directory, self._length)
        except OSError as error:
            self._lack(f"cannot be set aside: {error}")
        else:
            self.held = True

    def release(self) -> bool:
        """Give it up for whoever needs space now. False if there is none."""
        if not self.held:
            return False
        self._directory.remove(NAME)
        self.held = False
        self._lack("are given up: the host file system is full")
        return True

    def stop(self) -> None:
        self._stopped = True
        self._cancel_timer()

    def _lack(self, why: str) -> None:
        _log.warning("reserve: the %d bytes kept for checkpoints %s", self._length, why)
        self._wait()

    def _wait(self) -> None:
        if not self._stopped:
            self._cancel_timer = self._runner.call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        made: list[bool] = []

        def work() -> None:
            if self._directory.free_bytes() >= _SPARE * self._length:
                make(self._directory, self._length)
                made.append(True)

        self._runner.in_thread(work, lambda error: self._looked(bool(made), error))

    def _looked(self, made: bool, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, OSError):
            raise error
        if made:
            self.held = True
            _log.warning("reserve: %d bytes are kept for checkpoints again", self._length)
        else:
            self._wait()


def make(directory: Directory, length: int) -> None:
    """Raises OSError; then nothing of it is left."""
    file = directory.open(NAME, create=True)
    try:
        file.allocate(0, length)
    except OSError:
        directory.remove(NAME)
        raise
    finally:
        file.close()
