"""What happens between Docker's requests: cleaning up after a restart, noticing what broke, asking the target for news.

Two threads, so that a logout that takes its time does not make the list old. Invariant: whatever cannot be done now is
logged and tried again in the next round.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import ParamSpec

from blockyard.docker.book import Record
from blockyard.docker.catalogue import Catalogue
from blockyard.docker.volumes import Volumes
from blockyard.errors import Busy, ProductError
from blockyard.hosts.commands import Host
from blockyard.hosts.disks import has_mounted
from blockyard.hosts.errors import HostError
from blockyard.hosts.filesystems import Kind, thaw, unmount
from blockyard.hosts.initiator import Initiator
from blockyard.hosts.mounts import Mount, mounts_below, seen_elsewhere

P = ParamSpec("P")

log = logging.getLogger("blockyard.docker")

REFRESH, CHECK = "refresh", "check"
REFRESH_SECONDS = 5.0
CHECK_SECONDS = 10.0
STEP_SECONDS = 300.0  # of one volume, at most: its unmount, logout and release with all their limits take 200
_KINDS = {"ext4": Kind.EXT4, "xfs": Kind.XFS, "devtmpfs": Kind.RAW}
FOUND = "(found mounted)"
"""Stands for the ids of containers that were running when the book was lost."""


class Upkeep:
    def __init__(self, host: Host, initiator: Initiator, volumes: Volumes, catalogue: Catalogue) -> None:
        self._host = host
        self._initiator = initiator
        self._volumes = volumes
        self._catalogue = catalogue
        self._ending = threading.Event()
        self._turned: dict[str, float] = {}
        """When each thread began its present step, a volume's or the round itself, in seconds since boot."""

    # --- after a start ---------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Before the first request: what the kernel has that the book does not know."""
        self._catalogue.refresh()
        known = self._volumes.book.all()
        for mount in mounts_below(self._host, self._volumes.root):
            volume = mount.folder.removeprefix(f"{self._volumes.root}/").partition("/")[0]
            self._attempt(f"volume {volume}", thaw, self._host, mount.folder)
            if volume not in known and mount.kind in _KINDS:
                self._volumes.book.put(volume, self._adopted(mount))
        self._end_strays()
        self._remove_folders()

    def _adopted(self, mount: Mount) -> Record:
        """A record of a mount that nobody knows. Containers that have it keep it."""
        session = next((each for each in self._initiator.sessions() if has_mounted(self._host, each, mount)), None)
        used = seen_elsewhere(self._host, mount)
        log.warning("%s is mounted, but not in the book; %s", mount.folder, "a container has it" if used else "unused")
        return Record(
            group=None if session is None else self._catalogue.of_target(session.target),
            target=None if session is None else session.target,
            kind=_KINDS[mount.kind],
            read_only=mount.read_only,
            ids={FOUND: 0.0} if used else {},
        )

    def _end_strays(self) -> None:
        """Sessions and node records of ours without a volume: half logins that iscsid has finished later."""
        # First the kernel, then the book: a volume is in the book before it has a session.
        there = {session.target for session in self._initiator.sessions()} | set(self._initiator.remembered())
        wanted = {record.target for record in self._volumes.book.all().values()}
        for target in sorted(there - wanted):
            self._turned[CHECK] = self._host.now()
            volume = next((name for name, group in self._catalogue.all().items() if group.iqn == target), None)
            self._attempt(f"target {target}", self._end_stray, target, volume)

    def _end_stray(self, target: str, volume: str | None) -> None:
        with self._volumes.locks.held(volume or target, 1.0):
            if all(record.target != target for record in self._volumes.book.all().values()):
                log.warning("target %s: nobody wants its session any more", target)
                self._initiator.log_out(target)

    def _remove_folders(self) -> None:
        known = self._volumes.book.all()
        for volume in self._host.names(self._volumes.root):
            if volume not in known:
                self._attempt(f"volume {volume}", unmount, self._host, self._volumes.folder(volume))

    # --- again and again -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """One round over everything that this host has."""
        for volume in self._volumes.book.all():
            self._turned[CHECK] = self._host.now()
            self._attempt(f"volume {volume}", self._check, volume)
        self._end_strays()

    def _check(self, volume: str) -> None:
        with self._volumes.locks.held(volume, 1.0):
            self._volumes.check(volume)

    def _attempt(self, what: str, step: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
        try:
            step(*arguments, **named)
        except Busy:  # a request works on it: next round
            return
        except (HostError, ProductError, OSError) as error:
            log.warning("%s: %s", what, error)

    # --- threads ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        for name, step, seconds in (
            (REFRESH, self._catalogue.refresh, REFRESH_SECONDS),
            (CHECK, self.check, CHECK_SECONDS),
        ):
            self._turned[name] = self._host.now()
            threading.Thread(target=self._repeat, args=(name, step, seconds), name=name, daemon=True).start()

    @property
    def turning(self) -> bool:
        """Whether no step takes longer than everything in it may take. Not the round: a host may have many volumes."""
        return all(self._host.now() - began < STEP_SECONDS for began in self._turned.values())

    def stop(self) -> None:
        """Returns at once: a round that hangs in a logout is as safe to end as by a kill."""
        self._ending.set()

    def _repeat(self, name: str, step: Callable[[], object], seconds: float) -> None:
        while not self._ending.is_set():
            self._turned[name] = self._host.now()
            try:
                step()
            except Exception:
                # A defect must not end the rounds: then nothing would be cleaned up any more. The log has it.
                log.exception("a round of upkeep failed")
            self._ending.wait(seconds)
