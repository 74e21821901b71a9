"""The only door to the machine: commands with a time limit, the kernel's files, the clock.

Not what is done with them. Everything else in ``hosts`` and ``docker`` takes a ``Host``, so that it can be run against
a simulated kernel. Invariant: nothing here waits longer than it was told, even for a process that the kernel does not
let die.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from blockyard.hosts.errors import CommandFailed, CommandMissing, CommandTimeout

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DYING_SECONDS = 2.0  # for a killed process to end; one that waits for a dead disk does not, and is left to the kernel


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended by itself."""

    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    def check(self) -> Done:
        """Raises CommandFailed unless it ended with code 0."""
        if self.code != 0:
            raise CommandFailed(self.words, self.code, (self.stderr or self.stdout).strip())
        return self


class Host(Protocol):
    """A machine. Paths are absolute; times are seconds since it was booted, sleep included."""

    def run(self, words: Sequence[str], seconds: float) -> Done:
        """Raises CommandMissing, CommandTimeout."""
        ...

    def read(self, path: str, length: int | None = None) -> bytes:
        """A file's (first) bytes. Raises OSError."""
        ...

    def write(self, path: str, text: str) -> None:
        """Into a file of the kernel. Raises OSError."""
        ...

    def replace(self, path: str, content: bytes, *, by_way_of: str | None = None) -> None:
        """A file's whole content at once, durably, readable by root alone; its folder is made. Raises OSError.

        ``by_way_of``: the name under which it is written first, on the same file system; a kill may leave that."""
        ...

    def touch(self, path: str) -> None:
        """An empty file, unless something is there. Raises OSError."""
        ...

    def make_folder(self, path: str) -> None: ...

    def remove(self, path: str) -> None:
        """A file or an empty folder; nothing happens when it is not there. Raises OSError when it is not empty."""
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing when there is no such folder."""
        ...

    def link(self, path: str) -> str | None:
        """Where a symbolic link leads, as it is written; None when it is not there."""
        ...

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class LinuxHost:
    """The machine that this process runs on."""

    def run(self, words: Sequence[str], seconds: float) -> Done:
        # Files, not pipes: a daemon that a command starts (iscsid) may keep a pipe open for ever.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    list(words), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                    env={"PATH": _PATH, "LC_ALL": "C"}, cwd="/",
                )  # fmt: skip
            except FileNotFoundError:
                raise CommandMissing(f"{words[0]} is not installed on this host") from None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise CommandTimeout(f"`{' '.join(words)}` did not end within {seconds:.0f} s: killed") from None
            return Done(tuple(words), code, _text(out), _text(err))

    def read(self, path: str, length: int | None = None) -> bytes:
        with open(path, "rb") as file:
            return file.read() if length is None else file.read(length)

    def write(self, path: str, text: str) -> None:
        # One write(2) without O_TRUNC and O_CREAT: that is what files of the kernel understand.
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def replace(self, path: str, content: bytes, *, by_way_of: str | None = None) -> None:
        folder, temporary = os.path.dirname(path), by_way_of or f"{path}.new"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _sync_folder(folder)

    def touch(self, path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

    def make_folder(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return []

    def link(self, path: str) -> str | None:
        try:
            return os.readlink(path)
        except OSError:  # gone, or of a process that has just ended
            return None

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Deadline:
    """A budget of time for something that takes several steps."""

    def __init__(self, host: Host, seconds: float) -> None:
        self._host = host
        self._end = host.now() + seconds

    def left(self, most: float = math.inf) -> float:
        """Seconds that a step may take, ``most`` of them. Never less than 1: an answer that comes a moment late is
        better than a command that is killed before it could begin."""
        return min(most, max(1.0, self._end - self._host.now()))

    @property
    def over(self) -> bool:
        return self._host.now() >= self._end


def read_text(host: Host, path: str) -> str | None:
    """A small file of the kernel without its newline; None when it is not there (any more)."""
    try:
        return host.read(path).decode(errors="replace").strip()
    except OSError:  # gone between listing and reading, or an attribute that this device does not have
        return None


def boot_id(host: Host) -> str:
    """Another one after each boot."""
    return host.read("/proc/sys/kernel/random/boot_id").decode().strip()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DYING_SECONDS)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
