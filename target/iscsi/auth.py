"""CHAP as iSCSI uses it (RFC 7143 12.1.3 and 9.2.1, RFC 1994): one-way, and mutual when asked and configured.

Not the login: ``login`` feeds the security stage's keys in and carries the answers out. Randomness comes in as an
argument. Invariant: the authenticator says ``done`` only after a response computed with the initiator's secret over
our own challenge was compared equal; an unknown user and a wrong secret take the same path and give the same answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pdus.errors import FormatError
from pdus.iscsi.keys import format_binary, parse_binary, parse_list, parse_number
from target.iscsi.errors import AuthenticationFailed, InitiatorError

ALGORITHMS: dict[int, str] = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}
"""CHAP_A numbers (IANA, 'PPP Authentication Algorithms'; RFC 7143 12.1.3) and their hashlib names."""

CHALLENGE_LENGTH = 32  # bytes; at least 16 are wanted, and as long as the longest digest in use costs nothing


@dataclass(frozen=True, slots=True)
class ChapCredentials:
    """What the initiator must prove, and what we prove when it asks (``target_*``; None: mutual is not possible)."""

    user: str
    secret: bytes = field(repr=False)
    target_user: str | None = None
    target_secret: bytes | None = field(default=None, repr=False)


def chap_response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """H(identifier || secret || challenge), RFC 1994 4.1, with the hash of ``algorithm``."""
    return hashlib.new(ALGORITHMS[algorithm], bytes([identifier]) + secret + challenge).digest()


class ChapAuthenticator:
    """One CHAP dialogue, the target's side. Each call takes a request's security keys and returns the answer's."""

    def __init__(self, credentials: ChapCredentials, random_bytes: Callable[[int], bytes]) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.done = False
        self.mutual = False

    def answer(self, offered: Mapping[str, str]) -> list[tuple[str, str]]:
        """Take the dialogue one step on.

        Empty when the request holds nothing of CHAP (the initiator has yet to speak). Raises AuthenticationFailed for
        anything that does not prove the secret, InitiatorError for steps out of order and malformed values.
        """
        try:
            if "CHAP_A" in offered:
                return self._challenge_initiator(offered["CHAP_A"])
            if "CHAP_N" in offered or "CHAP_R" in offered:
                return self._verify(offered)
        except FormatError as error:
            raise InitiatorError(f"CHAP: {error}") from None
        if "CHAP_I" in offered or "CHAP_C" in offered:
            raise InitiatorError("CHAP_I or CHAP_C without CHAP_N and CHAP_R")
        return []

    def _challenge_initiator(self, offered: str) -> list[tuple[str, str]]:
        if self._algorithm:
            raise InitiatorError("CHAP_A sent twice")
        # The offer is a list in the initiator's order of preference; unknown members are passed over
        for member in parse_list(offered):
            number = parse_number(member)
            if number in ALGORITHMS:
                break
        else:
            raise AuthenticationFailed(f"CHAP_A={offered}: allowed are {','.join(map(str, ALGORITHMS))}")
        self._algorithm = number
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(CHALLENGE_LENGTH)
        return [
            ("CHAP_A", str(number)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", format_binary(self._challenge)),
        ]

    def _verify(self, offered: Mapping[str, str]) -> list[tuple[str, str]]:
        if not self._algorithm or self.done:
            raise InitiatorError("CHAP_N and CHAP_R before a challenge, or twice")
        if "CHAP_N" not in offered or "CHAP_R" not in offered:
            raise InitiatorError("CHAP_N and CHAP_R must come together")
        ours = self._credentials
        expected = chap_response(self._algorithm, self._identifier, ours.secret, self._challenge)
        # Both comparisons are made always, and in constant time: an unknown user takes as long as a bad secret
        known = hmac.compare_digest(offered["CHAP_N"].encode(), ours.user.encode())
        proved = hmac.compare_digest(parse_binary(offered["CHAP_R"]), expected)
        if not (known and proved):
            raise AuthenticationFailed(f"CHAP: user {offered['CHAP_N']!r} unknown or secret wrong")
        answers = self._prove_ourselves(offered) if "CHAP_I" in offered or "CHAP_C" in offered else []
        self.done = True
        return answers

    def _prove_ourselves(self, offered: Mapping[str, str]) -> list[tuple[str, str]]:
        if "CHAP_I" not in offered or "CHAP_C" not in offered:
            raise InitiatorError("CHAP_I and CHAP_C must come together")
        user, secret = self._credentials.target_user, self._credentials.target_secret
        if user is None or secret is None:
            raise AuthenticationFailed("mutual CHAP asked for, but this target has no secret of its own")
        # RFC 7143 9.2.1: secrets of the two directions must differ, or one side's answer serves the other
        if hmac.compare_digest(secret, self._credentials.secret):
            raise AuthenticationFailed("mutual CHAP: the secrets of both directions are equal")
        identifier = parse_number(offered["CHAP_I"], (0, 255))
        challenge = parse_binary(offered["CHAP_C"])
        # RFC 7143 9.2.1: a challenge that we sent ourselves comes back to have us answer it
        if hmac.compare_digest(challenge, self._challenge):
            raise AuthenticationFailed("mutual CHAP: our own challenge was reflected")
        self.mutual = True
        proof = chap_response(self._algorithm, identifier, secret, challenge)
        return [("CHAP_N", user), ("CHAP_R", format_binary(proof))]
