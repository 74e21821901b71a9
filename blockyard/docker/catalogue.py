"""What volumes there are, from memory: asked of the target in the background, answered at once.

Docker asks for lists and single volumes all the time, and hangs with the plugin that hangs. Invariant: nothing but
``refresh`` waits for the target. What was known last is kept in a file, so that a plugin that starts while the target
is away knows its volumes too.
"""

from __future__ import annotations

import logging
import threading
import time

from pydantic import Field, ValidationError

from blockyard.docker.options import volume_of
from blockyard.errors import ProductError, Unavailable
from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Host
from blockyard.model import Group, Value
from blockyard.model.attachments import Attachment

log = logging.getLogger("blockyard.docker")


class _Known(Value):
    groups: dict[str, Group] = Field(default_factory=dict)
    """By the volume's name."""
    attachments: dict[str, tuple[Attachment, ...]] = Field(default_factory=dict)
    """By the group's name."""


class Catalogue:
    """Safe to use from several threads."""

    def __init__(self, host: Host, api: HostApi, path: str) -> None:
        self._host = host
        self._api = api
        self._path = path
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._known = self._load()
        self._saved = set(self._known.groups)
        """Volumes in the file."""
        self.trouble: str | None = "the target was not asked yet"
        """Why what is known may be old; None: it is fresh."""
        self.asked: float | None = None
        """When the target answered last, in seconds since 1970."""

    # --- from memory -----------------------------------------------------------------------------------------------

    def get(self, volume: str) -> Group | None:
        with self._lock:
            return self._known.groups.get(volume)

    def all(self) -> dict[str, Group]:
        with self._lock:
            return dict(self._known.groups)

    def attachments(self, group: str) -> tuple[Attachment, ...]:
        with self._lock:
            return self._known.attachments.get(group, ())

    def of_target(self, target: str) -> str | None:
        """The group of a target's iSCSI name."""
        return next((group.name for group in self.all().values() if group.iqn == target), None)

    # --- changed by ourselves --------------------------------------------------------------------------------------

    def put(self, group: Group) -> None:
        with self._lock:
            groups = {**self._known.groups, volume_of(group): group}
            self._known = self._known.model_copy(update={"groups": groups})

    def drop(self, volume: str) -> None:
        with self._lock:
            groups = {name: group for name, group in self._known.groups.items() if name != volume}
            self._known = self._known.model_copy(update={"groups": groups})

    # --- asked of the target ---------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Whether the target answered; if not, ``trouble`` says why, and what was known stays. So does what was known
        of a pool that the target does not serve at the moment, beside the news of its others."""
        with self._refreshing:
            try:
                listed = self._api.list_groups()
                known = self._known if listed.unavailable else _Known()
                attachments = self._attachments()
            except ProductError as error:
                self.trouble = str(error)
                return False
            # Of two groups that claim one volume the older one has it, on every host.
            groups = {volume_of(group): group for group in sorted(listed.groups, key=_youngest_first)}
            self._keep(_Known(groups={**known.groups, **groups}, attachments=attachments))
            self.trouble = "; ".join(listed.unavailable) or None
            self.asked = time.time()
            return True

    def _attachments(self) -> dict[str, tuple[Attachment, ...]]:
        """By group. The target lists all or none: not while one of its pools is not served."""
        by_group: dict[str, tuple[Attachment, ...]] = {}
        try:
            for each in self._api.attachments():
                by_group[each.group] = (*by_group.get(each.group, ()), each)
        except Unavailable:
            return self._known.attachments
        return by_group

    def find(self, volume: str) -> Group | None:
        """As ``get``; for a volume that is not known the target is asked, if it answered the last time."""
        group = self.get(volume)
        if group is None and self.trouble is None:
            self.refresh()
            group = self.get(volume)
        return group

    def _keep(self, known: _Known) -> None:
        with self._lock:
            self._known = known
        # Other volumes, not only other figures: not every refresh is worth a write to this host's disk.
        if set(known.groups) != self._saved:
            try:
                self._host.replace(self._path, known.model_dump_json().encode())
            except OSError as error:  # it is only for a start while the target is away; the next refresh tries again
                log.warning("%s cannot be written: %s", self._path, error)
                return
            self._saved = set(known.groups)

    def _load(self) -> _Known:
        try:
            return _Known.model_validate_json(self._host.read(self._path))
        except FileNotFoundError:
            return _Known()
        except ValidationError as error:
            log.warning("%s is not understood; the target is asked instead: %s", self._path, error)
            return _Known()


def _youngest_first(group: Group) -> float:
    return -group.created
