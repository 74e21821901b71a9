"""Micro-benchmark of the hot path: ``python -m tests.target.iscsi.bench_engine``. Prints microseconds a command.

Measures the engine alone: no socket, no SCSI, no store. The answers are taken and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pdus.iscsi.command import ScsiCommand
from tests.target.iscsi.support import READ, WRITE, Initiator

BATCH = 32
ROUNDS = 2000


def measure(name: str, write: bool, length: int, digests: bool = False) -> None:
    initiator = Initiator()
    digest = "CRC32C" if digests else "None"
    initiator.log_in(
        ("HeaderDigest", digest),
        ("DataDigest", digest),
        ("InitialR2T", "No"),
        ("FirstBurstLength", "262144"),
        ("MaxRecvDataSegmentLength", "262144"),
    )
    data = bytes(length)
    connection = initiator.connection
    batches = []
    for number in range(ROUNDS):
        batch = bytearray()
        for tag in range(BATCH):
            command = ScsiCommand(
                read=not write,
                write=write,
                initiator_task_tag=tag,
                expected_data_transfer_length=length,
                cmd_sn=1 + number * BATCH + tag,
                cdb=WRITE if write else READ,
            )
            batch += initiator.encode(command, data if write else b"")
        batches.append(bytes(batch))
    spent = {"receive": 0.0, "answer": 0.0, "send": 0.0}
    clock: Callable[[], float] = time.perf_counter
    for stream in batches:
        rest = memoryview(stream)
        while rest:
            space = connection.get_buffer()
            part = min(len(space), len(rest))
            space[:part] = rest[:part]
            rest = rest[part:]
            start = clock()
            connection.buffer_updated(part, 0.0)
            middle = clock()
            events = connection.events
            while events:
                task = events.popleft()
                if write:
                    connection.want_data(task, length)  # type: ignore[arg-type]
                    connection.respond(task, 0)  # type: ignore[arg-type]
                else:
                    connection.respond(task, 0, b"", task.data_in(length))  # type: ignore[union-attr,arg-type]
            end = clock()
            connection.sent(sum(map(len, connection.outgoing())))
            spent["receive"] += middle - start
            spent["answer"] += end - middle
            spent["send"] += clock() - end
    count = ROUNDS * BATCH
    parts = ", ".join(f"{part} {seconds / count * 1e6:.2f}" for part, seconds in spent.items())
    print(f"{name:28} {sum(spent.values()) / count * 1e6:6.2f} us a command ({parts})")


if __name__ == "__main__":
    measure("read 4 KiB", False, 4096)
    measure("write 4 KiB", True, 4096)
    ROUNDS = 100
    measure("read 4 KiB, digests", False, 4096, digests=True)
    measure("write 4 KiB, digests", True, 4096, digests=True)
    measure("read 64 KiB", False, 65536)
    measure("write 64 KiB", True, 65536)
