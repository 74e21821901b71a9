"""``python -m tests.system.stepping FOLDER serve ...``: the daemon, whose moves stop before a phase of one's choice.

The file ``stop`` in FOLDER names the phase (``left``, or ``copying 3`` for the third snapshot); the daemon writes
``reached`` when it is there, and goes on when ``stop`` is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from blockyard.cli.main import main as run_command
from blockyard.daemon.__main__ import main as run_daemon
from blockyard.group_move import GroupMove
from blockyard.model import MovePhase
from blockyard.moves import Moves

SECONDS = 30.0


class Steps:
    """The test's side: where the next move stops."""

    def __init__(self, folder: Path) -> None:
        self._stop = folder / "stop"
        self._reached = folder / "reached"

    def stop_before(self, phase: str) -> None:
        self._reached.unlink(missing_ok=True)
        self._stop.write_text(phase)

    def wait_reached(self) -> None:
        deadline = time.monotonic() + SECONDS
        while not self._reached.exists():
            assert time.monotonic() < deadline, "the move did not come so far"
            time.sleep(0.01)

    def go_on(self) -> None:
        self._stop.unlink(missing_ok=True)


def stop_in(folder: Path) -> None:
    """Make every move of this process look into ``folder`` before each phase."""
    copied: dict[int, int] = {}

    async def reached(moves: Moves, move: GroupMove, phase: MovePhase) -> None:
        name = str(phase)
        if phase is MovePhase.COPYING:
            copied[id(move)] = copied.get(id(move), 0) + 1
            name = f"copying {copied[id(move)]}"
        stop = folder / "stop"
        if stop.exists() and stop.read_text() == name:
            (folder / "reached").write_text(name)
            await gone(stop)

    setattr(Moves, "reached", reached)  # noqa: B010  # mypy takes the plain assignment for another signature


async def gone(path: Path) -> None:
    while path.exists():  # noqa: ASYNC110, ASYNC240  # the test is another process
        await asyncio.sleep(0.01)


def serve_here(_: str, arguments: Sequence[str]) -> NoReturn:
    """In place of exec: the daemon in this process, with its moves as they were changed."""
    sys.exit(run_daemon(arguments[-1]))


if __name__ == "__main__":
    stop_in(Path(sys.argv[1]))
    os.execv = serve_here  # type: ignore[assignment]
    run_command(sys.argv[2:])
