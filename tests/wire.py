"""A TCP connection that can be cut in each direction: what a partition looks like to both ends.

A forwarder in threads between an initiator and the product. A closed direction delivers nothing, not even the end of
the connection; what was sent meanwhile arrives when it is opened again, as packets do that a network held back.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

PIECE = 1 << 16


class Wire:
    """Listens at ``address``; every connection goes on to ``target``. As a context manager it ends with the block."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.up, self.down = threading.Event(), threading.Event()
        """Whether bytes pass towards the target, and back."""
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.heal()
        self._threads[0].start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def partition(self) -> None:
        self.up.clear()
        self.down.clear()

    def cut_answers(self) -> None:
        """Half open: the target hears the initiator, which hears nothing."""
        self.down.clear()

    def heal(self) -> None:
        self.up.set()
        self.down.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.heal()
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [near, far]
            for source, sink, gate in ((near, far, self.up), (far, near, self.down)):
                thread = threading.Thread(target=_carry, args=(source, sink, gate), daemon=True)
                self._threads.append(thread)
                thread.start()


def _carry(source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
    """Until one side has ended, which the other learns as soon as the gate is open."""
    data = b"."
    while data:
        try:
            data = source.recv(PIECE)
        except OSError:
            data = b""
        gate.wait()
        with suppress(OSError):
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_RDWR)
