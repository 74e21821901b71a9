"""A process of the guest that writes verified files without pause, and the proof of what it was promised.

The guest's side is ``inside/files.py``. A file counts from the moment that its fsync returned.
"""

from __future__ import annotations

import signal

from integration.guest import Guest

TOOL = "python3 -m integration.inside.files"
PROGRESS_LIMIT = 120.0  # seconds; recovery of a session included


class Writer:
    """Runs from creation until ``stop``."""

    def __init__(self, guest: Guest, folder: str) -> None:
        self._guest = guest
        self._folder = folder
        self._command = guest.start(f"exec {TOOL} write {folder}")

    @property
    def fsynced(self) -> int:
        """Files whose fsync has returned so far."""
        return self._command.output.count(b"\n")

    def wait_for_more(self, files: int) -> None:
        """Until that many more files are fsynced: the disk works (again)."""
        self._command.wait_for_output(f"\n{self.fsynced + files}\n", PROGRESS_LIMIT)

    def stop(self) -> int:
        """Let it finish its file; raises if it saw any error. Returns the number of fsynced files."""
        self._command.kill(signal.SIGTERM)
        self._command.wait(PROGRESS_LIMIT)
        return self.fsynced


def check_files(guest: Guest, folder: str, count: int) -> None:
    """Prove that the first ``count`` files are there and intact."""
    guest.run(f"{TOOL} check {folder} {count}", timeout=180)
