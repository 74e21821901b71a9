"""The sweep: which blocks and nodes nothing references any more. Slow, and always right.

A committed image is marked elsewhere (``marking``, in a process of its own); here is decided what of the unmarked may
be freed. At the image's switch the pool kept what was free, or known to become free: that is subtracted. The rest lost
its last reference before the switch, so neither that image nor a batch that is replayed after it names it, and it is
reusable at once. What happened since needs no look: only what is referenced can be freed by its map, and only what is
free can be taken. Invariant: a result is used only with what was kept at the switch of the very image that was marked,
and never while a pin is older than that switch.
"""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from blockstore import marking
from blockstore.api import Done, Runner, StoreError
from blockstore.blockmap import BlockMap
from blockstore.layout import FormatError
from blockstore.marking import Found, Marking, Report
from blockstore.space import Space, Unavailable
from blockstore.steps import Steps, all_answered, in_thread, pause, run

_log = logging.getLogger(__name__)
_NODES_PER_SLICE = 8192
_UNDER_A_PIN = 0.1  # seconds until it is asked again whether older pins ended; guessed


class SweepFailed(StoreError):
    """The image could not be read, so nothing is known to be free."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the pool noted at the switch of an image, for a sweep of it."""

    unavailable: Unavailable
    serial: int
    """Of frees since (``Space.serial``)."""
    dropped: int
    """Entries that a sweep of this image accounts for..."""
    lost: int
    """...and leaves."""


class Marker(Protocol):
    """Marks one image. Each call waits: in a helper thread."""

    def begin(self) -> int:
        """Take hold of the newest image; its epoch. Raises OSError, sqlite3.Error."""

    def find(self, unavailable: Unavailable, report: Report) -> Found:
        """Raises OSError, EOFError, sqlite3.Error."""

    def interrupt(self) -> None:
        """Make the call that runs end soon. Not in a thread: it does not wait."""

    def close(self) -> None:
        """Let go of the image."""


class ProcessMarker:
    """In a process of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._interrupted = False
        self._helper: subprocess.Popen[bytes] | None = None

    def begin(self) -> int:
        command = [sys.executable, "-m", "blockstore.marking", self._path]
        self._helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._interrupted:  # while the process was started
            self._helper.kill()
        assert self._helper.stdout is not None
        line = self._helper.stdout.readline()
        if not line:
            raise EOFError("the marking process ended early")
        return int(line)

    def find(self, unavailable: Unavailable, report: Report) -> Found:
        helper = self._helper
        assert helper is not None
        assert helper.stdin is not None
        assert helper.stdout is not None
        with helper.stdin as pipe:
            pipe.write(marking.pack(unavailable))
        return marking.receive_found(helper.stdout, report)

    def interrupt(self) -> None:
        self._interrupted = True
        if self._helper is not None:
            self._helper.kill()

    def close(self) -> None:
        helper = self._helper
        if helper is None:
            return
        helper.kill()  # of no effect once it has ended
        helper.wait()
        for pipe in (helper.stdin, helper.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what it was not told any more
                pipe.close()


class ThreadMarker:
    """In a helper thread, over a connection of its own: where no other process can read the database."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._marking: Marking | None = None
        self._connection: sqlite3.Connection | None = None

    def begin(self) -> int:
        self._connection = self._connect()
        self._marking = Marking(self._connection)
        return self._marking.epoch

    def find(self, unavailable: Unavailable, report: Report) -> Found:
        assert self._marking is not None
        return self._marking.find(unavailable, report)

    def interrupt(self) -> None:
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Sweep:
    """One sweep. ``checkpoint(done)`` makes an image; ``kept`` tells what was noted at the switch of an epoch's image,
    if it was; ``done(blocks freed, error)`` when it is over, not called after ``stop``."""

    def __init__(
        self,
        runner: Runner,
        blockmap: BlockMap,
        space: Space,
        make_marker: Callable[[], Marker],
        *,
        checkpoint: Callable[[Done], None],
        kept: Callable[[int], Kept | None],
        done: Callable[[int, StoreError | None], None],
    ) -> None:
        self._runner = runner
        self._blockmap = blockmap
        self._space = space
        self._make_marker = make_marker
        self._checkpoint = checkpoint
        self._kept = kept
        self._done = done
        self._marker: Marker | None = None
        self._interrupted = False
        self._stopped = False
        self.progress = 0.0
        """0 to 1."""

    def start(self, *, newest: bool) -> None:
        """``newest``: of an image that is made now, instead of the last one."""
        run(self._sweep(newest)).add_done_callback(self._ended)

    def stop(self) -> None:
        self._stopped = True
        self.interrupt()

    def interrupt(self) -> None:
        """Let go of the image: the sweep begins again with a newer one."""
        self._interrupted = True
        if self._marker is not None:
            self._marker.interrupt()

    def _ended(self, sweep: Future[int]) -> None:
        error = sweep.exception()
        if self._stopped:
            return
        if error is None or isinstance(error, StoreError):
            self._done(0 if error else sweep.result(), error)
        else:  # whoever waits must not wait for ever, whatever it was
            _log.error("sweep: ended by an unexpected error", exc_info=error)
            self._done(0, SweepFailed(f"unexpected: {error!r}"))

    def _sweep(self, newest: bool) -> Steps[int]:
        found = None
        while found is None and not self._stopped:
            found = yield from self._attempt(newest)
            newest = True
        return 0 if found is None or self._stopped else (yield from self._apply(found))

    def _attempt(self, newest: bool) -> Steps[Found | None]:
        """None when it has to be tried again: another image was committed meanwhile, or this one had to be let go."""
        if newest:
            yield all_answered([self._checkpoint])
            if self._stopped:
                return None
        marker = self._marker = self._make_marker()
        self._interrupted = False
        self.progress = 0.0
        try:
            epoch = yield in_thread(self._runner, marker.begin)
            kept = self._kept(epoch)
            if kept is None or self._stopped:
                return None
            found: Found = yield in_thread(self._runner, lambda: marker.find(kept.unavailable, self._report))
        except (OSError, EOFError, sqlite3.Error, FormatError) as error:
            if self._interrupted:
                return None
            raise SweepFailed(f"the last image cannot be read: {error}") from error
        finally:
            self._marker = None
            self._runner.in_thread(marker.close, _expect_success)
        while self._space.pinned_before(kept.serial) and not self._stopped:
            yield pause(self._runner, _UNDER_A_PIN)
        self._blockmap.dropped -= kept.dropped
        self._blockmap.lost -= kept.lost
        return found

    def _report(self, done: float) -> None:
        self.progress = done

    def _apply(self, found: Found) -> Steps[int]:
        self._space.free(found.runs)
        for at in range(0, len(found.nodes), _NODES_PER_SLICE):
            for node in found.nodes[at : at + _NODES_PER_SLICE].tolist():
                self._blockmap.retire(node)
            yield pause(self._runner)
        while self._space.releasing and not self._stopped:
            yield pause(self._runner)
        return int(found.runs[:, 1].sum())


def _expect_success(error: BaseException | None) -> None:
    if error is not None:
        raise error
