"""THE TABLE: every command that the device server knows, one row each.

The device server's checks, REPORT SUPPORTED OPERATION CODES, statistics and tests read the same rows. A new command is
a declaration in ``pdus/scsi/cdb.py``, a row here and a handler.

Invariant: (opcode, service action) is unique, and an opcode has service actions in all of its rows or in none.
"""

from __future__ import annotations

from pdus.scsi import cdb as cdbs
from target.scsi import lba_status, mode, operation_codes, sbc, spc
from target.scsi import unmap as unmap_command
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import Result
from target.scsi.row import Access, Direction, Flags, Row
from target.scsi.task import Finish, Task

NONE, IN, OUT = Direction.NONE, Direction.IN, Direction.OUT
ALWAYS, CONTROL, READ, WRITE = Access.ALWAYS, Access.CONTROL, Access.READ, Access.WRITE
_EVERYWHERE = Flags.ANY_LUN | Flags.PASSES_ATTENTION

# Protection information is not supported (PROTECT=0), nor are anchored blocks (ANC_SUP=0), nor power conditions.
_RDPROTECT, _WRPROTECT, _VRPROTECT = ("rdprotect",), ("wrprotect",), ("vrprotect",)
_SAME = ("wrprotect", "anchor")
_POWER = ("power_condition", "power_condition_modifier", "loej")


def _report_opcodes(unit: LogicalUnit, cdb: cdbs.ReportSupportedOperationCodes, task: Task, finish: Finish) -> Result:
    return operation_codes.report(cdb, TABLE)


# fmt: off
TABLE: tuple[Row, ...] = (
    Row("SPC-4", "TEST UNIT READY", cdbs.TestUnitReady, spc.test_unit_ready, NONE, ALWAYS),
    Row("SPC-4", "REQUEST SENSE", cdbs.RequestSense, spc.request_sense, IN, ALWAYS, flags=_EVERYWHERE),
    Row("SBC-3", "READ (6)", cdbs.Read6, sbc.read_6, IN, READ, sbc.TRANSFER_6),
    Row("SBC-3", "WRITE (6)", cdbs.Write6, sbc.write_6, OUT, WRITE, sbc.TRANSFER_6, sbc.all_blocks),
    Row("SPC-4", "INQUIRY", cdbs.Inquiry, spc.inquiry, IN, ALWAYS, flags=_EVERYWHERE),
    Row("SPC-4", "MODE SENSE(6)", cdbs.ModeSense6, mode.mode_sense_6, IN, CONTROL),
    Row("SBC-3", "START STOP UNIT", cdbs.StartStopUnit, sbc.start_stop_unit, NONE, CONTROL, unsupported=_POWER),
    Row("SBC-3", "READ CAPACITY (10)", cdbs.ReadCapacity10, sbc.read_capacity_10, IN, ALWAYS),
    Row("SBC-3", "READ (10)", cdbs.Read10, sbc.read, IN, READ, sbc.TRANSFER, unsupported=_RDPROTECT),
    Row("SBC-3", "WRITE (10)", cdbs.Write10, sbc.write, OUT, WRITE, sbc.TRANSFER, sbc.all_blocks, _WRPROTECT),
    Row("SBC-3", "VERIFY (10)", cdbs.Verify10, sbc.verify, OUT, READ, sbc.VERIFICATION, sbc.compared_data, _VRPROTECT),
    Row("SBC-3", "SYNCHRONIZE CACHE (10)", cdbs.SynchronizeCache10, sbc.synchronize_cache, NONE, WRITE, sbc.CACHED),
    Row("SBC-3", "WRITE SAME (10)", cdbs.WriteSame10, sbc.write_same, OUT, WRITE, sbc.SAME, sbc.one_block, _SAME),
    Row("SBC-3", "UNMAP", cdbs.Unmap, unmap_command.unmap, OUT, WRITE, None, unmap_command.parameter_list, ("anchor",)),
    Row("SPC-4", "MODE SENSE(10)", cdbs.ModeSense10, mode.mode_sense_10, IN, CONTROL),
    Row("SBC-3", "READ (16)", cdbs.Read16, sbc.read, IN, READ, sbc.TRANSFER, unsupported=_RDPROTECT),
    Row("SBC-3", "WRITE (16)", cdbs.Write16, sbc.write, OUT, WRITE, sbc.TRANSFER, sbc.all_blocks, _WRPROTECT),
    Row("SBC-3", "VERIFY (16)", cdbs.Verify16, sbc.verify, OUT, READ, sbc.VERIFICATION, sbc.compared_data, _VRPROTECT),
    Row("SBC-3", "SYNCHRONIZE CACHE (16)", cdbs.SynchronizeCache16, sbc.synchronize_cache, NONE, WRITE, sbc.CACHED),
    Row("SBC-3", "WRITE SAME (16)", cdbs.WriteSame16, sbc.write_same, OUT, WRITE, sbc.SAME, sbc.one_block, _SAME),
    Row("SBC-3", "READ CAPACITY (16)", cdbs.ReadCapacity16, sbc.read_capacity_16, IN, ALWAYS),
    Row("SBC-3", "GET LBA STATUS", cdbs.GetLbaStatus, lba_status.get_lba_status, IN, READ),
    Row("SPC-4", "REPORT LUNS", cdbs.ReportLuns, spc.report_luns, IN, ALWAYS, flags=_EVERYWHERE),
    Row("SPC-4", "REPORT SUPPORTED OPERATION CODES",
        cdbs.ReportSupportedOperationCodes, _report_opcodes, IN, ALWAYS),
    Row("SBC-3", "READ (12)", cdbs.Read12, sbc.read, IN, READ, sbc.TRANSFER, unsupported=_RDPROTECT),
    Row("SBC-3", "WRITE (12)", cdbs.Write12, sbc.write, OUT, WRITE, sbc.TRANSFER, sbc.all_blocks, _WRPROTECT),
    Row("SBC-3", "VERIFY (12)", cdbs.Verify12, sbc.verify, OUT, READ, sbc.VERIFICATION, sbc.compared_data, _VRPROTECT),
)
# fmt: on

_SERVICE_ACTION_BITS = 0x1F  # of byte 1 (SPC-4, SERVICE ACTION field)

BY_OPCODE: list[Row | None] = [None] * 256
"""Rows of the opcodes that have no service actions."""
BY_SERVICE_ACTION: dict[tuple[int, int], Row] = {}
OPCODES_WITH_SERVICE_ACTIONS: frozenset[int] = frozenset(row.opcode for row in TABLE if row.service_action is not None)

for _row in TABLE:
    if _row.service_action is None:
        BY_OPCODE[_row.opcode] = _row
    else:
        BY_SERVICE_ACTION[_row.opcode, _row.service_action] = _row


def find_by_service_action(cdb: bytes) -> Row | None:
    """The row of a CDB whose opcode has service actions."""
    return BY_SERVICE_ACTION.get((cdb[0], cdb[1] & _SERVICE_ACTION_BITS))
