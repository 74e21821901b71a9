"""Archives in cpio's "newc" form, the one that the Linux kernel unpacks as an initramfs.

Not a general archiver: directories and regular files, all owned by root. The kernel accepts several
archives after one another, so a guest's own scripts are appended to the cached part at each boot.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import PurePosixPath

_TRAILER = "TRAILER!!!"


def archive(files: Mapping[str, bytes], *, executable: frozenset[str] = frozenset()) -> bytes:
    """The archive that holds ``files`` (path without leading slash → contents) and the folders above them."""
    folders = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."})
    entries = [_entry(folder, stat.S_IFDIR | 0o755, b"") for folder in folders]
    for name, contents in files.items():
        entries.append(_entry(name, stat.S_IFREG | (0o755 if name in executable else 0o644), contents))
    return b"".join(entries) + _entry(_TRAILER, 0, b"")


def _entry(name: str, mode: int, contents: bytes) -> bytes:
    # The fields of cpio(5), newc: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
    # namesize check. The inode may stay 0 because no file here has a second link.
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + encoded) + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
