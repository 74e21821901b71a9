"""One virtual machine with a stock Linux: boot it, run commands in it, take its power away.

Not the initiator's verbs (``initiator.py``), not the image (``image.py``). Everything goes through the agent's port
(``inside/``); the network is left to iSCSI. The guest sees the host's loopback as 10.0.2.2. Its disk is a private
snapshot of the image, forgotten with the power.
"""

from __future__ import annotations

import itertools
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from integration import cpio
from integration.image import Image
from integration.inside import frames

HOST_ADDRESS = "10.0.2.2"  # the host's 127.0.0.1, seen from a guest
SECOND_HOST_ADDRESS = "10.0.3.2"  # the same through the second network card

# Boots faster under TCG than "max", and has what Go's and Python's packages look for.
_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
_KERNEL_LINE = (
    "console=ttyS0 loglevel=6 panic=-1 mitigations=off apparmor=0 audit=0 net.ifnames=0"
    " rcupdate.rcu_expedited=1 tsc=reliable no_timer_check"
)
# One processor: with two, QEMU 7.2's threads now and then keep running code that the guest's kernel has just patched
# (static keys), and both processors spin for ever; seen when dockerd made its first memory cgroup. Scenarios take as
# long with one.
_PROCESSORS = "1"
BOOT_LIMIT = 90.0  # seconds; 6 to 10 on an idle machine with two cores, more when others use them
_INSIDE = Path(__file__).parent / "inside"

Line = str | Sequence[str]
"""A line for the guest's shell, or the words of one command."""


class GuestError(RuntimeError):
    """The guest did not do what was asked."""


class GuestGone(GuestError):
    """The guest has no power (any more)."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left: its output as bytes, its exit code (negative: the signal that ended it)."""

    line: str
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace").strip()

    def __str__(self) -> str:
        output = "\n".join(part.decode(errors="replace").strip() for part in (self.stdout, self.stderr) if part)
        return f"`{self.line}` ended with code {self.code}:\n{output[-4000:]}"


class CommandFailed(GuestError):
    """A command of the guest ended with another code than 0."""

    def __init__(self, guest: str, result: Result) -> None:
        super().__init__(f"guest {guest}: {result}")
        self.result = result


class Command:
    """A command that runs in the guest. Output may be read while it runs."""

    def __init__(self, guest: Guest, number: int, line: str) -> None:
        self._guest = guest
        self._number = number
        self.line = line
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._code: int | None = None
        self._changed = threading.Condition()

    def wait(self, timeout: float = 60.0, *, check: bool = True) -> Result:
        """Its result. After ``timeout`` seconds it is killed, and ``GuestError`` shows its output so far."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._code is not None or self._guest.gone, timeout)
        if self._code is None:
            if self._guest.gone:
                raise GuestGone(f"guest {self._guest.name} lost its power during `{self.line}`")
            assert not ended
            self.kill()
            raise GuestError(
                f"guest {self._guest.name}: `{self.line}` took longer than {timeout} s; its output so far:\n"
                f"{(self._stdout + self._stderr).decode(errors='replace')[-4000:]}"
            )
        result = Result(self.line, self._code, bytes(self._stdout), bytes(self._stderr))
        if check and result.code != 0:
            raise CommandFailed(self._guest.name, result)
        return result

    def wait_for_output(self, wanted: str, timeout: float = 60.0) -> None:
        """Until ``wanted`` stands in its standard output."""
        seen = wanted.encode()
        with self._changed:
            found = self._changed.wait_for(lambda: seen in self._stdout or not self.running, timeout)
            if not found or seen not in self._stdout:
                output = (self._stdout + self._stderr).decode(errors="replace")[-4000:]
                raise GuestError(f"guest {self._guest.name}: `{self.line}` did not print {wanted!r}:\n{output}")

    @property
    def output(self) -> bytes:
        """Its standard output so far."""
        with self._changed:
            return bytes(self._stdout)

    @property
    def running(self) -> bool:
        return self._code is None and not self._guest.gone

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the command and all of its children."""
        self._guest.send(frames.KILL, self._number, str(int(number)).encode())

    def take(self, kind: int, payload: bytes) -> None:
        """A frame of this command (called by the guest's reader)."""
        with self._changed:
            if kind == frames.STDOUT:
                self._stdout += payload
            elif kind == frames.STDERR:
                self._stderr += payload
            else:
                self._code = int(payload)
            self._changed.notify_all()

    def notice_power_loss(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Guest:
    """A machine made of an image. ``power_on`` and ``wait_until_ready`` may be apart, so that several boot at once."""

    def __init__(
        self,
        image: Image,
        name: str,
        initiator: str,
        folder: Path,
        *,
        second_network: bool = False,
        disks: Sequence[Path] = (),
        memory: int = 1536,
    ) -> None:
        """``folder`` keeps the console's log over several boots; ``disks`` appear as /dev/vdb, ..., read-only;
        memory in MiB."""
        self.name = name
        self.initiator = initiator
        self.console_log = folder / f"console-{name}.log"
        self._image = image
        self._folder = folder
        self._second_network = second_network
        self._disks = tuple(disks)
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._sending = threading.Lock()
        self._ready = threading.Event()
        self._complaints = b""
        self._commands: dict[int, Command] = {}
        self._numbers = itertools.count(1)

    # Power

    def power_on(self) -> None:
        """Turn the power on; returns at once."""
        assert self._process is None, f"guest {self.name} is on"
        initramfs = self._folder / f"initramfs-{self.name}.cpio"
        initramfs.write_bytes(self._image.initramfs.read_bytes() + cpio.archive(_inside_files()))
        ours, theirs = socket.socketpair()
        with theirs, self.console_log.open("ab") as log:
            command = self._qemu(initramfs, theirs.fileno())
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
        self._port = ours
        self._ready.clear()
        reader = threading.Thread(target=self._read, args=(ours, self._process), name=f"guest-{self.name}", daemon=True)
        reader.start()

    def wait_until_ready(self) -> None:
        """Until the agent answers; a guest whose set-up complained is refused."""
        if not self._ready.wait(BOOT_LIMIT) or self.gone:
            self.power_off_hard()
            raise GuestError(f"guest {self.name} did not boot; its console:\n{self.console_tail()}")
        if self._complaints:
            complaints = self._complaints.decode(errors="replace")
            raise GuestError(f"guest {self.name} was not set up:\n{complaints}\n{self.console_tail()}")

    def power_off_hard(self) -> None:
        """Take the power away: nothing that only the guest's memory holds survives."""
        if self._process is not None:
            self._process.kill()
            self._forget(self._process)

    def shutdown(self) -> None:
        """Sync and turn off in order."""
        self.start("sync; busybox poweroff -f")
        assert self._process is not None
        try:
            self._process.wait(30)
        finally:
            self.power_off_hard()

    @property
    def on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def gone(self) -> bool:
        return not self.on

    # Commands

    def run(self, line: Line, *, timeout: float = 60.0, check: bool = True, stdin: bytes = b"") -> Result:
        """Run it and wait. Unless ``check`` is off, another exit code than 0 raises ``CommandFailed``."""
        return self.start(line, stdin=stdin).wait(timeout, check=check)

    def start(self, line: Line, *, stdin: bytes = b"") -> Command:
        """Run it in the background."""
        words = line if isinstance(line, str) else shlex.join(line)
        number = next(self._numbers)
        command = self._commands[number] = Command(self, number, words)
        self.send(frames.START, number, words.encode())
        for start in range(0, len(stdin), frames.PAYLOAD_MAX):
            self.send(frames.STDIN, number, stdin[start : start + frames.PAYLOAD_MAX])
        self.send(frames.STDIN, number)
        return command

    def end_commands(self) -> None:
        """Kill what still runs in the background."""
        for command in list(self._commands.values()):
            command.kill()
            command.wait(10, check=False)

    def put(self, path: str, contents: bytes | str) -> None:
        """Write a file in the guest."""
        data = contents.encode() if isinstance(contents, str) else contents
        self.run(f"cat >{shlex.quote(path)}", stdin=data)

    def push(self, source: Path, folder: str) -> None:
        """Copy a file or a tree of the host into a folder of the guest."""
        command = ["tar", "-C", str(source.parent), "-cf", "-", source.name]
        packed = subprocess.run(command, check=True, capture_output=True).stdout
        self.run(f"mkdir -p {shlex.quote(folder)} && tar -C {shlex.quote(folder)} -xf -", stdin=packed)

    def fetch(self, path: str) -> bytes:
        """The contents of a file in the guest."""
        return self.run(["cat", path]).stdout

    def kmsg(self) -> str:
        """The kernel's messages since boot (or since ``forget_kmsg``)."""
        return self.run("dmesg").text

    def forget_kmsg(self) -> None:
        self.run("dmesg --clear")

    def console_tail(self, length: int = 6000) -> str:
        """The end of what the console showed, over all boots of this guest."""
        if not self.console_log.exists():
            return ""
        return self.console_log.read_bytes()[-length:].decode(errors="replace")

    # The port

    def send(self, kind: int, command: int, payload: bytes = b"") -> None:
        """One frame to the agent."""
        if self._port is None:
            raise GuestGone(f"guest {self.name} is off")
        try:
            with self._sending:
                self._port.sendall(frames.encode(kind, command, payload))
        except OSError as error:
            raise GuestGone(f"guest {self.name} lost its power: {error}") from error

    def _read(self, port: socket.socket, process: subprocess.Popen[bytes]) -> None:
        for kind, number, payload in frames.frames(lambda n: _receive(port, n)):
            if kind == frames.READY:
                self._complaints = payload
                self._ready.set()
            elif number in self._commands:
                self._commands[number].take(kind, payload)
                if kind == frames.EXIT:
                    del self._commands[number]
        # QEMU closes its end as it dies; its exit code follows within moments.
        process.wait()
        self._ready.set()
        for command in list(self._commands.values()):
            command.notice_power_loss()

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        assert self._port is not None
        self._port.close()
        self._port = None
        self._process = None
        self._commands.clear()

    def _qemu(self, initramfs: Path, port: int) -> list[str]:
        kernel_line = f"{_KERNEL_LINE} harness.name={self.name} harness.initiator={self.initiator}"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-accel", "tcg,thread=multi", "-cpu", _CPU, "-smp", _PROCESSORS, "-m", str(self._memory)]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(initramfs), "-append", kernel_line]
        command += ["-chardev", f"file,id=console,path={self.console_log},append=on", "-serial", "chardev:console"]
        command += ["-drive", f"file={self._image.root_disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
        for disk in self._disks:
            command += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]  # several guests may share it
        command += ["-netdev", "user,id=n0,net=10.0.2.0/24,ipv6=off", "-device", "virtio-net-pci,netdev=n0,romfile="]
        if self._second_network:
            command += [
                "-netdev",
                "user,id=n1,net=10.0.3.0/24,ipv6=off",
                "-device",
                "virtio-net-pci,netdev=n1,romfile=",
            ]
        command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        command += ["-chardev", f"socket,id=agent,fd={port}", "-device", "virtserialport,chardev=agent,name=agent"]
        return command


def _receive(port: socket.socket, length: int) -> bytes:
    try:
        return port.recv(length)
    except OSError:  # closed by the host, or reset by a killed QEMU
        return b""


def _inside_files() -> Mapping[str, bytes]:
    return {
        f"harness/integration/inside/{path.name}": path.read_bytes()
        for path in sorted(_INSIDE.iterdir())
        if path.is_file()
    }
