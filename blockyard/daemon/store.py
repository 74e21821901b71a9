"""The store directory: ``pools/<name>/`` for each pool, the names of those that were served, and the lock.

Knows directories, not what is in a pool (that is the worker's). A file system that is not mounted looks like a new
store, and a new store answers "no such target", which ends Linux's retries for good. Hence the invariants: a store is
made only where that was asked for, and never at an empty mount point of ``/etc/fstab``; and a pool that was served once
is never made anew: it is missing until it is back, or forgotten.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blockyard.errors import InUse, Invalid, Locked, NotFound, ProductError
from blockyard.model import names

KNOWN = "known-pools"
"""Names of the pools that have been served, one a line."""

_FSTAB = Path("/etc/fstab")
_NUMBERED = re.compile(r"pool-(\d+)")
_OURS = {"pools", "lock", KNOWN, "yard.db", "yard.db-wal", "yard.db-shm"}
"""What a start that came to nothing may have left; the first pool makes a store of it."""


@dataclass(frozen=True, slots=True)
class PoolPlace:
    path: Path
    create: bool
    """Whether the pool may be made when there is none."""


class StoreDirectory:
    """Holds the exclusive lock from construction until ``close`` or the process's end."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """``create``: make the store, and pools that are wanted, if there are none. Raises Locked,
        NotFound, Invalid."""
        self.path = path.absolute()
        self._create = create
        self._lock = -1
        try:
            if create:
                begin_store(self.path)
            elif not _is_store(self.path):
                raise NotFound(
                    f"{self.path} holds no store: mount its file system, if that is not mounted; "
                    "for a new store, add --create once"
                )
            self._take_lock()
            self._known = known_pools(self.path)
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from error
        except ProductError:
            self.close()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Locked(
                f"store {self.path} is served by another daemon (process {holder}): one daemon a store is allowed"
            ) from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def pools(self, workers: int) -> dict[str, PoolPlace]:
        """Every pool there is or was, and with ``create`` those that are missing for ``workers`` of them. One more than
        asked for is served too: its targets would be lost otherwise. Raises NotFound when there are fewer."""
        folder = self.path / "pools"
        found = set(_pool_names(folder)) | self._known
        missing = workers - len(found)
        if missing > 0 and not self._create:
            raise NotFound(
                f"store {self.path} has {len(found)} pool(s), --workers asks for {workers}: "
                "make one with `blockyard pool create`, or add --create once"
            )
        free = (name for number in range(workers) if (name := f"pool-{number}") not in found)
        wanted = found | {name for name, _ in zip(free, range(missing), strict=False)}
        return {
            name: PoolPlace(folder / name, self._create and name not in self._known)
            for name in sorted(wanted, key=_order)
        }

    def note_served(self, name: str) -> None:
        """From now on the pool is never made anew. Raises OSError."""
        if name not in self._known:
            self._write_known(self._known | {name})

    def forget(self, name: str) -> None:
        """The pool is gone for good. Raises NotFound, InUse."""
        if name not in self._known:
            raise NotFound(f"no pool {name} was served from {self.path}; known are: {', '.join(sorted(self._known))}")
        if (self.path / "pools" / name).exists():
            raise InUse(f"{self.path / 'pools' / name} is there: move it out of the store first")
        try:
            self._write_known(self._known - {name})
        except OSError as error:
            raise _unusable(self.path, error) from error

    def _write_known(self, known: set[str]) -> None:
        new = self.path / f"{KNOWN}.new"
        with new.open("w") as file:
            file.write("".join(f"{name}\n" for name in sorted(known)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / KNOWN)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._known = known

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def begin_store(path: Path) -> None:
    """Make a store at ``path`` if there is none. Raises Invalid, OSError."""
    if _is_store(path):
        return
    unmounted = _unmounted_place(path, _FSTAB)
    if unmounted is not None:
        raise Invalid(f"{path} holds no store, and {unmounted} is not mounted though {_FSTAB} names it: mount it")
    strangers = {entry.name for entry in path.iterdir()} - _OURS - {"lost+found"} if path.is_dir() else set()
    if strangers:
        some = ", ".join(sorted(strangers)[:3])
        raise Invalid(f"{path} holds no store but other things ({some}): a new store needs a directory of its own")
    (path / "pools").mkdir(parents=True, exist_ok=True)


def _is_store(path: Path) -> bool:
    return bool(known_pools(path) or _pool_names(path / "pools"))


def _pool_names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if names.may_be_pool(entry)] if folder.is_dir() else []


def known_pools(path: Path) -> set[str]:
    """Names of the pools that were served from the store at ``path``. Raises OSError."""
    file = path / KNOWN
    return set(file.read_text().split()) if file.exists() else set()


def _unmounted_place(path: Path, fstab: Path) -> Path | None:
    """The mount point at or above ``path`` that the host's table of file systems names and where nothing is mounted."""
    lines: Iterable[str] = fstab.read_text().splitlines() if fstab.exists() else ()
    fields = [line.split() for line in lines if not line.lstrip().startswith("#")]
    places = {Path(row[1].replace("\\040", " ")) for row in fields if len(row) > 1}
    return next((place for place in (path, *path.parents) if place in places and not os.path.ismount(place)), None)


def _unusable(path: Path, error: OSError) -> ProductError:
    return Invalid(f"store {path} cannot be used: {error.strerror or error}")


def _order(name: str) -> tuple[int, str]:
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]) if match else 1 << 30, name)
