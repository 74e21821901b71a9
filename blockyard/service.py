"""What a service manager and a service say to each other: sockets handed over, "ready", "still alive", "stopping".

sd_listen_fds(3) and sd_notify(3). Both protocols are stable by promise and a few lines long (the manual page has a
Python example of the second); the packages that speak them are either bindings that need libsystemd's headers, or as
short as this. Without a service manager everything here does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3  # SD_LISTEN_FDS_START


def take_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that this process was started with. Taken once: children don't see them."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    taken = []
    for number in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(number, False)
        taken.append(socket.socket(fileno=number))
    return taken


class Notifier:
    """Tells the service manager; quietly nobody when there is none."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog: float | None = None
        """Seconds in which a sign of life is wanted; None: never."""
        if limit.isdigit() and int(limit) and pid == str(os.getpid()):
            self.watchdog = int(limit) / 1e6

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ is the abstract namespace's zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(message.encode(), address)
            except OSError:
                # The manager is not there or busy: it will decide by itself what our silence means.
                return
