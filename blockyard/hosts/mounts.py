"""What is mounted, here and in containers, as the kernel says it (proc(5), /proc/[pid]/mountinfo).

Not mounting (``filesystems``). Nothing is remembered: another process may mount and unmount at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from blockyard.hosts.commands import Host

_ESCAPED = re.compile(rb"\\([0-7]{3})")  # mountinfo writes blanks and backslashes so


@dataclass(frozen=True, slots=True)
class Mount:
    device: str
    """``major:minor`` of what is mounted."""
    root: str
    """Which folder of that file system is seen."""
    folder: str
    """The mount point."""
    kind: str
    read_only: bool
    """The mount or its whole file system; ext4 makes itself so after an error of its journal."""

    def shows(self, name: str, number: str) -> bool:
        """Whether it is the block device ``name`` (sda) with ``number`` (8:0): its file system, or its own node."""
        return self.device == number or (self.kind == "devtmpfs" and self.root == f"/{name}")


def own_mounts(host: Host) -> list[Mount]:
    """In the order in which they were made: of several at one folder the last one is seen."""
    return list(_parse(host.read("/proc/self/mountinfo")))


def mount_at(host: Host, folder: str) -> Mount | None:
    found = [mount for mount in own_mounts(host) if mount.folder == folder]
    return found[-1] if found else None


def mounts_below(host: Host, root: str) -> list[Mount]:
    return [mount for mount in own_mounts(host) if mount.folder.startswith(root + "/")]


def seen_elsewhere(host: Host, mount: Mount) -> bool:
    """Whether a container has it: any process that sees the same under another name than ours.

    A service with a mount namespace of its own has a copy of our mount, too, but under our name.
    """
    return any(
        other.device == mount.device and (mount.kind != "devtmpfs" or other.root == mount.root)
        for other in _all_mounts(host)
        if other.folder != mount.folder
    )


def _all_mounts(host: Host) -> Iterator[Mount]:
    """Of every mount namespace once."""
    seen: set[str] = set()
    for name in host.names("/proc"):
        if not name.isdigit():
            continue
        namespace = host.link(f"/proc/{name}/ns/mnt")
        if namespace is None or namespace in seen:
            continue
        try:
            mounts = list(_parse(host.read(f"/proc/{name}/mountinfo")))
        except OSError:  # it has ended
            continue
        seen.add(namespace)
        yield from mounts


def _parse(content: bytes) -> Iterator[Mount]:
    for line in content.splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(), after.split()
        options = set(fields[5].split(b",")) | set(rest[2].split(b","))
        yield Mount(
            device=fields[2].decode(),
            root=_unescape(fields[3]),
            folder=_unescape(fields[4]),
            kind=rest[0].decode(),
            read_only=b"ro" in options,
        )


def _unescape(text: bytes) -> str:
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), text).decode(errors="surrogateescape")
