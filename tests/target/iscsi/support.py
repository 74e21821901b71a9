"""An initiator without sockets, joined in memory to a ``Connection``; it plays the owner's part as well.

Sends what a test tells it to, right or wrong; reads every answer through the PDU classes and checks their framing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pdus.codec import FixedLayout
from pdus.iscsi.async_message import AsyncMessage
from pdus.iscsi.bhs import BHS_SIZE, RESERVED_TAG, BasicHeader, Opcode
from pdus.iscsi.command import ScsiCommand, ScsiResponse
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import PAD, padded
from pdus.iscsi.login import LoginRequest, LoginResponse, Stage
from pdus.iscsi.logout import LogoutResponse
from pdus.iscsi.nop import NopIn
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import Reject
from pdus.iscsi.task_management import TaskManagementResponse
from pdus.iscsi.text import TextResponse, encode_pairs, parse_pairs
from target.iscsi.connection import Connection
from target.iscsi.events import LoginStarted, SessionRequested
from target.iscsi.login import LoginPolicy
from target.iscsi.session import Task
from target.iscsi.settings import Settings

RESPONSES: dict[int, type[FixedLayout]] = {
    Opcode.NOP_IN: NopIn,
    Opcode.SCSI_RESPONSE: ScsiResponse,
    Opcode.TASK_MANAGEMENT_RESPONSE: TaskManagementResponse,
    Opcode.LOGIN_RESPONSE: LoginResponse,
    Opcode.TEXT_RESPONSE: TextResponse,
    Opcode.DATA_IN: DataIn,
    Opcode.LOGOUT_RESPONSE: LogoutResponse,
    Opcode.READY_TO_TRANSFER: ReadyToTransfer,
    Opcode.ASYNC_MESSAGE: AsyncMessage,
    Opcode.REJECT: Reject,
}

INITIATOR = "iqn.2026-01.org.example:host"
TARGET = "iqn.2026-01.org.example:disk"
NAMES = (("InitiatorName", INITIATOR), ("TargetName", TARGET))
DISCOVERY = (("InitiatorName", INITIATOR), ("SessionType", "Discovery"))
READ = bytes([0x28]) + bytes(15)
WRITE = bytes([0x2A]) + bytes(15)

Pairs = Iterable[tuple[str, str]]


def count_up(n: int) -> bytes:
    """Random bytes that are the same in every run."""
    return bytes(i & 0xFF for i in range(1, n + 1))


class Initiator:
    """Both ends of one connection. ``answers`` holds what was received and not looked at: (PDU, data)."""

    def __init__(self, settings: Settings | None = None, *, cmd_sn: int = 1, stat_sn: int = 1) -> None:
        self.now = 1000.0
        self.connection = Connection(
            settings or Settings(), self.now, random_bytes=count_up, initial_stat_sn=stat_sn, peer="test"
        )
        self.cmd_sn = cmd_sn
        self.itt = 0
        self.header_digest = self.data_digest = False
        self.answers: list[tuple[Any, bytes]] = []
        self._received = bytearray()

    # --- wire --------------------------------------------------------------------------------------------------------

    def encode(self, pdu: FixedLayout, data: bytes = b"", ahs: bytes = b"") -> bytes:
        pdu.data_segment_length = len(data)  # type: ignore[attr-defined]
        pdu.total_ahs_length = len(ahs) // 4  # type: ignore[attr-defined]
        header = pdu.encode() + ahs
        if self.header_digest:
            header += digest(header)
        body = data + PAD[len(data) & 3]
        if self.data_digest and data:
            body += digest(body)
        return header + body

    def send(self, pdu: FixedLayout, data: bytes = b"", ahs: bytes = b"") -> None:
        self.send_raw(self.encode(pdu, data, ahs))

    def send_raw(self, data: bytes) -> None:
        self.connection.receive(data, self.now)
        self.collect()

    def collect(self) -> bytes:
        """Take what the target sent; returns its bytes."""
        taken = bytearray()
        while self.connection.out_bytes:
            buffers = self.connection.outgoing()
            chunk = b"".join(buffers)
            taken += chunk
            self.connection.sent(len(chunk))
        self._received += taken
        while self._take_one():
            pass
        return bytes(taken)

    def _take_one(self) -> bool:
        received = self._received
        if len(received) < BHS_SIZE:
            return False
        basic = BasicHeader.decode(received)
        header = BHS_SIZE + basic.total_ahs_length * 4
        start = header + (4 if self.header_digest else 0)
        length = basic.data_segment_length
        body = start + padded(length)
        total = body + (4 if self.data_digest and length else 0)
        if len(received) < total:
            return False
        if self.header_digest:
            assert digest(received[:header]) == received[header:start]
        if self.data_digest and length:
            assert digest(received[start:body]) == received[body:total]
        assert not any(received[start + length : body]), "padding is not zero"
        self.answers.append((RESPONSES[basic.opcode].decode(received), bytes(received[start : start + length])))
        del received[:total]
        return True

    def answer(self) -> tuple[Any, bytes]:
        assert self.answers, f"no answer; failed={self.connection.failed}"
        return self.answers.pop(0)

    def quiet(self) -> bool:
        """Nothing was answered, nothing happened, and the connection lives."""
        connection = self.connection
        return not self.answers and not connection.events and connection.failed is None

    def event(self) -> Any:
        assert self.connection.events, f"no event; failed={self.connection.failed}, answers={self.answers}"
        return self.connection.events.popleft()

    # --- login -------------------------------------------------------------------------------------------------------

    def login_request(
        self,
        pairs: Pairs = (),
        *,
        stage: int = Stage.OPERATIONAL,
        to: int | None = Stage.FULL_FEATURE,
        continues: bool = False,
        **fields: Any,
    ) -> None:
        values: dict[str, Any] = {"isid": bytes([0x80, 0, 0, 0, 0, 1]), "cmd_sn": self.cmd_sn, "exp_stat_sn": 0}
        values.update(fields)
        request = LoginRequest(
            transit=to is not None, continue_=continues, current_stage=stage, next_stage=to or 0, **values
        )
        self.send(request, encode_pairs(pairs))

    def login_answer(self) -> tuple[LoginResponse, dict[str, str]]:
        pdu, data = self.answer()
        assert isinstance(pdu, LoginResponse)
        return pdu, dict(parse_pairs(data)) if not pdu.continue_ else {}

    def start(self, pairs: Pairs, policy: LoginPolicy | None = None, **request: Any) -> LoginStarted:
        """Send the first request and accept it."""
        self.login_request(pairs, **request)
        event = self.event()
        assert isinstance(event, LoginStarted)
        self.connection.accept_login(policy or LoginPolicy())
        self.collect()
        return event

    def establish(self, tsih: int = 7) -> tuple[LoginResponse, dict[str, str]]:
        event = self.event()
        assert isinstance(event, SessionRequested)
        self.connection.establish(tsih, "nexus")
        self.collect()
        return self.login_answer()

    def log_in(self, *pairs: tuple[str, str], names: Pairs = NAMES) -> dict[str, str]:
        """Straight into full feature phase; returns the target's keys."""
        self.start([*names, *pairs])
        response, keys = self.establish()
        assert response.status == 0
        assert response.transit
        self.header_digest = keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = keys.get("DataDigest") == "CRC32C"
        return keys

    # --- full feature phase ------------------------------------------------------------------------------------------

    def next_itt(self) -> int:
        self.itt += 1
        return self.itt

    def command(self, cdb: bytes, length: int = 0, data: bytes = b"", ahs: bytes = b"", **fields: Any) -> int:
        """Send a SCSI Command with the next numbers; returns its task tag."""
        values: dict[str, Any] = {
            "initiator_task_tag": self.next_itt(),
            "cmd_sn": self.cmd_sn,
            "read": cdb == READ,
            "write": cdb == WRITE,
        }
        values.update(fields)
        if not values.get("immediate") and "cmd_sn" not in fields:
            self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        self.send(ScsiCommand(cdb=cdb, expected_data_transfer_length=length, **values), data, ahs)
        return int(values["initiator_task_tag"])

    def task(self, cdb: bytes, length: int = 0, data: bytes = b"", **fields: Any) -> Task:
        """Send a SCSI Command and take its event."""
        self.command(cdb, length, data, **fields)
        event = self.event()
        assert isinstance(event, Task)
        return event

    def respond(self, task: Task, status: int = 0, sense: bytes = b"", data: bytes | None = None) -> None:
        self.connection.respond(task, status, sense, data)
        self.collect()

    def want(self, task: Task, length: int) -> bool:
        here = self.connection.want_data(task, length)
        self.collect()
        return here

    def data_out(self, itt: int, offset: int, data: bytes, **fields: Any) -> None:
        values: dict[str, Any] = {"target_transfer_tag": RESERVED_TAG, "final": True, "data_sn": 0}
        values.update(fields)
        self.send(DataOut(initiator_task_tag=itt, buffer_offset=offset, **values), data)

    def solicited(self, data: bytes, r2t: ReadyToTransfer, segment: int = 8192, first_data_sn: int = 0) -> None:
        """Answer one R2T with the bytes of ``data`` that it asks for."""
        offset, end = r2t.buffer_offset, r2t.buffer_offset + r2t.desired_data_transfer_length
        data_sn = first_data_sn
        while offset < end:
            part = data[offset : min(offset + segment, end)]
            self.data_out(
                r2t.initiator_task_tag,
                offset,
                part,
                target_transfer_tag=r2t.target_transfer_tag,
                data_sn=data_sn,
                final=offset + len(part) == end,
            )
            offset, data_sn = offset + len(part), data_sn + 1

    def data_in(self) -> tuple[bytes, DataIn | ScsiResponse]:
        """Take Data-In up to the PDU with the status: the data and that PDU."""
        data = bytearray()
        while True:
            pdu, part = self.answer()
            if not isinstance(pdu, DataIn):
                return bytes(data), pdu
            assert pdu.buffer_offset == len(data)
            data += part
            if pdu.has_status:
                return bytes(data), pdu
