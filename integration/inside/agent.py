"""The agent: runs the host's shell lines inside the guest, several at a time, over one virtio-serial port.

It knows nothing of iSCSI. One thread reads frames; each command has two threads that carry its output and one that
waits for it. When the host is gone the port reads as ended, and the init script turns the guest off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import IO

from integration.inside import frames

# A daemon that a command left behind may hold the command's pipes for ever: its output counts no longer than this.
OUTPUT_AFTER_EXIT = 1.0  # seconds


class Agent:
    """All commands of one guest. Invariant: one frame is written at a time, whole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writing = threading.Lock()
        self._commands: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self, complaints: bytes) -> None:
        self._send(frames.READY, 0, complaints)
        for kind, command, payload in frames.frames(lambda n: os.read(self._port, n)):
            if kind == frames.START:
                self._start(command, payload)
            elif kind == frames.STDIN:
                self._feed(command, payload)
            elif kind == frames.KILL:
                self._kill(command, int(payload))

    def _start(self, command: int, line: bytes) -> None:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [b"/bin/sh", b"-c", line], stdin=pipe, stdout=pipe, stderr=pipe, cwd="/root", start_new_session=True
        )
        self._commands[command] = process
        threading.Thread(target=self._wait, args=(command, process), daemon=True).start()

    def _feed(self, command: int, payload: bytes) -> None:
        process = self._commands.get(command)
        if process is None or process.stdin is None or process.stdin.closed:
            return
        try:
            if payload:
                process.stdin.write(payload)
                process.stdin.flush()
            else:
                process.stdin.close()
        except BrokenPipeError:  # it does not read its input: its exit code tells the host
            return

    def _kill(self, command: int, number: int) -> None:
        process = self._commands.get(command)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.Signals(number))

    def _wait(self, command: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        stopped = threading.Event()
        carriers = [
            threading.Thread(target=self._carry, args=(kind, command, stream, stopped), daemon=True)
            for kind, stream in ((frames.STDOUT, process.stdout), (frames.STDERR, process.stderr))
        ]
        for carrier in carriers:
            carrier.start()
        code = process.wait()
        for carrier in carriers:
            carrier.join(OUTPUT_AFTER_EXIT)
        stopped.set()
        del self._commands[command]
        self._send(frames.EXIT, command, str(code).encode())

    def _carry(self, kind: int, command: int, stream: IO[bytes], stopped: threading.Event) -> None:
        while data := os.read(stream.fileno(), frames.PAYLOAD_MAX):
            if stopped.is_set():
                return
            self._send(kind, command, data)

    def _send(self, kind: int, command: int, payload: bytes) -> None:
        data = memoryview(frames.encode(kind, command, payload))
        with self._writing:
            while data:
                data = data[os.write(self._port, data) :]


def find_port() -> int:
    """The descriptor of the port that QEMU calls "agent"."""
    for name in os.listdir("/sys/class/virtio-ports"):
        with open(f"/sys/class/virtio-ports/{name}/name") as file:
            if file.read().strip() == "agent":
                return os.open(f"/dev/{name}", os.O_RDWR)
    raise SystemExit("no virtio-serial port is called agent")


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as found:
        Agent(find_port()).serve(found.read())
