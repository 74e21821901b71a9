"""What the device server's tests share: an initiator without a wire, and endings by their names."""

from __future__ import annotations

from typing import Any

from blockstore.api import Buffer, NewVolume, Volume
from blockstore.memory import MemoryPool
from pdus.scsi.cdb import Cdb
from pdus.scsi.sense import FieldPointer, FixedFormat, SenseKey
from target.scsi import sense
from target.scsi.device_server import DeviceServer
from target.scsi.nexus import Nexus
from target.scsi.result import Result, Status
from target.scsi.sense import Condition
from target.scsi.task import TaskAttribute
from tests.blockstore.support import ManualRunner

BLOCK = 512
SIZE = 4 << 20
BLOCKS = SIZE // BLOCK
CONDITIONS = {
    (value.key, value.asc, value.ascq): value for value in vars(sense).values() if isinstance(value, Condition)
}


class FakeTask:
    """What the transport would make of a SCSI Command PDU."""

    def __init__(self, nexus: Nexus, cdb: bytes, data: bytes | None, lun: int, attribute: int) -> None:
        self.nexus = nexus
        self.cdb = cdb.ljust(16, b"\0")
        self.lun = lun
        self.attribute = attribute
        self.data_out: Buffer | None = data
        self.revoked = False
        self.scsi: Any = None
        self.reading = 0

    def data_in(self, length: int) -> memoryview:
        return memoryview(bytearray(length))

    def begin_reading(self, length: int) -> None:
        self.reading += length

    def end_reading(self, length: int) -> None:
        self.reading -= length


class Yard:
    """A device server over a memory pool, with one nexus that has heard of the power on."""

    def __init__(self, *sizes: int, pool_size: int = 1 << 40) -> None:
        self.runner = ManualRunner()
        pool = MemoryPool(self.runner, size=pool_size)
        created = pool.create_group("g", iqn="iqn.g", volumes=[NewVolume(size) for size in sizes])
        self.runner.settle()
        self.group = created.result()
        self.server = DeviceServer()
        self.set_units(self.group.volumes)
        self.nexus = self.log_in("iqn.host", 1)
        self.finished: list[tuple[FakeTask, Result]] = []

    def set_units(self, volumes: dict[int, Volume] | Any) -> bool:
        return self.server.set_units(volumes, {lun: f"vol{lun}" for lun in volumes})

    def log_in(self, name: str, isid: int, *, hear: bool = True) -> Nexus:
        nexus = Nexus(name, isid.to_bytes(6, "big"))
        self.server.add_nexus(nexus)
        if hear:
            for unit in self.server.units.values():
                while unit.attentions.take(nexus):
                    pass
        return nexus

    def task(
        self,
        cdb: Cdb | bytes,
        data: bytes | None = None,
        *,
        lun: int = 0,
        nexus: Nexus | None = None,
        attribute: int = TaskAttribute.SIMPLE,
    ) -> FakeTask:
        raw = cdb if isinstance(cdb, bytes) else cdb.encode()
        return FakeTask(nexus or self.nexus, raw, data, lun, attribute)

    def start(self, task: FakeTask) -> Result | None:
        """Admit and execute, as far as that goes now; what ends later is in ``finished``."""
        admitted = self.server.admit(task)
        if isinstance(admitted, Result):
            return admitted
        return self.execute(task)

    def execute(self, task: FakeTask) -> Result | None:
        return self.server.execute(task, lambda task, result: self.finished.append((task, result)))

    def send(self, cdb: Cdb | bytes, data: bytes | None = None, **kind: Any) -> Result:
        """One command from beginning to end."""
        task = self.task(cdb, data, **kind)
        result = self.start(task)
        if result is not None:
            return result
        self.runner.settle()
        return self.result_of(task)

    def result_of(self, task: FakeTask) -> Result:
        [result] = [result for ended, result in self.finished if ended is task]
        return result


def ending(result: Result) -> Condition | Status:
    """The condition of a CHECK CONDITION, else the status."""
    if result.status != Status.CHECK_CONDITION:
        assert not result.sense
        return Status(result.status)
    found = FixedFormat.decode(result.sense)
    return CONDITIONS[SenseKey(found.sense_key), found.additional_sense_code, found.additional_sense_code_qualifier]


def data(result: Result) -> bytes:
    """Data-In of a GOOD command."""
    assert ending(result) is Status.GOOD
    return bytes(result.data or b"")


def pointed_field(result: Result) -> tuple[int, int]:
    """(byte, bit) that the field pointer names."""
    pointer = FieldPointer.decode(FixedFormat.decode(result.sense).sense_key_specific)
    assert pointer.bpv
    return pointer.byte_pointer, pointer.bit_pointer


def information(result: Result) -> int | None:
    found = FixedFormat.decode(result.sense)
    return found.information if found.valid else None
