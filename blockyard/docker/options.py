"""What ``docker volume create -o`` may say, and how a volume of Docker is written into a volume group.

All that is known of a volume is in its group: its labels say how it was asked for, so every host reads the same.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from blockyard.errors import Invalid
from blockyard.hosts.filesystems import Kind
from blockyard.model import Cache, Group, names
from blockyard.model.attachments import AttachMode

T = TypeVar("T")

NAME = "docker.name"
FILESYSTEM = "docker.fs"
MAKE_OPTIONS = "docker.mkfs-opts"
CACHE = "docker.cache"
ACCESS = "docker.access"
SIZE = "docker.size"
CREATED_BY = "docker.created-by"

ALLOWED = {
    "size": "such as 10G",
    "fs": "ext4, xfs or raw",
    "from": "GROUP@SNAPSHOT, of which it is a clone",
    "group": "the volume group's name",
    "cache": "writeback or writethrough",
    "access": "single-writer, multi-writer or read-only-many",
    "mkfs-opts": "words for mkfs",
}

# Docker's own rule (volume names), and at most what a file name may be.
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_HASH = 8  # hexadecimal digits that keep two Docker names apart that would give one group name
_GROUP_NAME = 63


@dataclass(frozen=True, slots=True)
class Source:
    group: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class Options:
    """None: not said."""

    size: int | None = None
    fs: Kind | None = None
    source: Source | None = None
    group: str | None = None
    cache: Cache | None = None
    access: AttachMode | None = None
    make_options: tuple[str, ...] | None = None


def parse(given: Mapping[str, str]) -> Options:
    """Raises Invalid, which says what is allowed."""
    unknown = sorted(set(given) - set(ALLOWED))
    if unknown:
        allowed = "; ".join(f"{key} ({meaning})" for key, meaning in ALLOWED.items())
        raise Invalid(f"unknown option {', '.join(unknown)}; allowed are {allowed}")
    options = Options(
        size=_read(given, "size", lambda text: names.volume_size(names.parse_size(text))),
        fs=_read(given, "fs", Kind),
        source=_read(given, "from", _source),
        group=_read(given, "group", names.group_name),
        cache=_read(given, "cache", Cache),
        access=_read(given, "access", AttachMode),
        make_options=_read(given, "mkfs-opts", _words),
    )
    _check_together(options)
    return options


def _read(given: Mapping[str, str], key: str, meaning: Callable[[str], T]) -> T | None:
    if key not in given:
        return None
    try:
        return meaning(given[key])
    except ValueError as error:
        raise Invalid(f"option {key}={given[key]}: allowed is {ALLOWED[key]} ({error})") from None


def _check_together(options: Options) -> None:
    if options.source and (options.fs or options.make_options):
        raise Invalid(
            "options fs and mkfs-opts go with a new volume; a clone (from) has the file system of its snapshot"
        )
    if options.fs is Kind.RAW and options.make_options:
        raise Invalid("option mkfs-opts goes with a file system; fs=raw has none")
    if options.access is AttachMode.MULTI_WRITER and options.fs is not Kind.RAW and not options.source:
        raise Invalid(f"access=multi-writer goes with fs=raw: {options.fs or 'a file system'} is torn by two writers")
    if options.access is AttachMode.READ_ONLY_MANY and not options.source:
        raise Invalid("access=read-only-many goes with from=GROUP@SNAPSHOT: an empty volume cannot be read")


def _source(text: str) -> Source:
    group, at, snapshot = text.partition("@")
    if not at:
        raise ValueError("there is no @")
    return Source(group, names.part_name(snapshot))


def _words(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if any("/" in word for word in words):
        raise ValueError("no file and no other device may be named: '/'")
    return words


# --- volumes and groups --------------------------------------------------------------------------------------------


def volume_name(text: str) -> str:
    """Raises Invalid."""
    if not _VOLUME_NAME.fullmatch(text):
        raise Invalid(
            f"{text!r} is not a volume name: 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-', a letter or digit first"
        )
    return text


def group_for(volume: str) -> str:
    """The group of a volume when nothing is said of it. Compose writes ``project_data``, which is no group name: such
    a name gets a part of its hash, so that it stays apart from ``project-data``."""
    try:
        return names.group_name(volume)
    except ValueError:
        plain = re.sub(r"[^a-z0-9.-]", "-", volume.lower())[: _GROUP_NAME - _HASH - 1]
        return f"{plain}-{hashlib.sha256(volume.encode()).hexdigest()[:_HASH]}"


def volume_of(group: Group) -> str:
    """The name that Docker knows a group by."""
    return group.labels.get(NAME, group.name)


def labels_of(volume: str, options: Options, kind: Kind | None, host: str) -> dict[str, str]:
    """``kind`` None: that of the origin, whatever it is."""
    labels = {NAME: volume, CREATED_BY: host}
    if kind is not None:
        labels[FILESYSTEM] = kind
    if options.make_options:
        labels[MAKE_OPTIONS] = shlex.join(options.make_options)
    if options.cache is not None:
        labels[CACHE] = options.cache
    if options.access is not None:
        labels[ACCESS] = options.access
    if options.size is not None:
        labels[SIZE] = str(options.size)
    return labels


def kind_of(group: Group, default: Kind) -> Kind:
    return Kind(group.labels.get(FILESYSTEM, default))


def access_of(group: Group) -> AttachMode:
    return AttachMode(group.labels.get(ACCESS, AttachMode.SINGLE_WRITER))


def conflict(group: Group, options: Options) -> str | None:
    """How a group that is there differs from what is asked; None: it does not. What is not said agrees."""
    size = group.volumes[0].size if group.volumes else 0
    origin = f"{options.source.group}@{options.source.snapshot}" if options.source else None
    labels = group.labels
    asked_and_found = (
        ("size", options.size, options.size if options.size in (size, _size_label(labels)) else size),
        ("fs", options.fs, labels.get(FILESYSTEM, options.fs)),
        ("from", origin, group.origin),
        ("group", options.group, group.name),
        ("cache", options.cache, group.cache),
        ("access", options.access, access_of(group)),
        ("mkfs-opts", options.make_options and shlex.join(options.make_options), labels.get(MAKE_OPTIONS)),
    )
    for key, asked, found in asked_and_found:
        if asked is not None and asked != found:
            return f"it exists with {key}={found}, asked is {key}={asked}"
    return None


def _size_label(labels: Mapping[str, str]) -> int | None:
    return int(labels[SIZE]) if labels.get(SIZE, "").isdigit() else None
