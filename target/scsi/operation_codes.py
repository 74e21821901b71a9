"""REPORT SUPPORTED OPERATION CODES: the command table, told to the initiator (SPC-4)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from pdus.scsi import parameters
from pdus.scsi.cdb import ReportSupportedOperationCodes
from target.scsi.result import Result, data_in, invalid_field_in_cdb
from target.scsi.row import Row


class ReportingOptions(IntEnum):
    """SPC-4, REPORTING OPTIONS field."""

    ALL = 0
    OPCODE = 1
    OPCODE_AND_SERVICE_ACTION = 2
    EITHER = 3


def report(cdb: ReportSupportedOperationCodes, table: Sequence[Row]) -> Result:
    if cdb.reporting_options == ReportingOptions.ALL:
        return data_in(_all_commands(table, timeouts=cdb.rctd), cdb.allocation_length)
    if cdb.reporting_options > ReportingOptions.EITHER:
        return invalid_field_in_cdb(ReportSupportedOperationCodes, "reporting_options")
    same_opcode = [row for row in table if row.opcode == cdb.requested_operation_code]
    has_actions = any(row.service_action is not None for row in same_opcode)
    wants_action = cdb.reporting_options == ReportingOptions.OPCODE_AND_SERVICE_ACTION
    # SPC-4: option 1 is an error for an opcode with service actions, option 2 for one without.
    if same_opcode and cdb.reporting_options != ReportingOptions.EITHER and has_actions != wants_action:
        return invalid_field_in_cdb(ReportSupportedOperationCodes, "requested_operation_code")
    action = cdb.requested_service_action
    row = next((row for row in same_opcode if row.service_action == (action if has_actions else None)), None)
    if row is not None and not has_actions and cdb.reporting_options == ReportingOptions.EITHER and action:
        row = None
    return data_in(_one_command(row, timeouts=cdb.rctd), cdb.allocation_length)


# No command's processing time is predicted: both times are zero, which means that.
_TIMEOUTS = parameters.CommandTimeoutsDescriptor().encode()


def _all_commands(table: Sequence[Row], *, timeouts: bool) -> bytes:
    descriptors = b"".join(
        parameters.CommandDescriptor(
            operation_code=row.opcode,
            service_action=row.service_action or 0,
            ctdp=timeouts,
            servactv=row.service_action is not None,
            cdb_length=row.size,
        ).encode()
        + (_TIMEOUTS if timeouts else b"")
        for row in table
    )
    return parameters.AllCommandsHeader(command_data_length=len(descriptors)).encode() + descriptors


def _one_command(row: Row | None, *, timeouts: bool) -> bytes:
    if row is None:
        return parameters.OneCommandHeader(support=parameters.NOT_SUPPORTED).encode()
    header = parameters.OneCommandHeader(ctdp=timeouts, support=parameters.SUPPORTED, cdb_size=row.size)
    return header.encode() + row.usage_data + (_TIMEOUTS if timeouts else b"")
