"""The product's errors, named by what the receiver does about them, and the one table of their answers.

Not the store's errors (``blockyard.worker.records`` translates those). Invariant: every error class has a row in
``ANSWERS``, so that REST, command line and RPC say the same thing about the same event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Detail = str | int | float | bool | None


class ProductError(Exception):
    """Any refusal of the product; the message is one line for people: what was seen, what is allowed. ``details`` say
    the same to programs; they travel with the error."""

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        self.details = details

    @property
    def answer(self) -> Answer:
        return ANSWERS[type(self)]


class Invalid(ProductError):
    """An argument is outside what is allowed."""


class NotFound(ProductError):
    """Nothing has that name."""


class AlreadyExists(ProductError):
    """The name is taken by something with other properties."""


class InUse(ProductError):
    """Refused because something depends on it: end that first, or force."""


class OutOfSpace(ProductError):
    """The pool has no room left: free some first."""


class Busy(ProductError):
    """Not now, but soon: try again."""


class Unavailable(ProductError):
    """The pool that owns it is not served at the moment; what happened to the request is known when it is back."""


class Locked(ProductError):
    """Another process holds the store or the pool."""


class FailStopped(ProductError):
    """The pool takes no more writes until its worker is restarted."""


class Damaged(ProductError):
    """Stored bytes contradict each other: restore from elsewhere."""


class Unreachable(ProductError):
    """No daemon answers at the API address."""


class Unauthenticated(ProductError):
    """The caller has not said who it is, or not proved it: give a good token."""


class Forbidden(ProductError):
    """The caller may not do that: ask somebody who may."""


class TooManyRequests(ProductError):
    """Too many wrong tokens came from the caller's address: wait."""


class Internal(ProductError):
    """A defect of ours; the log has the details."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the outside sees of one error class."""

    code: str
    http_status: int
    exit_code: int


EXIT_FINDINGS = 1
"""``check`` found damage; kept apart from every error."""

ANSWERS: dict[type[ProductError], Answer] = {
    Invalid: Answer("invalid", 400, 2),  # 2 is also the exit code of wrong options
    Unreachable: Answer("unreachable", 502, 3),
    NotFound: Answer("not_found", 404, 4),
    AlreadyExists: Answer("already_exists", 409, 5),
    InUse: Answer("in_use", 409, 6),
    OutOfSpace: Answer("out_of_space", 507, 7),
    Unavailable: Answer("unavailable", 503, 8),
    Busy: Answer("busy", 503, 9),
    Locked: Answer("locked", 423, 10),
    FailStopped: Answer("fail_stopped", 500, 11),
    Damaged: Answer("damaged", 500, 12),
    Unauthenticated: Answer("unauthenticated", 401, 13),
    Forbidden: Answer("forbidden", 403, 14),
    TooManyRequests: Answer("too_many_requests", 429, 15),
    Internal: Answer("internal", 500, 70),  # 70 is EX_SOFTWARE of sysexits.h
}

BY_CODE: dict[str, type[ProductError]] = {answer.code: error for error, answer in ANSWERS.items()}


def error_from(code: str, message: str, details: Mapping[str, Detail] | None = None) -> ProductError:
    """The error that was sent as ``code``; an unknown code (a newer peer) is an internal one."""
    return BY_CODE.get(code, Internal)(message, **(details or {}))


def explain(errors: Iterable[Mapping[str, Any]]) -> str:
    """One line for what pydantic found (``ValidationError.errors()``). The input is left out: it may be a secret."""
    return "; ".join(_explain_one(error) for error in errors)


def _explain_one(detail: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"] if part != "body")
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
