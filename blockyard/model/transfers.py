"""The nouns of what takes minutes: differences, fingerprints, scrubs, receives, and how far each is.

They travel as lines of JSON, one ``Line`` each with one field set, so that nobody must hold a million ranges. Offsets
and lengths are bytes.
"""

from __future__ import annotations

from uuid import UUID

from blockyard.model import Move, Value
from blockyard.model.moves import MoveReport


class DiffRange(Value):
    lun: int
    offset: int
    length: int
    kind: str
    """``changed``: other data; ``zero``: reads as zeros now."""


class DiffVolume(Value):
    lun: int
    name: str
    size: int
    changed: int
    """Bytes in ranges of that kind."""
    zero: int
    ranges: int


class Diff(Value):
    """The totals, after all ranges."""

    group: str
    old: str
    new: str | None
    """None: the group as it was when it was asked."""
    volumes: tuple[DiffVolume, ...]
    removed: tuple[int, ...]
    """LUNs that the older one has and the newer has not."""


class Progress(Value):
    done: int
    """Bytes."""
    total: int
    errors: int = 0


class VolumeFingerprint(Value):
    lun: int
    name: str
    size: int
    mapped: int
    sha256: str


class Fingerprint(Value):
    """Equal for equal content, in whatever pool."""

    group: str
    snapshot: str
    sha256: str
    volumes: tuple[VolumeFingerprint, ...]


class ScrubFinding(Value):
    group: str
    snapshot: str | None
    """None: the volume as it is now."""
    lun: int
    volume: str
    offset: int
    lba: int
    """Of 512 bytes."""
    block: int
    reason: str


class ScrubReport(Value):
    blocks: int
    """Of 4096 bytes, each read once."""
    seconds: float
    errors: tuple[ScrubFinding, ...]
    """The first thousand."""
    error_count: int


class Failure(Value):
    """What went wrong after the first line, as any refusal of the product."""

    code: str
    message: str


class Line(Value):
    ranges: tuple[DiffRange, ...] | None = None
    progress: Progress | None = None
    diff: Diff | None = None
    fingerprint: Fingerprint | None = None
    scrub: ScrubReport | None = None
    move: Move | None = None
    moved: MoveReport | None = None
    failure: Failure | None = None


class Receive(Value):
    """A receive that has not come to its end."""

    group: str
    snapshot: str
    identity: UUID
    """Of the snapshot that is being received."""
    base: str | None
    lun: int
    """It is complete up to ``offset`` of this volume, and in all before it."""
    offset: int
    received: int
    """Bytes of records so far."""
    active: bool
    """Whether a stream is coming in now."""
    token: str
    """For ``snapshot send --resume``."""
