"""Where this machine gets its Debian packages: its own apt configuration, read when the guest image is built.

No host name stands in this repository: a machine behind a proxy or with a local mirror builds from there. Both forms of
sources are read, the one-line form and deb822. ``BLOCKYARD_GUEST_MIRROR`` overrides what was found.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

APT = Path("/etc/apt")


class NoMirror(RuntimeError):
    """Nothing in apt's configuration names a mirror of the wanted Debian release."""


@dataclass(frozen=True, slots=True)
class Source:
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def find(suite: str, *, apt: Path = APT) -> str:
    """The URI of the first configured source that has ``suite`` and its component ``main``."""
    override = os.environ.get("BLOCKYARD_GUEST_MIRROR")
    if override:
        return override
    sources = list(_sources(apt))
    for source in sources:
        if suite in source.suites and "main" in source.components:
            return source.uri
    # A machine of another Debian release: its mirror has the guest's release too.
    for source in sources:
        if "main" in source.components and source.uri.rstrip("/").endswith("/debian"):
            return source.uri
    seen = ", ".join(source.uri for source in sources) or "none"
    raise NoMirror(
        f"no apt source under {apt} has suite {suite} with component main (seen: {seen});"
        " set BLOCKYARD_GUEST_MIRROR to a Debian mirror"
    )


def proxy_environment() -> dict[str, str]:
    """apt's proxy as the variables that debootstrap's downloader reads; empty where apt has none."""
    found = {}
    for scheme in ("http", "https"):
        command = ["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        value = printed.removeprefix("PROXY=").strip("'")
        if value and value != "DIRECT":
            found[f"{scheme}_proxy"] = value
    return found


def _sources(apt: Path) -> Iterator[Source]:
    folder = apt / "sources.list.d"
    for path in [apt / "sources.list", *sorted(folder.glob("*.list"))]:
        if path.exists():
            yield from _one_line_sources(path.read_text())
    for path in sorted(folder.glob("*.sources")):
        yield from _deb822_sources(path.read_text())


def _one_line_sources(text: str) -> Iterator[Source]:
    """``deb [options] uri suite component...``"""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] != "deb":
            continue
        words = words[1:]
        if words and words[0].startswith("["):
            closing = next((i for i, word in enumerate(words) if word.endswith("]")), len(words))
            words = words[closing + 1 :]
        if len(words) >= 3:
            yield Source(words[0], (words[1],), tuple(words[2:]))


def _deb822_sources(text: str) -> Iterator[Source]:
    """Stanzas of ``Field: value``, separated by empty lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in "\n".join(lines).split("\n\n"):
        fields: dict[str, list[str]] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields.setdefault(last, []).extend(line.split())
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.split()
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                yield Source(uri, tuple(fields.get("suites", [])), tuple(fields.get("components", [])))
