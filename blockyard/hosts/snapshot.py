"""A snapshot that needs no repair: the file system stands still while the target takes it."""

from __future__ import annotations

from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Host
from blockyard.hosts.filesystems import frozen
from blockyard.model import Snapshot


def snapshot_frozen(host: Host, api: HostApi, group: str, name: str, folder: str) -> Snapshot:
    """Raises what the target says, CommandFailed when the file system cannot be frozen."""
    with frozen(host, folder):
        return api.create_snapshot(group, name)
