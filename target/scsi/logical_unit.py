"""Logical units: the object that a LUN addresses, and what answers where there is none.

A unit owns its task set and its unit attentions; blocks belong to its volume, capacity included.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockstore.api import LOGICAL_BLOCK, Volume
from pdus.scsi.inquiry import PeripheralDeviceType, PeripheralQualifier
from target.scsi.task_set import TaskSet
from target.scsi.unit_attention import UnitAttentions


class Unit:
    """What every LUN answers with. ``siblings`` are the logical units of the same target, by LUN."""

    __slots__ = ("attentions", "lun", "siblings", "task_set")
    peripheral_qualifier = PeripheralQualifier.CONNECTED
    peripheral_device_type = PeripheralDeviceType.DIRECT_ACCESS_BLOCK_DEVICE

    def __init__(self, lun: int, siblings: Mapping[int, LogicalUnit]) -> None:
        self.lun = lun
        self.siblings = siblings
        self.task_set = TaskSet()
        self.attentions = UnitAttentions()


class LogicalUnit(Unit):
    """One volume behind a LUN."""

    __slots__ = ("name", "volume")

    def __init__(self, lun: int, siblings: Mapping[int, LogicalUnit], volume: Volume, name: str) -> None:
        super().__init__(lun, siblings)
        self.volume = volume
        self.name = name

    @property
    def blocks(self) -> int:
        """Capacity in logical blocks."""
        return self.volume.size // LOGICAL_BLOCK


class AbsentUnit(Unit):
    """Where no volume is. LUN 0 says "not connected", since a device server always answers there (SPC-4, PERIPHERAL
    QUALIFIER field; Linux scans on from such a LUN); any other LUN says "not supported"."""

    __slots__ = ("peripheral_qualifier",)
    peripheral_device_type = PeripheralDeviceType.UNKNOWN

    def __init__(self, lun: int, siblings: Mapping[int, LogicalUnit]) -> None:
        super().__init__(lun, siblings)
        self.peripheral_qualifier = PeripheralQualifier.NOT_CONNECTED if lun == 0 else PeripheralQualifier.NOT_SUPPORTED
