"""What a block device carries already, and which of its paths stays the same: asked before a pool is made on it.

libblkid knows the magics of some hundred file systems, volume managers, RAIDs and partition tables; ``wipefs`` of
util-linux (a package that every Linux has) lists what it finds, all of it, and ``blkid`` would stop at the first. Our
own header it does not know, so that is looked for here. Nothing is changed but by ``wipe``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from blockstore.hostfile import GUARD, DeviceFile
from blockstore.layout import UNIT, FormatError, parse_data_header

_TOOL_SECONDS = 30.0  # for a device that spins up, or is slow; guessed
_CHUNK = bytes(1 << 16)
_BY_ID = Path("/dev/disk/by-id")
_OF_CONTENT = ("/dev/disk/by-uuid/", "/dev/disk/by-label/", "/dev/disk/by-id/lvm-pv-uuid-")
"""Names that are gone once the device has other content."""


def found_on(device: DeviceFile) -> list[str]:
    """What is on the device, in words; empty: nothing that anybody knows. Raises OSError when that cannot be told."""
    found = [
        " ".join(str(each[key]) for key in ("type", "label", "uuid") if each.get(key)) + f" at {each['offset']}"
        for each in json.loads(_wipefs("--no-act", "--json", device.name) or '{"signatures": []}')["signatures"]
    ]
    try:
        owner, _ = parse_data_header(device.read_stored(0, UNIT))
    except FormatError:
        return found
    return [f"data of pool {owner}", *found]


def wipe(device: DeviceFile) -> None:
    """Make the device carry nothing. ``device`` stays open: nobody else can take it meanwhile."""
    _wipefs("--all", "--force", "--quiet", device.name)
    for start in (0, max(0, device.size() - GUARD)):
        for offset in range(start, min(start + GUARD, device.size()), len(_CHUNK)):
            device.write(offset, (_CHUNK[: device.size() - offset],))
    device.sync()


def stable_path(path: Path) -> Path:
    """A path of the device ``path`` that will lead to it after the next start of the machine too, if there is one.

    ``/dev/sdb`` is whatever was found second. Raises OSError when ``path`` is not there."""
    text = os.path.abspath(path)
    kernel_name = os.path.realpath(text, strict=True)
    chosen = text.startswith("/dev/") and not text.startswith(_OF_CONTENT)
    if chosen and (text != kernel_name or text.startswith("/dev/mapper/")):
        return Path(text)  # also what a volume manager or the host's own rules named, such as /dev/vg/lv
    links = sorted(_BY_ID.iterdir()) if _BY_ID.is_dir() else []
    same = [link for link in links if os.path.realpath(link) == kernel_name and not str(link).startswith(_OF_CONTENT)]
    return same[0] if same else Path(kernel_name)


def _wipefs(*arguments: str) -> str:
    command: Sequence[str] = ["wipefs", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TOOL_SECONDS, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise OSError("wipefs (util-linux) is not there: what the device carries cannot be told") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{' '.join(command)} gave no answer within {_TOOL_SECONDS:g} s") from None
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
