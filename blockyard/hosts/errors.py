"""What can go wrong on a host, named by what the receiver does about it.

Not the product's errors (``blockyard.errors``): these never cross the API. Messages are one line for people.
"""

from __future__ import annotations


class HostError(Exception):
    """Anything that this host could not do."""


class CommandMissing(HostError):
    """A program is not installed: install it."""


class CommandTimeout(HostError):
    """A program did not end in time and was killed; what it has done is unknown."""


class CommandFailed(HostError):
    """A program ended with another code than 0."""

    def __init__(self, words: tuple[str, ...], code: int, output: str) -> None:
        super().__init__(f"`{' '.join(words)}` ended with code {code}: {_short(output)}")
        self.code = code


class LoginRefused(HostError):
    """The target does not let this host in: its attachment is gone, or its secret is another one. Attach again."""


class TargetUnreachable(HostError):
    """No target answers at any of the portals, or not in time. Try again."""


class DiskMissing(HostError):
    """The session is there, its disk is not."""


class WrongDisk(HostError):
    """A disk is not the volume that it should be. Nothing was written to it."""


class DiskUnreadable(HostError):
    """What a disk holds cannot be known. Nothing was written to it."""


class NotBlank(HostError):
    """A disk holds something that is no file system of the wanted kind. Nothing was written to it."""


class CannotMount(HostError):
    """The file system is not mountable."""


class StillMounted(HostError):
    """The file system is in use on this host, so it stays mounted."""


def _short(output: str) -> str:
    """The end of what a program said, on one line."""
    return " / ".join(output.split("\n"))[-500:] or "it said nothing"
