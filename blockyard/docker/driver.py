"""The verbs of a volume driver: create, remove, mount, unmount, path, get, list.

Not the protocol (``server``), nor what happens between requests (``upkeep``). Every verb can be repeated, and killed
at any step: what it leaves is in the book and in the kernel, and ``Volumes.settle`` undoes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blockyard.docker import options as opts
from blockyard.docker.catalogue import Catalogue
from blockyard.docker.options import Options, Source
from blockyard.docker.volumes import Volumes
from blockyard.errors import AlreadyExists, InUse, Invalid, NotFound
from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Deadline, Host
from blockyard.hosts.filesystems import Kind
from blockyard.model import Cache, CloneRequest, Group, NewGroup, VolumeSpec
from blockyard.model.attachments import Attachment, AttachMode

log = logging.getLogger("blockyard.docker")

# Docker gives Create and Mount 2 minutes and the others one (moby, daemon/volume/drivers): we answer before.
CREATE_SECONDS = 100.0
MOUNT_SECONDS = 105.0
OTHER_SECONDS = 50.0


class Driver:
    def __init__(
        self,
        host: Host,
        api: HostApi,
        iqn: str,
        volumes: Volumes,
        catalogue: Catalogue,
        *,
        default_size: int,
        default_fs: Kind,
    ) -> None:
        """``iqn``: this host's iSCSI name; ``default_size`` in bytes."""
        self._host = host
        self._api = api
        self._iqn = iqn
        self._volumes = volumes
        self._catalogue = catalogue
        self._default_size = default_size
        self._default_fs = default_fs

    # --- create and remove -----------------------------------------------------------------------------------------

    def create(self, volume: str, given: Mapping[str, str]) -> None:
        """Raises Invalid, AlreadyExists, and what the target says."""
        opts.volume_name(volume)
        options = opts.parse(given)
        with self._volumes.locks.held(volume, CREATE_SECONDS):
            self._catalogue.refresh()
            options = self._with_source(options)
            group = self._catalogue.get(volume)
            if group is None:
                group = self._clone(volume, options) if options.source else self._new(volume, options)
            difference = opts.conflict(group, options)
            if difference is not None:
                raise AlreadyExists(f"volume {volume}: {difference}")
            self._catalogue.put(self._grown(group, options))

    def _with_source(self, options: Options) -> Options:
        """``from`` may name a volume, too."""
        if options.source is None:
            return options
        origin = self._catalogue.get(options.source.group)
        name = origin.name if origin is not None else options.source.group
        return replace(options, source=Source(name, options.source.snapshot))

    def _new(self, volume: str, options: Options) -> Group:
        asked = NewGroup(
            name=options.group or opts.group_for(volume),
            volumes=(VolumeSpec(size=options.size or self._default_size),),
            cache=options.cache or Cache.WRITEBACK,
            labels=opts.labels_of(volume, options, options.fs or self._default_fs, self._iqn),
        )
        return self._api.create_group(asked).group

    def _clone(self, volume: str, options: Options) -> Group:
        assert options.source is not None
        origin = self._api.show_group(options.source.group)
        label = origin.labels.get(opts.FILESYSTEM)
        if options.access is AttachMode.MULTI_WRITER and label != Kind.RAW:
            raise Invalid(f"access=multi-writer goes with fs=raw: {origin.name} has {label or 'a file system'}")
        if options.size is not None and options.size < origin.volumes[0].size:
            raise Invalid(f"size={options.size} is less than what {origin.name} has: {origin.volumes[0].size} bytes")
        asked = CloneRequest(
            snapshot=options.source.snapshot,
            name=options.group or opts.group_for(volume),
            clients=(),
            labels=opts.labels_of(volume, options, Kind(label) if label else None, self._iqn),
        )
        return self._api.clone_group(origin.name, asked).group

    def _grown(self, group: Group, options: Options) -> Group:
        """A clone has its origin's size at first; a Create that was killed before this is finished by the next one."""
        first = group.volumes[0]
        if not options.source or options.size is None or first.size >= options.size:
            return group
        self._api.resize_volume(group.name, first.lun, options.size)
        return self._api.show_group(group.name)

    def remove(self, volume: str) -> None:
        """The data is gone for good. Raises InUse while anybody has it, Invalid for a group that is not Docker's."""
        with self._volumes.locks.held(volume, OTHER_SECONDS):
            if not self._volumes.settle(volume):
                raise InUse(f"volume {volume} is mounted on this host")
            self._catalogue.refresh()
            group = self._catalogue.get(volume)
            if group is None:
                if self._catalogue.trouble is not None:
                    raise NotFound(f"whether there is a volume {volume} is not known: {self._catalogue.trouble}")
                return
            if opts.CREATED_BY not in group.labels:
                raise Invalid(
                    f"volume {volume} was not made by Docker: `blockyard group delete {group.name}` removes it"
                )
            for holder in self._api.attachments(group=group.name):
                raise InUse(
                    f"volume {volume} is attached to host {holder.host}: unmount it there, or, if that host is gone, "
                    f"`blockyard attachment release {group.name} --host {holder.host}`"
                )
            self._api.delete_group(group.name)
            self._catalogue.drop(volume)

    # --- mount and unmount -----------------------------------------------------------------------------------------

    def mount(self, volume: str, each: str) -> str:
        """The folder, for Docker's id ``each``. Raises NotFound, InUse, HostError, and what the target says."""
        deadline = Deadline(self._host, MOUNT_SECONDS)
        opts.volume_name(volume)
        with self._volumes.locks.held(volume, MOUNT_SECONDS):
            group = self._catalogue.find(volume)
            if group is None:
                raise NotFound(self._unknown(volume))
            return self._volumes.mount(volume, group, each, deadline)

    def unmount(self, volume: str, each: str) -> None:
        """Repeated, or for an id that nobody knows: nothing happens. Raises HostError while it cannot be unmounted."""
        with self._volumes.locks.held(volume, OTHER_SECONDS):
            self._volumes.unmount(volume, each)

    # --- from memory -----------------------------------------------------------------------------------------------

    def knows(self, volume: str) -> bool:
        """Whether ``get`` answers from memory."""
        return self._catalogue.get(volume) is not None

    def path(self, volume: str) -> str:
        """Where it is mounted here; empty: it is not."""
        return self._volumes.folder(volume) if self._volumes.book.get(volume) else ""

    def list(self) -> list[dict[str, Any]]:
        return [self._brief(volume) for volume in sorted(self._catalogue.all())]

    def get(self, volume: str) -> dict[str, Any]:
        """Raises NotFound."""
        group = self._catalogue.find(volume)
        if group is None:
            raise NotFound(self._unknown(volume))
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(group.created))
        return {**self._brief(volume), "CreatedAt": created, "Status": self._status(volume, group)}

    def _brief(self, volume: str) -> dict[str, Any]:
        return {"Name": volume, "Mountpoint": self.path(volume)}

    def _status(self, volume: str, group: Group) -> dict[str, Any]:
        record = self._volumes.book.get(volume)
        return {
            "group": group.name,
            "size": sum(each.size for each in group.volumes),
            "fs": group.labels.get(opts.FILESYSTEM, "what is there"),
            "cache": str(group.cache),
            "access": str(opts.access_of(group)),
            "snapshots": [snapshot.name for snapshot in group.snapshots],
            "attachments": [_attachment(each) for each in self._catalogue.attachments(group.name)],
            "mounts_here": len(record.ids) if record else 0,
            "health": self._volumes.trouble_of(volume) or self._catalogue.trouble or str(group.state),
        }

    def _unknown(self, volume: str) -> str:
        trouble = self._catalogue.trouble
        return f"no such volume: {volume}" + (f" (what is known may be old: {trouble})" if trouble else "")


def _attachment(each: Attachment) -> dict[str, Any]:
    return {"host": each.host, "mode": str(each.mode), "generation": each.generation, "alive": each.alive}
