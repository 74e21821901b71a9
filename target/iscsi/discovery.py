"""Text exchanges in full feature phase: requests and answers longer than one PDU, and SendTargets (RFC 7143 11.10, 4.3,
appendix C).

Not the meaning of the keys (``negotiation``) and not which targets exist (the owner answers that). Invariant: at most
one exchange is open at a time; its text is bounded by MAX_TEXT in each direction of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.text import TextRequest, encode_pairs

MAX_TEXT = 65536
"""Bytes of one request's text over all its parts; guessed, eight times what a login PDU holds."""


def send_targets_text(records: Iterable[tuple[str, Sequence[str]]], portal_group_tag: int) -> bytes:
    """The answer's text. An address without a tag of its own ("host:port") gets ``portal_group_tag``."""
    pairs = []
    for name, addresses in records:
        pairs.append(("TargetName", name))
        pairs += [
            ("TargetAddress", address if "," in address else f"{address},{portal_group_tag}") for address in addresses
        ]
    return encode_pairs(pairs)


class TextExchange:
    """One initiator's question and our answer, each in as many parts as it takes."""

    __slots__ = ("_answer", "_question", "itt", "pending", "ttt")

    def __init__(self, itt: int) -> None:
        self.itt = itt
        self.ttt = RESERVED_TAG
        self.pending = False  # the owner has the question and has not answered
        self._question = bytearray()
        self._answer: memoryview | None = None

    def continues(self, request: TextRequest) -> bool:
        """Whether ``request`` is this exchange's next part: same ITT, and the TTT that we gave last."""
        return request.initiator_task_tag == self.itt and request.target_transfer_tag == self.ttt != RESERVED_TAG

    def collect(self, data: bytes) -> bool:
        """Add a part of the question. False: it is longer than MAX_TEXT."""
        self._question += data
        return len(self._question) <= MAX_TEXT

    def question(self) -> bytes:
        return bytes(self._question)

    @property
    def answering(self) -> bool:
        """Whether parts of the answer are still to be fetched."""
        return self._answer is not None

    def answer(self, text: bytes) -> None:
        self.pending = False
        self._answer = memoryview(text)

    def next_part(self, limit: int) -> tuple[bytes, bool]:
        """At most ``limit`` bytes of the answer, and whether it is the last part."""
        assert self._answer is not None
        part, rest = self._answer[:limit], self._answer[limit:]
        self._answer = rest if rest.nbytes else None
        return bytes(part), not rest.nbytes
