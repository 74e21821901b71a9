"""An iSCSI initiator for tests: blocking sockets, pipelined commands, every byte visible. Not for users.

It trusts the target in nothing that a test may want to see, and follows the rules itself unless told otherwise
(``send`` takes any PDU). One connection a session, ErrorRecoveryLevel 0.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pdus.codec import FixedLayout
from pdus.iscsi.async_message import AsyncMessage
from pdus.iscsi.bhs import BHS_SIZE, RESERVED_TAG, BasicHeader, Opcode
from pdus.iscsi.command import ScsiCommand, ScsiResponse
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import PAD, padded
from pdus.iscsi.login import LoginRequest, LoginResponse, Stage
from pdus.iscsi.logout import LogoutRequest, LogoutResponse
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import Reject
from pdus.iscsi.task_management import TaskManagementRequest, TaskManagementResponse
from pdus.iscsi.text import TextRequest, TextResponse, encode_pairs, parse_pairs

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


class Disconnected(Exception):
    """The target closed the connection."""


class LoginRefused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"login status {status:#06x}")
        self.status = status


@dataclass
class Command:
    """One SCSI command on its way. ``status`` is None until it is answered."""

    tag: int
    cdb: bytes
    data_out: bytes | memoryview
    data_in: bytearray
    status: int | None = None
    sense: bytes = b""
    overflow: int = 0
    underflow: int = 0


@dataclass
class Offer:
    """What the initiator offers and declares at login."""

    keys: dict[str, str] = field(
        default_factory=lambda: {
            "HeaderDigest": "None",
            "DataDigest": "None",
            "InitialR2T": "No",
            "ImmediateData": "Yes",
            "MaxBurstLength": "1048576",
            "FirstBurstLength": "262144",
            "MaxOutstandingR2T": "1",
            "MaxConnections": "1",
            "MaxRecvDataSegmentLength": "262144",
            "ErrorRecoveryLevel": "0",
        }
    )


class Initiator:
    """One session. Use as a context manager, or ``close`` it."""

    def __init__(
        self,
        address: tuple[str, int],
        target: str | None,
        *,
        name: str = "iqn.2026-01.example:test",
        isid: bytes = b"\x80\x00\x00\x00\x00\x01",
        chap: tuple[str, bytes] | None = None,
        offer: Offer | None = None,
        cmd_sn: int = 1,
        timeout: float = 30.0,
    ) -> None:
        self.sock = socket.create_connection(address, timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name, self.target, self.isid = name, target, isid
        self.cmd_sn = cmd_sn
        self.exp_stat_sn = 0
        self.max_cmd_sn = 0
        self.tsih = 0
        self.header_digest = self.data_digest = False
        self.keys: dict[str, str] = {}
        self.commands: dict[int, Command] = {}
        self.others: list[tuple[FixedLayout, bytes]] = []
        """PDUs that answered no command: NOP-In, Async, Reject, task management responses."""
        self._tags = itertools.count(1)
        self._buffer = bytearray()
        self._chap = chap
        self._offer = (offer or Offer()).keys

    def __enter__(self) -> Initiator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    # --- PDUs ------------------------------------------------------------------------------------------------------

    def send(self, header: Any, data: bytes | memoryview = b"") -> None:
        header.data_segment_length = len(data)
        parts = [header.encode()]
        if self.header_digest:
            parts.append(digest(parts[0]))
        if data:
            parts += [bytes(data), PAD[len(data) & 3]]
            if self.data_digest:
                parts.append(digest(parts[-2], parts[-1]))
        self.sock.sendall(b"".join(parts))

    def receive(self) -> tuple[Any, bytes]:
        """The next PDU and its data segment. Raises Disconnected."""
        basic = BasicHeader.decode(self._take(BHS_SIZE))
        raw = self._last
        if self.header_digest:
            assert self._take(4) == digest(raw), "header digest"
        data = b""
        if basic.data_segment_length:
            whole = self._take(padded(basic.data_segment_length))
            data = whole[: basic.data_segment_length]
            if self.data_digest:
                assert self._take(4) == digest(whole), "data digest"
        header: Any = RESPONSES[basic.opcode].decode(raw)
        self.max_cmd_sn = header.max_cmd_sn
        if _bears_status(header):
            self.exp_stat_sn = (header.stat_sn + 1) & 0xFFFFFFFF
        return header, data

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            part = self.sock.recv(1 << 18)
            if not part:
                raise Disconnected
            self._buffer += part
        self._last = bytes(self._buffer[:count])
        del self._buffer[:count]
        return self._last

    # --- login -----------------------------------------------------------------------------------------------------

    def login(self) -> Initiator:
        """Security stage if there is a secret, then operational. Raises LoginRefused."""
        names = {"InitiatorName": self.name}
        names |= {"TargetName": self.target} if self.target else {"SessionType": "Discovery"}
        if self._chap is None:
            self._step(Stage.OPERATIONAL, Stage.FULL_FEATURE, names | self._offer)
        else:
            self._authenticate(names)
            self._step(Stage.OPERATIONAL, Stage.FULL_FEATURE, self._offer)
        self.header_digest = self.keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = self.keys.get("DataDigest") == "CRC32C"
        return self

    def _authenticate(self, names: dict[str, str]) -> None:
        assert self._chap is not None
        user, secret = self._chap
        self._step(Stage.SECURITY, Stage.SECURITY, names | {"AuthMethod": "CHAP"}, transit=False)
        answer = self._step(Stage.SECURITY, Stage.SECURITY, {"CHAP_A": "7,5"}, transit=False)
        algorithm = {"5": "md5", "7": "sha256"}[answer["CHAP_A"]]
        challenge = bytes.fromhex(answer["CHAP_C"][2:])
        response = hashlib.new(algorithm, bytes([int(answer["CHAP_I"])]) + secret + challenge).hexdigest()
        self._step(Stage.SECURITY, Stage.OPERATIONAL, {"CHAP_N": user, "CHAP_R": "0x" + response})

    def _step(self, current: Stage, following: Stage, keys: dict[str, str], *, transit: bool = True) -> dict[str, str]:
        request = LoginRequest(
            transit=transit,
            current_stage=current,
            next_stage=following if transit else 0,
            isid=self.isid,
            tsih=self.tsih,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=self.exp_stat_sn,
        )
        self.send(request, encode_pairs(keys.items()))
        header, data = self.receive()
        assert isinstance(header, LoginResponse)
        if header.status:
            raise LoginRefused(header.status)
        self.tsih = header.tsih
        answer = dict(parse_pairs(data))
        self.keys |= answer
        return answer

    # --- commands --------------------------------------------------------------------------------------------------

    def start(
        self, cdb: bytes, *, data_out: bytes | memoryview = b"", data_in: int = 0, lun: int = 0, edtl: int | None = None
    ) -> Command:
        """Send a command with as much immediate data as was negotiated; ``wait`` or ``run_all`` ends it."""
        command = Command(next(self._tags), cdb, data_out, bytearray(data_in))
        immediate = min(len(data_out), self._first_burst()) if self.keys.get("ImmediateData") == "Yes" else 0
        self.commands[command.tag] = command
        header = ScsiCommand(
            final=True,
            read=data_in > 0,
            write=len(data_out) > 0,
            lun=lun << 48,
            initiator_task_tag=command.tag,
            expected_data_transfer_length=edtl if edtl is not None else max(data_in, len(data_out)),
            cmd_sn=self._next_cmd_sn(),
            exp_stat_sn=self.exp_stat_sn,
            cdb=cdb.ljust(16, b"\0"),
        )
        self.send(header, memoryview(data_out)[:immediate])
        return command

    def _first_burst(self) -> int:
        return min(int(self.keys.get("FirstBurstLength", 65536)), int(self.keys.get("MaxRecvDataSegmentLength", 8192)))

    def _next_cmd_sn(self) -> int:
        value, self.cmd_sn = self.cmd_sn, (self.cmd_sn + 1) & 0xFFFFFFFF
        return value

    def wait(self, command: Command) -> Command:
        while command.status is None:
            self.pump()
        return command

    def run(self, cdb: bytes, **how: Any) -> Command:
        return self.wait(self.start(cdb, **how))

    def good(self, cdb: bytes, **how: Any) -> Command:
        command = self.run(cdb, **how)
        assert command.status == 0, f"status {command.status:#x}, sense {command.sense.hex()}"
        return command

    def wait_all(self) -> None:
        while self.commands:
            self.pump()

    def pump(self) -> None:
        """Receive one PDU and act on it."""
        header, data = self.receive()
        handlers: dict[type, Callable[..., None]] = {
            DataIn: self._on_data_in,
            ReadyToTransfer: self._on_r2t,
            ScsiResponse: self._on_response,
        }
        handler = handlers.get(type(header))
        if handler is not None:
            handler(header, data)
        elif isinstance(header, NopIn) and header.target_transfer_tag != RESERVED_TAG:
            self.send(NopOut(immediate=True, target_transfer_tag=header.target_transfer_tag, cmd_sn=self.cmd_sn))
        else:
            self.others.append((header, data))

    def _on_data_in(self, header: DataIn, data: bytes) -> None:
        command = self.commands[header.initiator_task_tag]
        command.data_in[header.buffer_offset : header.buffer_offset + len(data)] = data
        if header.has_status:
            self._end(header, b"")

    def _on_response(self, header: ScsiResponse, data: bytes) -> None:
        self._end(header, data[2:])

    def _end(self, header: DataIn | ScsiResponse, sense: bytes) -> None:
        command = self.commands.pop(header.initiator_task_tag)
        command.status, command.sense = header.status, sense
        command.overflow = header.residual_count if header.overflow else 0
        command.underflow = header.residual_count if header.underflow else 0

    def _on_r2t(self, header: ReadyToTransfer, _: bytes) -> None:
        command = self.commands[header.initiator_task_tag]
        view = memoryview(command.data_out)[header.buffer_offset :][: header.desired_data_transfer_length]
        size = int(self.keys.get("MaxRecvDataSegmentLength", 8192))
        for number, begin in enumerate(range(0, len(view), size)):
            self.send(
                DataOut(
                    final=begin + size >= len(view),
                    lun=header.lun,
                    initiator_task_tag=header.initiator_task_tag,
                    target_transfer_tag=header.target_transfer_tag,
                    exp_stat_sn=self.exp_stat_sn,
                    data_sn=number,
                    buffer_offset=header.buffer_offset + begin,
                ),
                view[begin : begin + size],
            )

    # --- the rest --------------------------------------------------------------------------------------------------

    def manage(self, function: int, *, lun: int = 0, task: Command | None = None, ref_cmd_sn: int = 0) -> int:
        """A task management function; returns the response once it is there. Answers to commands are taken too."""
        tag = next(self._tags)
        self.send(
            TaskManagementRequest(
                immediate=True,
                function=function,
                lun=lun << 48,
                initiator_task_tag=tag,
                referenced_task_tag=task.tag if task else RESERVED_TAG,
                cmd_sn=self.cmd_sn,
                exp_stat_sn=self.exp_stat_sn,
                ref_cmd_sn=ref_cmd_sn,
            )
        )
        while True:
            for header, _ in self.others:
                if isinstance(header, TaskManagementResponse) and header.initiator_task_tag == tag:
                    return header.response
            self.pump()

    def ping(self, data: bytes = b"ping") -> bytes:
        tag = next(self._tags)
        header = NopOut(immediate=True, initiator_task_tag=tag, cmd_sn=self.cmd_sn, exp_stat_sn=self.exp_stat_sn)
        self.send(header, data)
        while True:
            for answer, echoed in self.others:
                if isinstance(answer, NopIn) and answer.initiator_task_tag == tag:
                    return echoed
            self.pump()

    def send_targets(self, which: str = "All") -> list[tuple[str, str]]:
        request = TextRequest(
            initiator_task_tag=next(self._tags), cmd_sn=self._next_cmd_sn(), exp_stat_sn=self.exp_stat_sn
        )
        self.send(request, encode_pairs([("SendTargets", which)]))
        header, data = self.receive()
        assert isinstance(header, TextResponse)
        return parse_pairs(data)

    def logout(self) -> int:
        request = LogoutRequest(
            initiator_task_tag=next(self._tags), cmd_sn=self._next_cmd_sn(), exp_stat_sn=self.exp_stat_sn
        )
        self.send(request)
        while True:
            header, _ = self.receive()
            if isinstance(header, LogoutResponse):
                return header.response


def _bears_status(header: Any) -> bool:
    """Whether the PDU consumed a StatSN (RFC 7143 4.2.2.2)."""
    if isinstance(header, NopIn):
        return header.initiator_task_tag != RESERVED_TAG
    if isinstance(header, DataIn):
        return header.has_status
    return not isinstance(header, ReadyToTransfer)


def read10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 8 if fua else 0, lba, 0, blocks, 0)


def synchronize_cache() -> bytes:
    return struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)


def test_unit_ready() -> bytes:
    return bytes(6)


test_unit_ready.__test__ = False  # type: ignore[attr-defined]  # a CDB, not a test
