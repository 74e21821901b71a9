"""What goes wrong in the protocol, named by the answer that it provokes.

``LoginRefused`` and its kinds end a login with a status (RFC 7143 11.13.5); ``ConnectionFailed`` drops the connection
without a word, because nothing that could be sent would be trusted. Errors that a full-feature PDU provokes (Reject,
CHECK CONDITION) are ordinary answers and no exceptions. None of these leaves ``Connection.buffer_updated``.
"""

from __future__ import annotations


class LoginRefused(Exception):
    """Ends the login. ``status`` is class and detail as one number, e.g. 0x0201."""

    status = 0x0200

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        if status is not None:
            self.status = status


class InitiatorError(LoginRefused):
    """02/00: the initiator broke the protocol."""

    status = 0x0200


class AuthenticationFailed(LoginRefused):
    """02/01: not who it says it is, or no acceptable way to prove it."""

    status = 0x0201


class UnsupportedVersion(LoginRefused):
    """02/05: no protocol version in common."""

    status = 0x0205


class MissingParameter(LoginRefused):
    """02/07: InitiatorName or TargetName is missing."""

    status = 0x0207


class ConnectionFailed(Exception):
    """Drops the connection; the message is the reason for the log."""
