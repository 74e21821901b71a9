"""The rules for names, sizes and secrets: what may be said, and the message when it may not.

Plain functions that return the accepted value or raise ValueError; ``model`` hangs them on its fields.
RFC 7143 4.2.7 (iSCSI names), RFC 7143 9.2.1 (secrets of at least 96 bits).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

GRAIN = 4096  # bytes; sizes are multiples of it, because the store maps such grains
MAX_VOLUME_SIZE = 256 << 40  # bytes; where the store's map format ends
MAX_ISCSI_NAME = 223  # bytes; RFC 7143 4.2.7.1
MIN_SECRET = 12  # bytes; 96 bits, RFC 7143 9.2.1
MAX_SECRET = 255  # bytes; a text value of a login key ends there
DEFAULT_API = "unix:/run/blockyard/api.sock"
ANY = "any"
"""In the place of an initiator name: everybody."""
MAX_LABELS = 32  # of a group; guessed: a label is a fact for people and plugins, not storage
MAX_LABEL = 255  # bytes of a label's key, and of its value
PROJECT = "blockyard.project"
"""The label that says whose a group is: a host's token reaches the groups of its project."""

_GROUP_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_PART_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?")
_DATED_NAME = re.compile(r"iqn\.\d{4}-(?:0[1-9]|1[0-2])\.[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[a-z0-9.:-]+)?")
# Initiators choose their own names; some write capitals or underscores, and must be nameable as they are.
_INITIATOR = re.compile(r"iqn\.\d{4}-\d{2}\.[A-Za-z0-9._:-]+|eui\.[0-9A-Fa-f]{16}|naa\.(?:[0-9A-Fa-f]{16}){1,2}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def group_name(text: str) -> str:
    if not _GROUP_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a group name: 1 to 63 of a-z, 0-9, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return text


def pool_name(text: str) -> str:
    if not _GROUP_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a pool name: 1 to 63 of a-z, 0-9, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return text


def may_be_pool(entry: Path) -> bool:
    """Whether what lies in ``pools/`` is a pool's directory, and not what the file system put there."""
    return entry.is_dir() and entry.name != "lost+found" and not entry.name.startswith(".")


def part_name(text: str) -> str:
    """Names of volumes and snapshots: they live inside a group, so more is allowed than in an iSCSI name."""
    if not _PART_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not allowed as a name: 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-', "
            "beginning and ending with a letter or digit"
        )
    return text


def target_iqn(text: str) -> str:
    if len(text.encode()) > MAX_ISCSI_NAME:
        raise ValueError(f"the iSCSI name has {len(text.encode())} bytes, allowed are {MAX_ISCSI_NAME}")
    if not _DATED_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a target name: iqn.YYYY-MM.reversed.domain[:text] of a-z, 0-9, '-', '.', ':'"
        )
    return text


def initiator(text: str) -> str:
    """An initiator's iSCSI name, or ``any``."""
    if text == ANY:
        return text
    if len(text.encode()) > MAX_ISCSI_NAME:
        raise ValueError(f"the iSCSI name has {len(text.encode())} bytes, allowed are {MAX_ISCSI_NAME}")
    if not _INITIATOR.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an initiator name: allowed are 'any', iqn.YYYY-MM.reversed.domain[:text], "
            "eui. and naa. names"
        )
    return text


def address_range(text: str) -> str:
    """A CIDR range or one address, in its normal form."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is not an address range such as 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32") from None


def volume_size(size: int) -> int:
    """Bytes, rounded up to the grain."""
    rounded = -(-size // GRAIN) * GRAIN
    if not 0 < rounded <= MAX_VOLUME_SIZE:
        raise ValueError(f"a volume of {size} bytes is not allowed: 4096 bytes to 256 TiB ({MAX_VOLUME_SIZE} bytes)")
    return rounded


def parse_size(text: str) -> int:
    """Bytes of ``10G``, ``1.5T``, ``4096``; the units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: a number with K, M, G or T (powers of 1024), such as 10G or 1.5T")
    whole, _, fraction = match[1].partition(".")
    shift = _UNITS[match[2].upper()]
    part = (int(fraction or "0") << shift) // int("1" + "0" * len(fraction))
    return (int(whole) << shift) + part


def chap_secret(text: str) -> str:
    length = len(text.encode())
    if not MIN_SECRET <= length <= MAX_SECRET:
        raise ValueError(
            f"the CHAP secret has {length} bytes, allowed are {MIN_SECRET} to {MAX_SECRET} (Windows takes at most 16)"
        )
    if not text.isprintable():
        raise ValueError("the CHAP secret holds a control character; printable ones are allowed")
    return text


def chap_user(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_SECRET or not text.isprintable():
        raise ValueError(f"the CHAP user name must be 1 to {MAX_SECRET} bytes without control characters")
    return text


def labels(found: dict[str, str]) -> dict[str, str]:
    if len(found) > MAX_LABELS:
        raise ValueError(f"{len(found)} labels are not allowed: at most {MAX_LABELS}")
    for key, value in found.items():
        if not 0 < len(key.encode()) <= MAX_LABEL or not key.isprintable():
            raise ValueError(f"the label's key {key!r} must be 1 to {MAX_LABEL} bytes without control characters")
        if len(value.encode()) > MAX_LABEL or not value.isprintable():
            raise ValueError(f"the value of label {key!r} must be at most {MAX_LABEL} bytes, no control characters")
    return found


def project(text: str) -> str:
    """A project's name is a label's value, and is written in tokens' listings: not empty."""
    if not text:
        raise ValueError(f"the project must be 1 to {MAX_LABEL} bytes without control characters")
    return labels({PROJECT: text})[PROJECT]


def host(text: str) -> str:
    """An initiator's own name: attachments belong to one host, never to ``any``."""
    if text == ANY:
        raise ValueError("a host is one initiator; allowed are iqn.YYYY-MM.reversed.domain[:text], eui. and naa. names")
    return initiator(text)
