"""Who on this host has which volume mounted: Docker's ids by volume, kept over restarts.

Docker counts by ids and does not say them again after a restart, so they are the one thing that the kernel cannot
tell. Everything else in a record is a note on what may have to be undone; whether it was done is asked of the kernel
and of the target. Invariants: what may exist outside (an attachment, a session, a mount) has its record before; a
record goes last; the file is replaced whole.
"""

from __future__ import annotations

import logging
import threading

from pydantic import Field, ValidationError

from blockyard.hosts.commands import Host, boot_id
from blockyard.hosts.filesystems import Kind
from blockyard.model import Value

log = logging.getLogger("blockyard.docker")


class Record(Value):
    """A volume that this host has, or had a moment ago."""

    group: str | None
    """None: not known yet, it was found in the kernel alone."""
    target: str | None = None
    """None: not attached yet."""
    generation: int = 0
    kind: Kind = Kind.EXT4
    read_only: bool = False
    ids: dict[str, float] = Field(default_factory=dict)
    """By Docker's id the time of its mount, in seconds since boot. None of them: to be taken down."""

    def with_id(self, each: str, now: float) -> Record:
        return self.model_copy(update={"ids": {**self.ids, each: now}})

    def without(self, *ids: str) -> Record:
        return self.model_copy(update={"ids": {each: at for each, at in self.ids.items() if each not in ids}})


class _Pages(Value):
    version: int = 1
    boot: str
    volumes: dict[str, Record] = Field(default_factory=dict)


class Book:
    """The file, and its content in memory. Safe to use from several threads."""

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self._path = path
        self._lock = threading.Lock()
        self._boot = boot_id(host)
        self._volumes = self._load()

    def get(self, volume: str) -> Record | None:
        with self._lock:
            return self._volumes.get(volume)

    def all(self) -> dict[str, Record]:
        with self._lock:
            return dict(self._volumes)

    def put(self, volume: str, record: Record) -> None:
        with self._lock:
            self._save({**self._volumes, volume: record})

    def remove(self, volume: str) -> None:
        with self._lock:
            if volume in self._volumes:
                self._save({name: record for name, record in self._volumes.items() if name != volume})

    def _save(self, volumes: dict[str, Record]) -> None:
        """The lock is held: a later content must not be overtaken by an earlier one."""
        pages = _Pages(boot=self._boot, volumes=volumes)
        self._host.replace(self._path, pages.model_dump_json(indent=1).encode())
        self._volumes = volumes

    def _load(self) -> dict[str, Record]:
        """After a boot nobody has anything mounted; what was attached is still to be given back."""
        try:
            pages = _Pages.model_validate_json(self._host.read(self._path))
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            # Of another version, or not ours: the kernel says what is mounted, and the ids of containers that run on
            # are replaced by one that stays until the last of them has ended.
            log.warning("%s is not understood and is written anew: %s", self._path, error)
            return {}
        if pages.boot == self._boot:
            return pages.volumes
        return {name: record.without(*record.ids) for name, record in pages.volumes.items()}
