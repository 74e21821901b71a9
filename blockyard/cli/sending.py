"""How far a stream that is being sent is: what of it has passed, and how much it will be.

It looks into the stream's envelopes (``docs/streams.md``) as they pass and changes nothing; whether they are right is
the receiver's to judge. Invariant: a stream that is not understood passes like any other, uncounted.
"""

from __future__ import annotations

import struct

from blockyard.client import BlockyardClient

_ENVELOPE = struct.Struct("<II4sIIIQIII")
"""Magic, length, kind, crc; then of a piece: number, LUN, position, length of its frame, of its content, crc. A head is
longer, and the tail, which is shorter, comes last."""
_MAGIC = 0x184D2A5B
_LENGTHS = 8  # bytes of an envelope before those that its length counts


class Passing:
    """Feed it the stream, in whatever pieces it comes."""

    def __init__(self) -> None:
        self.content = 0
        """Bytes of records, unpacked, whose frames have begun to pass."""
        self._begun = bytearray()
        self._skip = 0
        self._understood = True

    def count(self, data: bytes) -> None:
        at = 0
        while at < len(data) and self._understood:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(_ENVELOPE.size - len(self._begun), len(data) - at)
                self._begun += data[at : at + step]
                if len(self._begun) == _ENVELOPE.size:
                    self._open(self._begun)
                    self._begun.clear()
            at += step

    def _open(self, envelope: bytearray) -> None:
        magic, length, kind, _, _, _, _, frame, content, _ = _ENVELOPE.unpack(envelope)
        self._skip = _LENGTHS + length - _ENVELOPE.size
        self._understood = magic == _MAGIC and self._skip >= 0
        if kind == b"PIEC":
            self._skip += frame
            self.content += content


def expected(daemon: BlockyardClient, group: str, snapshot: str, base: str | None) -> int | None:
    """Bytes of content that the stream will have, but for some at each range; None: that is not known."""
    if base is None:
        return next((each.mapped for each in daemon.list_snapshots(group) if each.name == snapshot), None)
    totals = [line.diff for line in daemon.diff_snapshots(group, base, snapshot) if line.diff is not None]
    return sum(volume.changed for diff in totals for volume in diff.volumes) if totals else None
