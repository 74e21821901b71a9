"""The text keys of RFC 7143 chapters 12 and 13: one table, and how their values are written and compared.

This module knows what a key *is*: its type, default, range, result function, when it may be sent and by whom. It
knows nothing of a login in progress; ``target.iscsi.negotiation`` does. Numbers are those of RFC 7143 6.1 (decimal or
hexadecimal constants, large binary values in hexadecimal or base64).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pdus.errors import FormatError

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"

MAX_NAME = 63  # bytes of a key name (RFC 7143 6.1)
MAX_VALUE = 255  # bytes of a value, unless the key says otherwise (RFC 7143 6.1)
MAX_BINARY = 1024  # bytes of a large binary value after decoding (RFC 7143 12.1.3: CHAP_C and CHAP_R)
MAX_ISCSI_NAME = 223  # bytes of an iSCSI name (RFC 7143 4.2.7.1)
MAX_LENGTH = 2**24 - 1  # bytes; what DataSegmentLength can hold

_KEY_NAME = re.compile(r"[A-Z][A-Za-z0-9.\-+@_]*(?:#[A-Za-z0-9.\-+@_]*)?")  # as RFC 7143 6.1 has them, X# keys included


class Kind(Enum):
    """The form of a value."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    LIST = "list"
    TEXT = "text"


class Result(Enum):
    """How the two sides' wishes become one value (RFC 7143 6.2), or that nothing is negotiated at all."""

    OR = "or"
    AND = "and"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    FIRST_COMMON = "first common"  # first value of the offerer's list that the acceptor supports
    DECLARED = "declared"  # each side says its own; no answer
    SECURITY = "security"  # belongs to the authentication dialogue
    OBSOLETE = "obsolete"  # always answered Reject (RFC 7143 13.25)
    REQUEST = "request"  # asks for something: SendTargets


class Use(Enum):
    """When a key may be sent (RFC 7143 chapter 13, 'Use')."""

    INITIALIZE_ONLY = "IO"  # any login
    LEADING_ONLY = "LO"  # the login of a session's first connection
    SECURITY_ONLY = "security"  # security negotiation stage of a login
    FULL_FEATURE_ONLY = "FFPO"
    ALL = "ALL"  # login and full feature phase
    LOGIN_AND_ADDRESS = "IO, and SendTargets answers"


class Sender(Enum):
    """Who may send a key."""

    INITIATOR = "initiator"
    TARGET = "target"
    BOTH = "both"


class Scope(Enum):
    """What the value is a property of."""

    SESSION = "session"
    CONNECTION = "connection"


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table.

    ``default`` is the value in force when nobody speaks of the key, in its text form (None: there is none).
    ``range`` is lowest and highest number, or empty. ``values`` are the words a list or text key may hold, or empty
    for free text. ``max_value`` is in bytes. ``discovery`` is False for keys that a discovery session makes irrelevant.
    """

    name: str
    kind: Kind
    result: Result
    use: Use
    sender: Sender
    scope: Scope
    default: str | None = None
    range: tuple[int, int] | tuple[()] = ()
    values: tuple[str, ...] = ()
    max_value: int = MAX_VALUE
    discovery: bool = True


_IO, _LO, _ALL = Use.INITIALIZE_ONLY, Use.LEADING_ONLY, Use.ALL
_SEC = Use.SECURITY_ONLY
_BOTH, _INITIATOR, _TARGET = Sender.BOTH, Sender.INITIATOR, Sender.TARGET
_SESSION, _CONNECTION = Scope.SESSION, Scope.CONNECTION
_LENGTHS = (512, MAX_LENGTH)
_BINARY_TEXT = 2 + 2 * MAX_BINARY  # bytes; "0x" and two digits a byte, the longer of the two forms


def _declared(name: str, use: Use, sender: Sender, max_value: int = MAX_VALUE) -> Key:
    return Key(name, Kind.TEXT, Result.DECLARED, use, sender, _SESSION, max_value=max_value)


def _number(name: str, result: Result, default: int, bounds: tuple[int, int], *, discovery: bool = False) -> Key:
    return Key(name, Kind.NUMBER, result, _LO, _BOTH, _SESSION, str(default), bounds, discovery=discovery)


def _boolean(name: str, result: Result) -> Key:
    return Key(name, Kind.BOOLEAN, result, _LO, _BOTH, _SESSION, "Yes", discovery=False)


def _digest(name: str) -> Key:
    return Key(name, Kind.LIST, Result.FIRST_COMMON, _IO, _BOTH, _CONNECTION, "None", values=("CRC32C", "None"))


def _security(name: str, kind: Kind, max_value: int = MAX_VALUE, sender: Sender = _BOTH) -> Key:
    return Key(name, kind, Result.SECURITY, _SEC, sender, _CONNECTION, max_value=max_value)


def _obsolete(name: str, kind: Kind) -> Key:
    return Key(name, kind, Result.OBSOLETE, _IO, _BOTH, _CONNECTION)


_TABLE = (
    # RFC 7143 chapter 12: security
    _security("AuthMethod", Kind.LIST),
    _security("CHAP_A", Kind.LIST),
    _security("CHAP_I", Kind.NUMBER),
    _security("CHAP_C", Kind.TEXT, _BINARY_TEXT),
    _security("CHAP_N", Kind.TEXT),
    _security("CHAP_R", Kind.TEXT, _BINARY_TEXT),
    # RFC 7143 chapter 13: operational, in its order
    _digest("HeaderDigest"),
    _digest("DataDigest"),
    _number("MaxConnections", Result.MINIMUM, 1, (1, 65535)),
    Key("SendTargets", Kind.TEXT, Result.REQUEST, Use.FULL_FEATURE_ONLY, _INITIATOR, _SESSION),
    _declared("TargetName", _IO, _BOTH),
    _declared("InitiatorName", _IO, _INITIATOR),
    _declared("TargetAlias", _ALL, _TARGET),
    _declared("InitiatorAlias", _ALL, _INITIATOR),
    _declared("TargetAddress", Use.LOGIN_AND_ADDRESS, _TARGET),
    Key("TargetPortalGroupTag", Kind.NUMBER, Result.DECLARED, _IO, _TARGET, _SESSION, range=(0, 65535)),
    _boolean("InitialR2T", Result.OR),
    _boolean("ImmediateData", Result.AND),
    Key(
        "MaxRecvDataSegmentLength",
        Kind.NUMBER,
        Result.DECLARED,
        _ALL,
        _BOTH,
        _CONNECTION,
        default="8192",
        range=_LENGTHS,
    ),
    _number("MaxBurstLength", Result.MINIMUM, 262144, _LENGTHS),
    _number("FirstBurstLength", Result.MINIMUM, 65536, _LENGTHS),
    _number("DefaultTime2Wait", Result.MAXIMUM, 2, (0, 3600), discovery=True),
    _number("DefaultTime2Retain", Result.MINIMUM, 20, (0, 3600), discovery=True),
    _number("MaxOutstandingR2T", Result.MINIMUM, 1, (1, 65535)),
    _boolean("DataPDUInOrder", Result.OR),
    _boolean("DataSequenceInOrder", Result.OR),
    _number("ErrorRecoveryLevel", Result.MINIMUM, 0, (0, 2), discovery=True),
    Key("SessionType", Kind.TEXT, Result.DECLARED, _LO, _INITIATOR, _SESSION, "Normal", values=("Normal", "Discovery")),
    Key(
        "TaskReporting",
        Kind.LIST,
        Result.FIRST_COMMON,
        _LO,
        _BOTH,
        _SESSION,
        "RFC3720",
        values=("RFC3720", "ResponseFence", "FastAbort"),
        discovery=False,
    ),
    _number("iSCSIProtocolLevel", Result.MINIMUM, 1, (0, 31)),
    _obsolete("IFMarker", Kind.BOOLEAN),
    _obsolete("OFMarker", Kind.BOOLEAN),
    _obsolete("IFMarkInt", Kind.TEXT),
    _obsolete("OFMarkInt", Kind.TEXT),
)

KEYS: dict[str, Key] = {key.name: key for key in _TABLE}
"""Every key of RFC 7143 by name. Names are case-sensitive (RFC 7143 6.1)."""

_YES_NO = {"Yes": True, "No": False}
_DECIMAL = re.compile(r"[0-9]+")
_HEXADECIMAL = re.compile(r"0[xX][0-9A-Fa-f]+")


def check_name(name: str) -> None:
    """Raise FormatError unless ``name`` could be a key name (known or not)."""
    if len(name) > MAX_NAME:
        raise FormatError(f"key name of {len(name)} bytes exceeds {MAX_NAME}: {name[:16]}...")
    if not _KEY_NAME.fullmatch(name) and name != "iSCSIProtocolLevel":
        raise FormatError(f"{name!r} is not a key name: a capital letter, then letters, digits or . - + @ _")


def check_value(name: str, value: str) -> None:
    """Raise FormatError when ``value`` is longer than the key ``name`` allows."""
    key = KEYS.get(name)
    allowed = MAX_VALUE if key is None else key.max_value
    if len(value.encode()) > allowed:
        raise FormatError(f"{name}: value of {len(value.encode())} bytes exceeds {allowed}")


def parse_boolean(value: str) -> bool:
    """'Yes' or 'No', nothing else; FormatError otherwise."""
    try:
        return _YES_NO[value]
    except KeyError:
        raise FormatError(f"{value!r} is neither Yes nor No") from None


def parse_number(value: str, bounds: tuple[int, int] | tuple[()] = ()) -> int:
    """A decimal or hexadecimal constant within ``bounds`` (both included); FormatError otherwise."""
    if _DECIMAL.fullmatch(value):
        number = int(value)
    elif _HEXADECIMAL.fullmatch(value):
        number = int(value, 16)
    else:
        raise FormatError(f"{value!r} is not a decimal or 0x constant")
    if bounds and not bounds[0] <= number <= bounds[1]:
        raise FormatError(f"{number} is outside {bounds[0]}..{bounds[1]}")
    return number


def parse_list(value: str) -> list[str]:
    """The members of a comma-separated list, in the offerer's order of preference. An empty list is a FormatError."""
    members = value.split(",")
    if not all(members):
        raise FormatError(f"{value!r} has an empty member")
    return members


def parse_binary(value: str) -> bytes:
    """A large binary value in hexadecimal ('0x...') or base64 ('0b...') form, at most MAX_BINARY bytes."""
    prefix, digits = value[:2].lower(), value[2:]
    try:
        if prefix == "0x":
            # An odd digit count is a number without its leading zero (RFC 7143 6.1, hex-constant)
            data = bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        elif prefix == "0b":
            data = base64.b64decode(digits, validate=True)
        else:
            raise FormatError(f"binary value begins with {prefix!r}, allowed are 0x and 0b")
    except (ValueError, binascii.Error) as error:
        raise FormatError(f"malformed binary value: {error}") from None
    if not 0 < len(data) <= MAX_BINARY:
        raise FormatError(f"binary value of {len(data)} bytes, allowed are 1..{MAX_BINARY}")
    return data


def format_binary(data: bytes) -> str:
    """The hexadecimal form of a large binary value: every initiator reads it."""
    return "0x" + data.hex()


def format_boolean(value: bool) -> str:
    return "Yes" if value else "No"


def combine(key: Key, offered: str, ours: str | Sequence[str]) -> str:
    """The text form of what the two wishes give by the key's result function.

    ``offered`` is the offerer's value, ``ours`` the acceptor's: a value, or for lists the supported words. FormatError
    when ``offered`` is malformed, out of range, or (lists) has nothing in common: the answer then is Reject.
    """
    if key.result is Result.FIRST_COMMON:
        return _first_common(key, offered, ours)
    assert isinstance(ours, str)
    if key.result is Result.OR:
        return format_boolean(parse_boolean(offered) | parse_boolean(ours))
    if key.result is Result.AND:
        return format_boolean(parse_boolean(offered) & parse_boolean(ours))
    numbers = parse_number(offered, key.range), parse_number(ours, key.range)
    assert key.result in (Result.MINIMUM, Result.MAXIMUM), key.name
    return str(min(numbers) if key.result is Result.MINIMUM else max(numbers))


def _first_common(key: Key, offered: str, supported: Sequence[str]) -> str:
    for member in parse_list(offered):
        if member in supported:
            return member
    raise FormatError(f"{key.name}={offered}: nothing of it is supported, allowed are {','.join(supported)}")
