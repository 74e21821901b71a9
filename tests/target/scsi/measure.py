"""What the device server itself costs per 4 KiB command: ``python -m tests.target.scsi.measure``.

The volume answers at once and does nothing, and one task object is used again, so what is measured is ``admit``,
``execute`` and the handler.
"""

from __future__ import annotations

import sys
import timeit
from uuid import uuid4

from blockstore.api import Buffer, Done, Permit
from pdus.scsi import cdb
from target.scsi.device_server import DeviceServer
from target.scsi.nexus import Nexus
from target.scsi.result import Result
from tests.target.scsi.support import FakeTask

ROUNDS = 200_000


class NullVolume:
    """An api.Volume that costs as little as one can."""

    uuid = uuid4()
    size = 1 << 40
    write_through = False

    def read_now(self, offset: int, into: memoryview) -> bool:
        return True

    def read(self, offset: int, into: memoryview, done: Done) -> None:
        done(None)

    def write(self, offset: int, data: Buffer, permit: Permit, done: Done, *, sync: bool = False) -> None:
        done(None)

    def discard(self, offset: int, length: int, permit: Permit, done: Done, *, sync: bool = False) -> None:
        done(None)

    def flush(self, done: Done) -> None:
        done(None)

    def unmapped_run(self, offset: int) -> tuple[bool, int]:
        return False, 1 << 20


class NullTask(FakeTask):
    buffer = memoryview(bytearray(4096))

    def data_in(self, length: int) -> memoryview:
        return self.buffer


def finish(task: object, result: Result) -> None:
    pass


def microseconds(server: DeviceServer, command: cdb.Cdb, data: bytes | None) -> float:
    nexus = Nexus("iqn.host", bytes(6))
    task = NullTask(nexus, command.encode(), data, 0, 1)

    def one() -> None:
        server.admit(task)
        server.execute(task, finish)

    return min(timeit.repeat(one, number=ROUNDS, repeat=5)) / ROUNDS * 1e6


def main() -> None:
    server = DeviceServer()
    server.set_units({0: NullVolume()}, {0: "null"})
    block = bytes(4096)
    for command, data in (
        (cdb.Read10(lba=8, transfer_length=8), None),
        (cdb.Read16(lba=8, transfer_length=8), None),
        (cdb.Write10(lba=8, transfer_length=8), block),
        (cdb.Write16(lba=8, transfer_length=8), block),
    ):
        sys.stdout.write(f"{type(command).__name__:8} {microseconds(server, command, data):5.2f} us\n")


if __name__ == "__main__":
    main()
