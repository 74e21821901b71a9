"""The border between the store and SCSI: every error of ``blockstore.api`` and the answer that it provokes."""

from __future__ import annotations

from blockstore import api
from target.scsi import sense
from target.scsi.result import BUSY, UNANSWERED, Result, check_condition

_TABLE: dict[type[api.StoreError], Result] = {
    api.OutOfRange: check_condition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE),
    # Linux turns DATA PROTECT 27/07 into "no space" at once instead of retrying (scsi_error.c).
    api.OutOfSpace: check_condition(sense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
    api.Busy: BUSY,
    api.FailStopped: check_condition(sense.WRITE_ERROR),
    # Retried by initiators, until the target logs them out or comes back.
    api.Closed: check_condition(sense.LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY),
    # The volume was removed under a running command.
    api.NotFound: check_condition(sense.LOGICAL_UNIT_NOT_SUPPORTED),
    api.Undecided: UNANSWERED,
    api.Revoked: UNANSWERED,
}
_OTHERWISE = check_condition(sense.INTERNAL_TARGET_FAILURE)


def translate(error: api.StoreError) -> Result:
    """The answer to a command that the store refused."""
    if isinstance(error, api.MediumError):
        lba = error.offset // api.LOGICAL_BLOCK
        return check_condition(sense.UNRECOVERED_READ_ERROR, information=lba)
    return _TABLE.get(type(error), _OTHERWISE)
