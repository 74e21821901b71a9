"""The SCSI conditions that the iSCSI layer itself reports (RFC 7143 11.4.7.2), as fixed format sense data.

Only these four lines: sense in general is the device server's, which this layer does not know.
"""

from __future__ import annotations

CHECK_CONDITION = 0x02
TASK_SET_FULL = 0x28

_ABORTED_COMMAND = 0x0B
_ADDITIONAL_LENGTH = 10  # bytes that follow byte 7 (SPC-4, fixed format sense data: 18 bytes in all)


def _aborted(asc: int, ascq: int) -> bytes:
    current_error = bytes([0x70, 0, _ABORTED_COMMAND])
    information = bytes(4)
    command_specific = bytes(4)
    unit_and_key_specific = bytes(4)
    return (
        current_error
        + information
        + bytes([_ADDITIONAL_LENGTH])
        + command_specific
        + bytes([asc, ascq])
        + unit_and_key_specific
    )


UNEXPECTED_UNSOLICITED_DATA = _aborted(0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = _aborted(0x0C, 0x0D)
PROTOCOL_SERVICE_CRC_ERROR = _aborted(0x47, 0x05)
