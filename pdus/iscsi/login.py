"""Login Request and Login Response (RFC 7143 11.12, 11.13)."""

from __future__ import annotations

from enum import IntEnum

from construct import BitsInteger, BitStruct, Bytes, Flag, Int8ub, Int16ub, Int32ub, Padding, Struct

from pdus.codec import FixedLayout, layout
from pdus.iscsi.bhs import Opcode, request, response, segment_lengths


class Stage(IntEnum):
    """CSG and NSG (RFC 7143 11.12.3)."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class LoginStatus(IntEnum):
    """Status-Class and Status-Detail as one number (RFC 7143 11.13.5)."""

    SUCCESS = 0x0000
    MOVED_TEMPORARILY = 0x0101
    MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


_FLAGS = BitStruct(
    "transit" / Flag,
    "continue_" / Flag,
    Padding(2),
    "current_stage" / BitsInteger(2),
    "next_stage" / BitsInteger(2),
)


@layout(
    Struct(
        request(Opcode.LOGIN_REQUEST),
        _FLAGS,
        "version_max" / Int8ub,
        "version_min" / Int8ub,
        *segment_lengths(),
        "isid" / Bytes(6),
        "tsih" / Int16ub,
        "initiator_task_tag" / Int32ub,
        "cid" / Int16ub,
        Padding(2),
        "cmd_sn" / Int32ub,
        "exp_stat_sn" / Int32ub,
        Padding(16),
    )
)
class LoginRequest(FixedLayout):
    """RFC 7143 11.12."""

    immediate: bool = True
    transit: bool = False
    continue_: bool = False
    current_stage: int = 0
    next_stage: int = 0
    version_max: int = 0
    version_min: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    isid: bytes = bytes(6)
    tsih: int = 0
    initiator_task_tag: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@layout(
    Struct(
        response(Opcode.LOGIN_RESPONSE),
        _FLAGS,
        "version_max" / Int8ub,
        "version_active" / Int8ub,
        *segment_lengths(),
        "isid" / Bytes(6),
        "tsih" / Int16ub,
        "initiator_task_tag" / Int32ub,
        Padding(4),
        "stat_sn" / Int32ub,
        "exp_cmd_sn" / Int32ub,
        "max_cmd_sn" / Int32ub,
        "status" / Int16ub,
        Padding(10),
    )
)
class LoginResponse(FixedLayout):
    """RFC 7143 11.13. ``status`` is a LoginStatus: class in the high byte, detail in the low one."""

    transit: bool = False
    continue_: bool = False
    current_stage: int = 0
    next_stage: int = 0
    version_max: int = 0
    version_active: int = 0
    total_ahs_length: int = 0
    data_segment_length: int = 0
    isid: bytes = bytes(6)
    tsih: int = 0
    initiator_task_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int = LoginStatus.SUCCESS
