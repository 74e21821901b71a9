"""What a row of the command table is made of. The rows themselves are in ``commands.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from operator import attrgetter
from typing import Any

from pdus.scsi.cdb import Cdb
from target.scsi import sense
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import Result, check_condition, invalid_field_in_cdb
from target.scsi.task import Finish, Task

# Any: a handler takes its own kind of unit and of CDB; the row that names both is what keeps them together.
Handler = Callable[[Any, Any, Task, Finish], Result | None]
"""``handler(unit, cdb, task, finish)``: the Result, or None and a Completion that calls ``finish`` later."""

_CONTROL_IGNORED = 0x03  # LINK and FLAG are obsolete (SAM-5, CONTROL byte); ignored


class Direction(Enum):
    """Of the data, as the initiator sees it."""

    NONE = "none"
    IN = "in"
    OUT = "out"


class Access(Enum):
    """What the command does to the medium, as reservations and read-only units see it (SPC-4, table of commands
    that are allowed in the presence of various reservations)."""

    ALWAYS = "always"
    CONTROL = "control"
    READ = "read"
    WRITE = "write"


class Flags(Flag):
    NONE = 0
    ANY_LUN = auto()
    """Answered where there is no logical unit, too (SPC-4, commands to incorrect logical units)."""
    PASSES_ATTENTION = auto()
    """Not ended by a unit attention condition (SAM-5, Unit attention conditions)."""


class Zero(Enum):
    """What a length of zero means."""

    NOTHING = "nothing"
    BLOCKS_256 = "256 blocks"
    TO_END = "up to the last block"


@dataclass(frozen=True, slots=True)
class Extent:
    """The blocks that a command touches: from its ``lba``, as many as the field called ``length`` says."""

    length: str
    zero: Zero = Zero.NOTHING
    limit: int | None = None
    """Blocks; None: whatever the field can say."""
    length_of: Callable[[Any], int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length_of", attrgetter(self.length))

    def blocks(self, unit: LogicalUnit, cdb: Any) -> int:
        """How many blocks; zero is resolved, nothing is checked."""
        blocks: int = self.length_of(cdb)
        if blocks or self.zero is Zero.NOTHING:
            return blocks
        return 256 if self.zero is Zero.BLOCKS_256 else max(0, unit.blocks - cdb.lba)

    def check(self, unit: LogicalUnit, cdb: Any) -> Result | int:
        """How many blocks, or the refusal of an extent that leaves the medium or is too long."""
        lba, capacity = cdb.lba, unit.blocks
        blocks: int = self.length_of(cdb) or self.blocks(unit, cdb)
        if lba >= capacity or lba + blocks > capacity:
            return check_condition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
        if self.limit is not None and blocks > self.limit:
            return invalid_field_in_cdb(type(cdb), self.length)
        return blocks


@dataclass(frozen=True, slots=True)
class Row:
    """One command."""

    standard: str
    name: str
    cdb: type[Cdb]
    handler: Handler
    direction: Direction
    access: Access
    extent: Extent | None = None
    data_out: Callable[[Any, int], int | Result] | None = None
    """``data_out(cdb, blocks)``: bytes of Data-Out that the command wants, or its refusal. None: no Data-Out."""
    unsupported: tuple[str, ...] = ()
    """Fields that must be zero because what they ask for is not supported."""
    flags: Flags = Flags.NONE

    writes: bool = field(init=False)
    """Refused where the medium is write protected. SYNCHRONIZE CACHE brings no data, so it has nothing to refuse."""
    opcode: int = field(init=False)
    service_action: int | None = field(init=False)
    size: int = field(init=False)
    """Bytes of the CDB."""
    usage: bytes = field(init=False, repr=False)
    """One bits where the CDB may have one bits."""
    forbidden: int = field(init=False, repr=False)
    """The CDB as one number: bits that must be zero."""
    decode: Callable[[bytes], Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cdb = self.cdb
        usage = int.from_bytes(cdb.usage_mask(), "big")
        for one in cdb.LAYOUT:
            if one.name in self.unsupported:
                usage &= ~(((1 << one.width) - 1) << (cdb.SIZE * 8 - one.bit - one.width))
        everything = (1 << cdb.SIZE * 8) - 1
        derived = {
            "writes": self.access is Access.WRITE and self.direction is Direction.OUT,
            "opcode": cdb.opcode,
            "service_action": getattr(cdb, "service_action", None),
            "size": cdb.SIZE,
            "usage": usage.to_bytes(cdb.SIZE, "big"),
            "forbidden": everything & ~usage & ~_CONTROL_IGNORED,
            "decode": cdb.decode,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def clause(self) -> str:
        """Where the standards describe it."""
        return f"{self.standard}, {self.name} command"

    @property
    def usage_data(self) -> bytes:
        """CDB usage data of REPORT SUPPORTED OPERATION CODES: the mask, but opcode and service action themselves."""
        cdb, usage = self.cdb, int.from_bytes(self.usage, "big")
        for one in cdb.LAYOUT:
            if isinstance(one.const, int):
                shift = cdb.SIZE * 8 - one.bit - one.width
                usage = usage & ~(((1 << one.width) - 1) << shift) | one.const << shift
        return usage.to_bytes(cdb.SIZE, "big")

    def reserved_bit(self, cdb: bytes) -> tuple[int, int]:
        """(byte, bit) to blame for a CDB with a forbidden bit: the field's most significant bit if it has a name."""
        wrong = int.from_bytes(cdb[: self.size], "big") & self.forbidden
        at = self.size * 8 - wrong.bit_length()
        for one in self.cdb.LAYOUT:
            if one.name is not None and one.bit <= at < one.bit + one.width:
                return self.cdb.field_pointer(one.name)
        return at // 8, 7 - at % 8
