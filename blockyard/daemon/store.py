"""The store directory: ``pools/<name>/`` for each pool, and the lock that lets one daemon in.

Knows directories, not what is in a pool (that is the worker's).
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from blockyard.errors import Invalid, Locked, ProductError

_NUMBERED = re.compile(r"pool-(\d+)")


class StoreDirectory:
    """Holds the exclusive lock from construction until ``close`` or the process's end."""

    def __init__(self, path: Path) -> None:
        """Makes the directory if needed. Raises Locked, Invalid."""
        self.path = path.absolute()
        self._lock = -1
        try:
            (self.path / "pools").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            self.close()
            raise Locked(
                f"store {self.path} is served by another daemon (process {holder}): one daemon a store is allowed"
            ) from None
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from error

    def pools(self, workers: int) -> dict[str, Path]:
        """Directory by name of every pool there is, and of those that are missing for ``workers`` of them. Every pool
        is served, even when there are more than ``workers``: its targets would be lost otherwise."""
        folder = self.path / "pools"
        names = {entry.name for entry in folder.iterdir() if entry.is_dir()}
        names |= {f"pool-{number}" for number in range(workers)}
        return {name: folder / name for name in sorted(names, key=_order)}

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _unusable(path: Path, error: OSError) -> ProductError:
    return Invalid(f"store {path} cannot be used: {error.strerror or error}")


def _order(name: str) -> tuple[int, str]:
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]) if match else 1 << 30, name)
