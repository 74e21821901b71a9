"""A closed-loop load generator: one session, a fixed number of commands in flight, answers counted and thrown away.

Python like the target, so it has a ceiling of its own (about 150,000 small reads a second on one core): every result
carries the generator's share of a core, and a figure speaks of the target only while that stays well under 1.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pdus.iscsi.bhs import BHS_SIZE, Opcode
from pdus.iscsi.command import ScsiCommand
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.framing import padded
from pdus.iscsi.r2t import ReadyToTransfer
from tests.initiator import Initiator

BLOCK = 512
RECEIVE_BUFFER = 4 << 20
CPU_FIELDS = slice(11, 13)
"""utime and stime among the fields of /proc/PID/stat that follow the command's name (proc(5))."""


@dataclass(frozen=True)
class Workload:
    """``size`` bytes per command; ``region`` bytes of the unit that are touched."""

    name: str
    size: int
    write: bool
    sequential: bool
    depth: int
    region: int


@dataclass(frozen=True)
class Figures:
    """Rates per second, latencies in microseconds, CPU as shares of one core."""

    iops: float
    bytes_per_second: float
    p50: float
    p99: float
    p999: float
    errors: int
    target_cpu: float
    generator_cpu: float


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of ``pids`` so far."""

    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(ticks) for ticks in fields[CPU_FIELDS])
    return total / os.sysconf("SC_CLK_TCK")


class Generator:
    """Runs one workload on a session that is logged in."""

    def __init__(self, session: Initiator, workload: Workload) -> None:
        self.session = session
        self.load = workload
        self.sock = session.sock
        self.data = random.Random(1).randbytes(workload.size)
        self.started = [0.0] * (workload.depth + 1)
        self.latencies: list[float] = []
        self.done = self.errors = 0
        self._position = 0
        self._random = random.Random(2)
        self._slots: Iterator[int] | None = None
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._filled = 0
        self._max_segment = int(session.keys.get("MaxRecvDataSegmentLength", 8192))
        first_burst = int(session.keys.get("FirstBurstLength", 65536))
        self._immediate = min(workload.size, first_burst, self._max_segment) if workload.write else 0
        self._template = ScsiCommand(
            read=not workload.write,
            write=workload.write,
            expected_data_transfer_length=workload.size,
            data_segment_length=self._immediate,
        ).encode()
        self._cdb = struct.Struct(">BBQIBB")
        self._numbers = struct.Struct(">IIII")

    def run(self, seconds: float, warm: float) -> float:
        """Load for ``warm`` + ``seconds``; returns the measured time."""
        self.begin()
        self.load_for(warm)
        return self.load_for(seconds)

    def begin(self) -> None:
        """Fill the queue; from now on it stays full."""
        self.sock.settimeout(10)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._issue(list(range(1, self.load.depth + 1)))

    def load_for(self, seconds: float) -> float:
        """Go on for so long; ``done`` and ``latencies`` are of this time alone. Returns the measured time."""
        self.latencies.clear()
        self.done = 0
        begin = time.perf_counter()
        self._until(begin + seconds)
        return time.perf_counter() - begin

    def write_slots(self, slots: Sequence[int]) -> float:
        """One command to each of these places (in units of the workload's size) instead; the seconds it took."""
        self.sock.settimeout(30)
        self._slots = iter(slots)
        began = time.perf_counter()
        sent = min(len(slots), self.load.depth)
        self._issue(list(range(1, sent + 1)))
        answered = 0
        while answered < len(slots):
            free = self._receive()
            answered += len(free)
            free = free[: len(slots) - sent]
            sent += len(free)
            self._issue(free)
        self._slots = None
        return time.perf_counter() - began

    def drain(self) -> None:
        """Wait for what is in flight without starting more."""
        left = self.load.depth
        while left:
            left -= len(self._receive())

    def _until(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            self._issue(self._receive())

    def _issue(self, tags: list[int]) -> None:
        out: list[bytearray | memoryview] = []
        now = time.perf_counter()
        opcode = 0x8A if self.load.write else 0x88
        for tag in tags:
            header = bytearray(self._template)
            self._numbers.pack_into(
                header, 16, tag, self.load.size, self.session.cmd_sn & 0xFFFFFFFF, self.session.exp_stat_sn
            )
            self.session.cmd_sn += 1
            self._cdb.pack_into(header, 32, opcode, 0, self._next_lba(), self.load.size // BLOCK, 0, 0)
            self.started[tag] = now
            out.append(header)
            if self._immediate:
                out.append(memoryview(self.data)[: self._immediate])
        if out:
            self.sock.sendall(b"".join(out))

    def _next_lba(self) -> int:
        if self._slots is not None:
            return next(self._slots) * (self.load.size // BLOCK)
        slots = self.load.region // self.load.size
        if self.load.sequential:
            self._position = (self._position + 1) % slots
            slot = self._position
        else:
            slot = int(self._random.random() * slots)
        return slot * (self.load.size // BLOCK)

    def _receive(self) -> list[int]:
        """Read what is there; returns the tags that were answered."""
        received = self.sock.recv_into(memoryview(self._buffer)[self._filled :])
        if not received:
            raise ConnectionError("the target closed the connection")
        self._filled += received
        answered: list[int] = []
        at = 0
        while self._filled - at >= BHS_SIZE:
            length = BHS_SIZE + padded(int.from_bytes(self._buffer[at + 5 : at + 8], "big"))
            if self._filled - at < length:
                break
            self._take(at, answered)
            at += length
        self._buffer[: self._filled - at] = self._buffer[at : self._filled]
        self._filled -= at
        now = time.perf_counter()
        self.latencies += [now - self.started[tag] for tag in answered]
        self.done += len(answered)
        return answered

    def _take(self, at: int, answered: list[int]) -> None:
        opcode = self._buffer[at] & 0x3F
        if opcode == Opcode.DATA_IN:
            if not self._buffer[at + 1] & 1:
                return
            status = self._buffer[at + 3]
        elif opcode == Opcode.SCSI_RESPONSE:
            status = self._buffer[at + 3]
        elif opcode == Opcode.READY_TO_TRANSFER:
            self._send_data(ReadyToTransfer.decode(self._buffer, at))
            return
        else:
            return
        tag, stat_sn = struct.unpack_from(">I4xI", self._buffer, at + 16)
        self.session.exp_stat_sn = (stat_sn + 1) & 0xFFFFFFFF
        self.errors += status != 0
        answered.append(tag)

    def _send_data(self, r2t: ReadyToTransfer) -> None:
        end = r2t.buffer_offset + r2t.desired_data_transfer_length
        for number, offset in enumerate(range(r2t.buffer_offset, end, self._max_segment)):
            part = memoryview(self.data)[offset : min(end, offset + self._max_segment)]
            header = DataOut(
                final=offset + len(part) == end,
                lun=r2t.lun,
                initiator_task_tag=r2t.initiator_task_tag,
                target_transfer_tag=r2t.target_transfer_tag,
                data_sn=number,
                buffer_offset=offset,
                data_segment_length=len(part),
            )
            self.sock.sendall(b"".join((header.encode(), part)))


def measure(
    address: tuple[str, int], target: str, workload: Workload, pids: list[int], seconds: float, warm: float
) -> Figures:
    """Log in, load, log out."""
    assert DataIn.SIZE == BHS_SIZE
    with Initiator(address, target) as session:
        session.login()
        while session.run(bytes(6)).status:
            pass  # unit attentions of the new session
        generator = Generator(session, workload)
        cpu, own = cpu_seconds(pids), resource.getrusage(resource.RUSAGE_SELF)
        elapsed = generator.run(seconds, warm)
        after = resource.getrusage(resource.RUSAGE_SELF)
        target_cpu = cpu_seconds(pids) - cpu
        done, latencies = generator.done, np.array(generator.latencies) * 1e6
        generator.drain()
    own_cpu = after.ru_utime - own.ru_utime + after.ru_stime - own.ru_stime
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9])
    return Figures(
        done / elapsed,
        done * workload.size / elapsed,
        float(p50),
        float(p99),
        float(p999),
        generator.errors,
        target_cpu / (elapsed + warm),
        own_cpu / (elapsed + warm),
    )
