"""Operational keys in login and full feature phase (RFC 7143 chapters 6 and 13): what we answer, and what is agreed.

The rules of each key are rows of ``pdus.iscsi.keys``; here is what *this* target wants. Not the stages of the login and
not authentication. Invariant: a key is settled at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdus.errors import FormatError
from pdus.iscsi.keys import (
    IRRELEVANT,
    KEYS,
    NOT_UNDERSTOOD,
    REJECT,
    Key,
    Result,
    Sender,
    Use,
    check_name,
    check_value,
    combine,
    format_boolean,
    parse_number,
)
from target.iscsi.errors import InitiatorError
from target.iscsi.settings import Settings

Pairs = list[tuple[str, str]]

LOGIN_MAX_SEGMENT = 8192
"""Bytes; MaxRecvDataSegmentLength of both sides until declared, and always during login (RFC 7143 13.12)."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was agreed. Lengths are bytes, times seconds. ``max_send`` is the initiator's MaxRecvDataSegmentLength,
    ``max_receive`` ours."""

    max_send: int
    max_receive: int
    first_burst: int
    max_burst: int
    initial_r2t: bool
    immediate_data: bool
    max_outstanding_r2t: int
    header_digest: bool
    data_digest: bool
    time_to_wait: int
    time_to_retain: int


class Negotiation:
    """One login's operational keys."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._settled: dict[str, str] = {}
        self._declared_ours = False
        self._ours: dict[str, str | Sequence[str]] = {
            "HeaderDigest": settings.header_digests,
            "DataDigest": settings.data_digests,
            "MaxConnections": "1",
            "InitialR2T": format_boolean(settings.initial_r2t),
            "ImmediateData": format_boolean(settings.immediate_data),
            "MaxBurstLength": str(settings.max_burst_length),
            "FirstBurstLength": str(settings.first_burst_length),
            "DefaultTime2Wait": "2",
            "DefaultTime2Retain": "0",  # at ErrorRecoveryLevel 0 no task outlives its connection
            "MaxOutstandingR2T": str(settings.max_outstanding_r2t),
            "DataPDUInOrder": "Yes",
            "DataSequenceInOrder": "Yes",
            "ErrorRecoveryLevel": "0",
            "TaskReporting": ("RFC3720",),
            "iSCSIProtocolLevel": "1",
        }

    def value(self, name: str) -> str | None:
        """What is in force: settled, or the default."""
        return self._settled.get(name, KEYS[name].default)

    def settle_once(self, name: str, value: str) -> None:
        """Note a key as said. InitiatorError when it was said before: that ends the login (RFC 7143 6.3)."""
        if name in self._settled:
            raise InitiatorError(f"{name} sent more than once")
        self._settled[name] = value

    def answer(self, offered: Pairs, *, discovery: bool) -> Pairs:
        """Our answers, in the order of the offers; none for declarations. Raises InitiatorError."""
        answers: dict[str, str | None] = {}
        # FirstBurstLength depends on MaxBurstLength, InitialR2T and ImmediateData: last, wherever it was written
        for name, value in sorted(offered, key=lambda pair: pair[0] == "FirstBurstLength"):
            answers[name] = self._answer_one(name, value, discovery)
        return [(name, answer) for name, _ in offered if (answer := answers[name]) is not None]

    def declarations(self) -> Pairs:
        """Our own declarations, the first time that this is called."""
        if self._declared_ours:
            return []
        self._declared_ours = True
        return [("MaxRecvDataSegmentLength", str(self._settings.max_recv_data_segment_length))]

    def _answer_one(self, name: str, value: str, discovery: bool) -> str | None:
        try:
            check_name(name)
            check_value(name, value)
        except FormatError as error:
            raise InitiatorError(str(error)) from None
        key = KEYS.get(name)
        if key is None:
            self.settle_once(name, NOT_UNDERSTOOD)
            return NOT_UNDERSTOOD
        if key.sender is Sender.TARGET:
            raise InitiatorError(f"{name} may only be sent by the target")
        if key.result is Result.DECLARED:
            self._declare(key, value)
            return None
        answer = self._negotiate(key, value, discovery)
        # What was refused leaves the default in force, but counts as negotiated all the same
        self.settle_once(name, answer if answer not in (REJECT, IRRELEVANT) else (key.default or ""))
        return answer

    def _declare(self, key: Key, value: str) -> None:
        try:
            if key.range:
                parse_number(value, key.range)
            if key.values and value not in key.values:
                raise FormatError(f"{value!r} is not one of {', '.join(key.values)}")
        except FormatError as error:
            raise InitiatorError(f"{key.name}: {error}") from None
        self.settle_once(key.name, value)

    def _negotiate(self, key: Key, value: str, discovery: bool) -> str:
        if key.result in (Result.OBSOLETE, Result.REQUEST) or key.use is Use.SECURITY_ONLY:
            return REJECT
        if discovery and not key.discovery:
            return IRRELEVANT
        if key.name == "FirstBurstLength":
            if self.value("InitialR2T") == "Yes" and self.value("ImmediateData") == "No":
                return IRRELEVANT
            return self._combine(
                key, value, str(min(self._settings.first_burst_length, self._number("MaxBurstLength")))
            )
        return self._combine(key, value, self._ours[key.name])

    def _combine(self, key: Key, value: str, ours: str | Sequence[str]) -> str:
        try:
            return combine(key, value, ours)
        except FormatError:
            return REJECT

    def _number(self, name: str) -> int:
        value = self.value(name)
        assert value is not None
        return parse_number(value)

    def parameters(self) -> Parameters:
        """What is in force now."""
        ours = self._settings.max_recv_data_segment_length
        max_burst = self._number("MaxBurstLength")
        return Parameters(
            max_send=self._number("MaxRecvDataSegmentLength"),
            max_receive=ours if self._declared_ours else LOGIN_MAX_SEGMENT,
            # RFC 7143 13.14: never above MaxBurstLength, also when only one of them was negotiated
            first_burst=min(self._number("FirstBurstLength"), max_burst),
            max_burst=max_burst,
            initial_r2t=self.value("InitialR2T") == "Yes",
            immediate_data=self.value("ImmediateData") == "Yes",
            max_outstanding_r2t=self._number("MaxOutstandingR2T"),
            header_digest=self.value("HeaderDigest") == "CRC32C",
            data_digest=self.value("DataDigest") == "CRC32C",
            time_to_wait=self._number("DefaultTime2Wait"),
            time_to_retain=self._number("DefaultTime2Retain"),
        )


def answer_full_feature(offered: Pairs) -> tuple[Pairs, int | None]:
    """Answers to keys in a Text Request, and the initiator's new MaxRecvDataSegmentLength if it declared one.

    Login keys are answered Reject: they cannot change now. Raises InitiatorError as login does.
    """
    answers: Pairs = []
    max_send: int | None = None
    for name, value in offered:
        key = KEYS.get(name)
        if key is None:
            answers.append((name, NOT_UNDERSTOOD))
        elif key.name == "MaxRecvDataSegmentLength":
            try:
                max_send = parse_number(value, key.range)
            except FormatError:
                answers.append((name, REJECT))
        elif key.use is not Use.ALL or key.sender is Sender.TARGET:
            answers.append((name, REJECT))
    return answers, max_send
