"""One TCP connection, sans-IO: bytes in, events and bytes out (RFC 7143). Wiring and dispatch; rules live beside it.

Not I/O, no clock, no randomness: all three are arguments. It owns StatSN, digests, receive buffer and out-queue, and
the phase: login (``login``), full feature (handlers below), over (``failed`` or ``closing``). Login pauses reading
while the owner decides. Invariant: whatever is received, ``buffer_updated`` raises nothing: it answers, or it sets
``failed``; and what is buffered stays bounded by the settings.

The hot path (``_on_command``, ``respond``) is one straight run without intermediate objects; the general answers are in
``response``. ``bench`` measures it: see the tests' micro-benchmark in ``tests/target/iscsi/bench_connection.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pdus.codec import Buffer, FixedLayout
from pdus.errors import FormatError
from pdus.iscsi.async_message import AsyncMessage
from pdus.iscsi.bhs import BHS_SIZE, RESERVED_TAG, BasicHeader
from pdus.iscsi.command import ScsiCommand, ScsiResponse
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import DIGEST_SIZE
from pdus.iscsi.login import LoginRequest, LoginResponse, LoginStatus
from pdus.iscsi.logout import LogoutReason, LogoutRequest, LogoutResponse, LogoutStatus
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import Reject, RejectReason
from pdus.iscsi.snack import SnackRequest
from pdus.iscsi.task_management import Function, FunctionResponse, TaskManagementRequest, TaskManagementResponse
from pdus.iscsi.text import TextRequest, TextResponse, encode_pairs, parse_pairs
from target.iscsi.additional import read_additional_headers
from target.iscsi.budget import WorkerBudget
from target.iscsi.conditions import (
    INCORRECT_AMOUNT_OF_DATA,
    PROTOCOL_SERVICE_CRC_ERROR,
    TASK_SET_FULL,
    UNEXPECTED_UNSOLICITED_DATA,
)
from target.iscsi.discovery import TextExchange, send_targets_text
from target.iscsi.errors import ConnectionFailed, LoginRefused
from target.iscsi.events import (
    DataArrived,
    Event,
    LoginStarted,
    LogoutRequested,
    SendTargets,
    SessionRequested,
    TaskManagement,
    TransferFailed,
)
from target.iscsi.login import Login, LoginPolicy, Reply, Step
from target.iscsi.negotiation import LOGIN_MAX_SEGMENT, answer_full_feature
from target.iscsi.numbering import Place
from target.iscsi.output import COPY_LIMIT, Output
from target.iscsi.receive import Landing, ReceiveBuffer
from target.iscsi.response import Answer, Numbers, put_response
from target.iscsi.serial import MASK
from target.iscsi.session import Session, Task, decode_lun, encode_lun
from target.iscsi.settings import Settings
from target.iscsi.transfer import Transfer, Verdict

SMALL_IMMEDIATE = 16 << 10
"""Bytes of immediate data that are taken without asking the budget: the window bounds them to 4 MiB a session."""
MAX_HELD = 1 << 20
"""Bytes of requests that wait for a CmdSN gap to be filled; guessed: with one connection gaps are exotic."""
LANDING_MINIMUM = 8192
"""Bytes of Data-Out still missing from which receiving in place pays for its bookkeeping; guessed."""
NARROW_MINIMUM = 65536
"""Bytes reserved for solicited data from which headers are received apart from data; guessed."""

_REQUESTS: tuple[type[FixedLayout], ...] = (
    NopOut,
    ScsiCommand,
    TaskManagementRequest,
    LoginRequest,
    TextRequest,
    DataOut,
    LogoutRequest,
    SnackRequest,
)
_OPCODE_BITS = 0x3F
_BY_OPCODE = {request.__dict__["opcode"]: request.decode for request in _REQUESTS}
_DECODERS = [_BY_OPCODE.get(first & _OPCODE_BITS, BasicHeader.decode) for first in range(256)]
"""By the header's first byte: the immediate bit and the reserved one do not matter."""
_EMPTY_HEADER = bytes(BHS_SIZE)


class Connection:
    """See the module. Public attributes: ``events`` (to be popped by the owner), ``failed`` (send what is queued, then
    close; the reason), ``closing`` (close when everything is sent), ``session`` (None during login), ``owner`` (the
    owner's own), ``wake`` (called when output was queued by another connection's doing)."""

    def __init__(
        self,
        settings: Settings,
        now: float,
        *,
        random_bytes: Callable[[int], bytes],
        initial_stat_sn: int = 1,
        peer: str = "",
        budget: WorkerBudget | None = None,
    ) -> None:
        self.settings = settings
        self.peer = peer
        self.events: deque[Event] = deque()
        self.failed: str | None = None
        self.closing = False
        self.session: Session | None = None
        self.owner: object | None = None
        self.wake: Callable[[], None] | None = None
        self.stat_sn = initial_stat_sn
        self._budget = budget or WorkerBudget(settings.worker_buffers)
        self._login = Login(settings, random_bytes)
        self._login_deadline = now + settings.login_deadline
        self._paused = False
        self._max_receive = LOGIN_MAX_SEGMENT
        self._max_send = LOGIN_MAX_SEGMENT
        self._header_digest = False
        self._data_digest = False
        self._receive = ReceiveBuffer(LOGIN_MAX_SEGMENT)
        self._landing: Landing | None = None
        self._output = Output()
        self._scratch = memoryview(b"")
        self._text: TextExchange | None = None
        self._heard = now
        self._pinged: float | None = None
        # Reused headers of the two hottest answers: only the fields that differ are set each time
        self._data_in = DataIn(final=True, has_status=True)
        self._good = ScsiResponse()
        self._hot_limit = 0

    # --- input -------------------------------------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty. Valid until ``buffer_updated``."""
        landing = self._landing
        if landing is not None and landing.remaining:
            return landing.space()
        if self.failed is not None or self.closing:
            self._receive.clear()
        session = self.session
        return self._receive.space(session is not None and session.budget.solicited >= NARROW_MINIMUM)

    def buffer_updated(self, n: int, now: float) -> None:
        """``n`` bytes were put into the last ``get_buffer``. Handles every whole PDU that is there."""
        self._heard = now
        self._pinged = None
        landing = self._landing
        if landing is not None and landing.remaining:
            landing.filled(n)
        else:
            self._receive.end += n
        self._run()

    def receive(self, data: Buffer, now: float) -> None:
        """Take bytes that are somewhere else already: the same as receiving them into ``get_buffer``."""
        rest = memoryview(data)
        while rest.nbytes and self.failed is None and not self.closing:
            space = self.get_buffer()
            part = min(space.nbytes, rest.nbytes)
            space[:part] = rest[:part]
            rest = rest[part:]
            self.buffer_updated(part, now)

    def _run(self) -> None:
        try:
            while self.failed is None and not self.closing and not self._paused and self._next_pdu():
                pass
        except ConnectionFailed as error:
            self.fail(str(error))
        except LoginRefused as error:
            self.fail(str(error))
        if self._receive.full and self.failed is None and not self.closing:
            self.fail(f"{len(self._receive.data)} bytes sent while nothing could be taken")

    def _next_pdu(self) -> bool:
        """Handle one PDU. False: it is not whole yet."""
        if self._landing is not None and not self._finish_landing(self._landing):
            return False
        receive = self._receive
        data, start = receive.data, receive.start
        available = receive.end - start
        if available < BHS_SIZE:
            receive.missing = BHS_SIZE - available
            return False
        try:
            pdu = _DECODERS[data[start]](data, start)
        except FormatError:
            pdu = BasicHeader.decode(data, start)
        header = BHS_SIZE + pdu.total_ahs_length * 4  # type: ignore[attr-defined]
        length: int = pdu.data_segment_length  # type: ignore[attr-defined]
        if self._header_digest:
            header += DIGEST_SIZE
            if available < header:
                receive.missing = header - available
                return False
            self._check_header_digest(start, header)
        if length > self._max_receive:
            raise ConnectionFailed(f"data segment of {length} bytes exceeds {self._max_receive}")
        total = header + ((length + 3) & ~3)
        if length and self._data_digest:
            total += DIGEST_SIZE
        if available < total:
            receive.missing = total - available
            return (
                type(pdu) is DataOut
                and receive.missing >= LANDING_MINIMUM
                and available >= header
                and self._start_landing(pdu, start, header, total)
            )
        receive.start = start + total
        at = start + header
        intact = not (length and self._data_digest) or self._data_intact(at, start + total - DIGEST_SIZE)
        if type(pdu) is ScsiCommand and intact and self.session is not None:
            self._on_command(pdu, start, at)
        elif type(pdu) is DataOut and self.session is not None:
            self._on_data_out(pdu, start, at, intact)
        else:
            self._dispatch(pdu, start, bytes(receive.view[at : at + length]), intact)
        return True

    def _check_header_digest(self, start: int, header: int) -> None:
        end = start + header - DIGEST_SIZE
        view = self._receive.view
        if digest(view[start:end]) != view[end : end + DIGEST_SIZE]:
            # RFC 7143 7.8: nothing in the header can be trusted, not even where the next one begins
            raise ConnectionFailed("header digest error")

    def _data_intact(self, at: int, end: int) -> bool:
        view = self._receive.view
        return digest(view[at:end]) == view[end : end + DIGEST_SIZE]

    def _header(self, start: int) -> bytes:
        return bytes(self._receive.view[start : start + BHS_SIZE])

    def _dispatch(self, pdu: FixedLayout, start: int, data: bytes, intact: bool) -> None:
        if self.session is None:
            self._on_login_phase(pdu, data)
            return
        header = self._header(start)
        if not intact:
            # RFC 7143 7.8 asks for the Reject; the command's gap could only be closed by an initiator that repeats it,
            # and at ErrorRecoveryLevel 0 none does: a new session is quicker than its timeout
            self._reject(RejectReason.DATA_DIGEST_ERROR, header)
            raise ConnectionFailed("data digest error in a PDU that is no Data-Out")
        if isinstance(pdu, NopOut):
            self._on_nop_out(pdu, data)
        elif isinstance(pdu, TaskManagementRequest):
            self._on_task_management(pdu, header)
        elif isinstance(pdu, TextRequest):
            self._on_text(pdu, data, header)
        elif isinstance(pdu, LogoutRequest):
            self._on_logout(pdu)
        elif isinstance(pdu, SnackRequest):
            self._reject(RejectReason.SNACK_REJECT, header)
        elif isinstance(pdu, BasicHeader) and pdu.opcode not in _BY_OPCODE:
            self._reject(RejectReason.COMMAND_NOT_SUPPORTED, header)
        else:
            self._reject(RejectReason.PROTOCOL_ERROR, header)

    # --- output ------------------------------------------------------------------------------------------------------

    @property
    def out_bytes(self) -> int:
        """Bytes queued and not yet sent."""
        return self._output.size

    def outgoing(self) -> list[Buffer]:
        """For one gathered send; at most output.MAX_BUFFERS buffers. Tell ``sent`` how much of it left."""
        return self._output.buffers()

    def sent(self, n: int) -> None:
        self._output.sent(n)

    def fail(self, reason: str) -> None:
        """Give the connection up. The first reason counts."""
        if self.failed is None:
            self.failed = reason

    def lend(self, length: int) -> memoryview:
        """``length`` writable bytes for Data-In; those up to COPY_LIMIT are the same ones every time."""
        if length > COPY_LIMIT:
            return memoryview(bytearray(length))
        if not self._scratch.nbytes:
            self._scratch = memoryview(bytearray(COPY_LIMIT))
        return self._scratch[:length]

    @property
    def digests(self) -> str:
        """For people: "none", "header", "data" or "header, data"."""
        used = [name for name, on in (("header", self._header_digest), ("data", self._data_digest)) if on]
        return ", ".join(used) or "none"

    @property
    def auth(self) -> str:
        """How the initiator proved who it is: "none", "chap" or "mutual chap"."""
        return self._login.auth

    def _next_stat_sn(self) -> int:
        number = self.stat_sn
        self.stat_sn = (number + 1) & MASK
        return number

    def _put_status(
        self,
        pdu: Reject | NopIn | TextResponse | TaskManagementResponse | LogoutResponse | AsyncMessage,
        data: Buffer = b"",
    ) -> None:
        """Queue a PDU that carries status: it takes a StatSN."""
        pdu.stat_sn = self._next_stat_sn()
        self._put_numbered(pdu, data)

    def _put_numbered(
        self,
        pdu: Reject | NopIn | TextResponse | TaskManagementResponse | LogoutResponse | AsyncMessage | ReadyToTransfer,
        data: Buffer = b"",
    ) -> None:
        session = self.session
        assert session is not None
        numbering = session.numbering
        numbering.grant(len(session.tasks))
        pdu.exp_cmd_sn = numbering.exp_cmd_sn
        pdu.max_cmd_sn = numbering.max_cmd_sn
        pdu.data_segment_length = len(data)
        self._output.put(pdu, data)

    def _reject(self, reason: RejectReason, header: bytes) -> None:
        self._put_status(Reject(reason=reason), header)

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look at deadlines; call about once a second."""
        if self.failed is not None or self.closing:
            return
        settings = self.settings
        if self.session is None:
            if now >= self._login_deadline:
                self.fail(f"login not complete after {settings.login_deadline:g} s")
        elif self._pinged is not None:
            if now - self._pinged >= settings.ping_timeout:
                self.fail(f"no answer to a ping for {settings.ping_timeout:g} s")
        elif now - self._heard >= settings.ping_interval:
            self._pinged = now
            # Sent on our own initiative: StatSN is the next one and not consumed (RFC 7143 11.19.2)
            self._put_numbered(NopIn(target_transfer_tag=self.session.new_ttt(), stat_sn=self.stat_sn))

    # --- login -------------------------------------------------------------------------------------------------------

    def _on_login_phase(self, pdu: FixedLayout, data: bytes) -> None:
        if not isinstance(pdu, LoginRequest):
            if self._login.first is None:
                raise ConnectionFailed("the first PDU is no Login Request")
            self.refuse_login(LoginStatus.INVALID_DURING_LOGIN, "a PDU other than Login Request during login")
            return
        self._attempt(partial(self._login.receive, pdu, data), pdu)

    def accept_login(self, policy: LoginPolicy) -> None:
        """Answer LoginStarted: go on, under ``policy``."""
        self._paused = False
        self._attempt(partial(self._login.accept, policy))
        self._run()

    def refuse_login(self, status: int, reason: str = "refused") -> None:
        """Answer LoginStarted or SessionRequested: end the login with a LoginStatus, then close."""
        self._put_login(Reply(0), status=status)
        self._end_login(f"login refused ({status >> 8:02x}/{status & 0xFF:02x}): {reason}")

    def establish(self, tsih: int, nexus: object = None) -> None:
        """Answer SessionRequested: create ``session`` and enter full feature phase."""
        login = self._login
        assert login.first is not None
        reply = login.complete()
        self._put_login(reply, tsih=tsih)
        parameters = login.negotiation.parameters()
        session = Session(login.identity, tsih, nexus, parameters, login.first.cmd_sn, self.settings, self._budget)
        self.session = session
        self._max_send = parameters.max_send
        self._max_receive = parameters.max_receive
        self._header_digest = self._output.header_digest = parameters.header_digest
        self._data_digest = self._output.data_digest = parameters.data_digest
        self._set_hot_limit()
        self._receive.grow(LOGIN_MAX_SEGMENT if session.discovery else parameters.max_receive)
        self._paused = False
        self._run()

    def _attempt(self, step: Callable[[], Step], request: LoginRequest | None = None) -> None:
        """Run one step of the login and answer it."""
        try:
            outcome = step()
        except LoginRefused as error:
            if self._login.first is None:
                self._login.first = request
            self.refuse_login(error.status, str(error))
            return
        if isinstance(outcome, Reply):
            self._put_login(outcome)
        else:
            assert isinstance(outcome, (LoginStarted, SessionRequested))
            self._paused = True
            self.events.append(outcome)

    def _put_login(self, reply: Reply, *, status: int = 0, tsih: int = 0) -> None:
        first = self._login.first
        assert first is not None, "nothing is answered before the first request"
        response = LoginResponse(
            transit=reply.transit,
            continue_=reply.continues,
            current_stage=reply.current_stage,
            next_stage=reply.next_stage,
            data_segment_length=len(reply.text),
            isid=first.isid,
            tsih=tsih or first.tsih,
            initiator_task_tag=first.initiator_task_tag,
            stat_sn=self._next_stat_sn(),
            # Login is immediate: its CmdSN is not consumed (RFC 7143 4.2.2.1)
            exp_cmd_sn=first.cmd_sn,
            max_cmd_sn=(first.cmd_sn + self.settings.command_window - 1) & MASK,
            status=status,
        )
        self._output.put(response, reply.text)

    def _end_login(self, reason: str) -> None:
        self._paused = False
        self.closing = True
        self.close_reason = reason

    close_reason = "logged out"
    """Why ``closing`` was set, for the log."""

    # --- SCSI commands -----------------------------------------------------------------------------------------------

    def _on_command(self, pdu: ScsiCommand, start: int, at: int) -> None:
        session = self.session
        assert session is not None
        numbering = session.numbering
        cmd_sn = pdu.cmd_sn
        # The next number in an open window is the rule; everything else is looked at closely
        next_in_turn = cmd_sn == numbering.exp_cmd_sn != (numbering.max_cmd_sn + 1) & MASK
        if not pdu.immediate and not next_in_turn and numbering.place(cmd_sn) is Place.OUTSIDE:
            return
        tasks = session.tasks
        itt = pdu.initiator_task_tag
        if itt in tasks or itt == RESERVED_TAG or pdu.immediate or session.discovery:
            reason = self._why_not(pdu, session)
            if reason is not None:
                self._reject(reason, self._header(start))
                return
        task = Task(self, session.nexus, pdu)
        if pdu.total_ahs_length and not self._add_headers(task, start, pdu):
            return
        length = pdu.data_segment_length
        action = self._emit
        if length or not pdu.final:
            if not pdu.final and not pdu.write:
                # RFC 7143 11.3.1: F and W both 0 is an error
                self._reject(RejectReason.PROTOCOL_ERROR, self._header(start))
                return
            if not self._take_command_data(session, task, pdu, at):
                action = self._answer_failure
        tasks[itt] = task
        if next_in_turn and not pdu.immediate and not numbering.waiting:
            numbering.exp_cmd_sn = (cmd_sn + 1) & MASK
            action(task)
        elif pdu.immediate:
            action(task)
        else:
            numbering.receive(cmd_sn, partial(action, task))

    def _emit(self, task: Task) -> None:
        if task.active:
            self.events.append(task)

    def _why_not(self, pdu: ScsiCommand, session: Session) -> RejectReason | None:
        """Why a command is rejected before it becomes a task."""
        if session.discovery:
            return RejectReason.COMMAND_NOT_SUPPORTED
        if pdu.initiator_task_tag == RESERVED_TAG:
            return RejectReason.INVALID_PDU_FIELD
        if pdu.initiator_task_tag in session.tasks:
            return RejectReason.TASK_IN_PROGRESS
        room = self.settings.command_window + self.settings.max_immediate_commands
        if pdu.immediate and len(session.tasks) >= room:
            return RejectReason.IMMEDIATE_COMMAND_REJECT
        return None

    def _add_headers(self, task: Task, start: int, pdu: ScsiCommand) -> bool:
        first = start + BHS_SIZE
        try:
            more = read_additional_headers(self._receive.view[first : first + pdu.total_ahs_length * 4])
        except FormatError:
            self._reject(RejectReason.INVALID_PDU_FIELD, self._header(start))
            return False
        task.cdb += more.cdb
        task.expected_read_length = more.read_length
        return True

    def _take_command_data(self, session: Session, task: Task, pdu: ScsiCommand, at: int) -> bool:
        """Take immediate data, and prepare for unsolicited. False: the task has failed."""
        length = pdu.data_segment_length
        parameters = session.parameters
        limit = min(parameters.first_burst, task.expected_length)
        if length and not (task.write and parameters.immediate_data):
            return self._fail_command(task, pdu.final, UNEXPECTED_UNSOLICITED_DATA)
        if not pdu.final and parameters.initial_r2t:
            return self._fail_command(task, pdu.final, UNEXPECTED_UNSOLICITED_DATA)
        if length > limit:
            return self._fail_command(task, pdu.final, INCORRECT_AMOUNT_OF_DATA)
        if pdu.final and length <= SMALL_IMMEDIATE:
            task.immediate_data = bytes(self._receive.view[at : at + length])
            return True
        reserved = length if pdu.final else limit
        if not session.budget.reserve_unsolicited(reserved):
            return self._fail_command(task, pdu.final, b"", TASK_SET_FULL)
        transfer = task.transfer = Transfer(reserved, self._receive.view[at : at + length])
        transfer.unsolicited = reserved
        if not pdu.final:
            transfer.expect_unsolicited(limit)
        return True

    def _fail_command(self, task: Task, final: bool, sense: bytes, status: int | None = None) -> bool:
        transfer = task.transfer = Transfer(0, b"")
        if status is None:
            transfer.fail(sense)
        else:
            transfer.fail(sense, status)
        if not final:
            transfer.expect_unsolicited(task.expected_length)
        task.revoked = True
        return False

    def _answer_failure(self, task: Task) -> None:
        """End a task with its transfer's failure, once the initiator has nothing more of it to send."""
        transfer = task.transfer
        if task.active and transfer is not None and transfer.failed and transfer.failure is not None:
            status, sense = transfer.failure
            self.respond(task, status, sense)

    # --- Data-Out ----------------------------------------------------------------------------------------------------

    def _on_data_out(self, pdu: DataOut, start: int, at: int, intact: bool) -> None:
        task, transfer = self._find_transfer(pdu, start)
        if task is None or transfer is None:
            return
        verdict = transfer.check(pdu)
        if verdict is Verdict.REJECT:
            self._reject(RejectReason.INVALID_PDU_FIELD, self._header(start))
            return
        if not intact:
            self._reject(RejectReason.DATA_DIGEST_ERROR, self._header(start))
            transfer.fail(PROTOCOL_SERVICE_CRC_ERROR)
        elif verdict is Verdict.TAKE:
            offset, length = pdu.buffer_offset, pdu.data_segment_length
            transfer.view[offset : offset + length] = self._receive.view[at : at + length]
            transfer.landed(pdu)
        self._after_data_out(task, transfer, pdu)

    def _find_transfer(self, pdu: DataOut, start: int) -> tuple[Task | None, Transfer | None]:
        assert self.session is not None
        task = self.session.tasks.get(pdu.initiator_task_tag)
        if task is None:
            return None, None  # of an aborted or already answered task: discarded
        if task.transfer is None:
            if pdu.target_transfer_tag != RESERVED_TAG or not task.write or task.data_out is not None:
                self._reject(RejectReason.PROTOCOL_ERROR, self._header(start))
                return None, None
            # Announced by nothing: check() will find no sequence for it
            task.transfer = Transfer(0, b"")
        return task, task.transfer

    def _after_data_out(self, task: Task, transfer: Transfer, pdu: DataOut) -> None:
        """A Data-Out was dealt with: end its sequence, then the task's transfer, or ask for more."""
        if pdu.final:
            transfer.end_sequence(pdu.target_transfer_tag)
        if transfer.failure is not None:
            if not task.revoked:
                task.revoked = True
                self.events.append(TransferFailed(task))
            self._answer_failure(task)
        elif pdu.final and transfer.wanted >= 0:
            self._advance(task, transfer)

    def _start_landing(self, pdu: DataOut, start: int, header: int, total: int) -> bool:
        """Receive the rest of a large Data-Out straight into the task's buffer. False: it is not what is expected, and
        will be dealt with when it is whole."""
        session = self.session
        task = None if session is None else session.tasks.get(pdu.initiator_task_tag)
        transfer = None if task is None else task.transfer
        if task is None or transfer is None or not transfer.expects(pdu):
            return False
        receive = self._receive
        trailer = total - header - pdu.data_segment_length
        landing = Landing(task, transfer, pdu, self._header(start), trailer)
        first = start + header
        here = min(receive.end - first, pdu.data_segment_length)
        landing.space()[:here] = receive.view[first : first + here]
        landing.filled(here)
        receive.start = first + here
        self._landing = landing
        return True

    def _finish_landing(self, landing: Landing) -> bool:
        """False: data or trailer are not all here yet."""
        receive = self._receive
        if landing.remaining or receive.end - receive.start < landing.trailer:
            receive.missing = max(1, landing.trailer - (receive.end - receive.start))
            return False
        start = receive.start
        receive.start += landing.trailer
        self._landing = None
        pdu, transfer = landing.pdu, landing.transfer
        intact = True
        if self._data_digest:
            end = receive.start - DIGEST_SIZE
            data = transfer.view[pdu.buffer_offset : pdu.buffer_offset + pdu.data_segment_length]
            intact = digest(data, receive.view[start:end]) == receive.view[end : end + DIGEST_SIZE]
        if not landing.task.active:
            return True
        if intact:
            transfer.landed(pdu)
        else:
            self._reject(RejectReason.DATA_DIGEST_ERROR, landing.header)
            transfer.fail(PROTOCOL_SERVICE_CRC_ERROR)
        self._after_data_out(landing.task, transfer, pdu)
        return True

    def want_data(self, task: Task, length: int) -> bool:
        """The device server admitted a write and wants ``length`` bytes of Data-Out.

        True: all is in ``task.data_out`` already. False: it will be, and DataArrived will say so (or the task fails).
        """
        task.wanted = length
        capped = min(length, task.expected_length) if task.write else 0
        transfer = task.transfer
        if transfer is None:
            data = task.immediate_data
            if len(data) >= capped:
                task.data_out = data if len(data) == capped else memoryview(data)[:capped]
                return True
            transfer = task.transfer = Transfer(len(data), data)
        if not task.active or transfer.failure is not None:
            return False
        session = self.session
        assert session is not None
        transfer.wanted = capped
        if transfer.complete:
            task.data_out = transfer.data()
            return True
        if session.waiting or not self._begin_transfer(session, task, transfer):
            transfer.waiting = True
            session.waiting.append(task)
            session.budget.wait()
        return False

    def _begin_transfer(self, session: Session, task: Task, transfer: Transfer) -> bool:
        """Reserve what the wanted data needs beyond what is reserved, then ask for it. False: no budget now."""
        need = max(0, transfer.wanted - transfer.unsolicited)
        if need and not session.budget.reserve(need):
            return False
        transfer.reserved = need
        transfer.waiting = False
        transfer.want(transfer.wanted)
        self._advance(task, transfer)
        return True

    def resume_transfer(self, task: Task) -> bool:
        """The budget may have room now. False: it has not."""
        session, transfer = self.session, task.transfer
        assert session is not None and transfer is not None
        before = self.out_bytes
        begun = self._begin_transfer(session, task, transfer)
        if self.wake is not None and (self.out_bytes != before or self.events):
            self.wake()
        return begun

    def _advance(self, task: Task, transfer: Transfer) -> None:
        """Send the R2Ts that may be sent; report the data when it is complete."""
        session = self.session
        assert session is not None
        if transfer.waiting:
            return
        if transfer.complete:
            task.data_out = transfer.data()
            self.events.append(DataArrived(task))
            return
        parameters = session.parameters
        while True:
            tag = session.new_ttt()
            sequence = transfer.next_r2t(tag, parameters.max_burst, parameters.max_outstanding_r2t)
            if sequence is None:
                return
            length = sequence.end - sequence.offset
            self._put_numbered(
                ReadyToTransfer(
                    lun=task.wire_lun,
                    initiator_task_tag=task.itt,
                    target_transfer_tag=tag,
                    stat_sn=self.stat_sn,
                    r2t_sn=transfer.r2t_sn - 1,
                    buffer_offset=sequence.offset,
                    desired_data_transfer_length=length,
                )
            )

    # --- answers to SCSI commands --------------------------------------------------------------------------------------

    def respond(self, task: Task, status: int, sense: bytes = b"", data: Buffer | None = None) -> None:
        """End a task. Nothing happens if it is aborted or answered already.

        Up to COPY_LIMIT bytes of ``data`` are copied at once; more belongs to the connection until sent, and must not
        change. Residuals come from the expected length, len(data) and what was wanted.
        """
        session = self.session
        if not task.active or session is None:
            return
        if task.transfer is None:
            task.active = False
            del session.tasks[task.itt]
        else:
            r2ts = task.transfer.r2t_sn
            session.end(task)
            self._respond_fully(session, task, status, sense, data, r2ts)
            return
        length = 0 if data is None else len(data)
        expected = task.expected_length
        if status or sense or expected > self._hot_limit or length & 3:
            self._respond_fully(session, task, status, sense, data, 0)
            return
        numbering = session.numbering
        numbering.grant(len(session.tasks))
        stat_sn = self.stat_sn
        pdu: DataIn | ScsiResponse
        if length and length == expected and task.read and not task.write:
            pdu = self._data_in
            pdu.data_segment_length = length
        elif not length and (expected == 0 or (task.write and not task.read and task.wanted == expected)):
            pdu = self._good
        else:
            self._respond_fully(session, task, status, sense, data, 0)
            return
        self.stat_sn = (stat_sn + 1) & MASK
        pdu.initiator_task_tag = task.itt
        pdu.stat_sn = stat_sn
        pdu.exp_cmd_sn = numbering.exp_cmd_sn
        pdu.max_cmd_sn = numbering.max_cmd_sn
        output = self._output
        tail = output.tail
        at = len(tail)
        tail += _EMPTY_HEADER
        pdu.encode_into(tail, at)
        if length:
            tail += data  # type: ignore[arg-type]
        output.size += BHS_SIZE + length

    def _respond_fully(
        self, session: Session, task: Task, status: int, sense: bytes, data: Buffer | None, r2ts: int
    ) -> None:
        numbering = session.numbering
        numbering.grant(len(session.tasks))
        read_expected = task.expected_read_length if task.write else task.expected_length
        answer = Answer(
            itt=task.itt,
            status=status,
            sense=sense,
            data=b"" if data is None else data,
            read=task.read,
            write=task.write,
            read_expected=read_expected if task.read else 0,
            write_expected=task.expected_length if task.write else 0,
            write_wanted=task.wanted,
            r2ts=r2ts,
        )
        numbers = Numbers(self._next_stat_sn(), numbering.exp_cmd_sn, numbering.max_cmd_sn)
        put_response(self._output, answer, numbers, self._max_send, session.parameters.max_burst)

    def _set_hot_limit(self) -> None:
        """Up to which expected length ``respond`` takes its short way: one PDU, copied, no digests."""
        assert self.session is not None
        plain = not (self._header_digest or self._data_digest)
        self._hot_limit = min(COPY_LIMIT, self._max_send, self.session.parameters.max_burst) if plain else -1

    # --- NOP -----------------------------------------------------------------------------------------------------------

    def _on_nop_out(self, pdu: NopOut, data: bytes) -> None:
        if pdu.initiator_task_tag == RESERVED_TAG:
            return  # answers our ping, or only brings ExpStatSN; takes no CmdSN (RFC 7143 11.18)
        # What comes back is cut to what the initiator can receive
        self._in_turn(pdu, partial(self._echo, pdu.initiator_task_tag, data))

    def _echo(self, itt: int, data: bytes) -> None:
        self._put_status(NopIn(initiator_task_tag=itt), data[: self._max_send])

    def _in_turn(
        self, pdu: NopOut | TextRequest | LogoutRequest | TaskManagementRequest, action: Callable[[], None]
    ) -> None:
        """Run ``action`` at once for an immediate request, else in CmdSN order; ignore it outside the window."""
        assert self.session is not None
        numbering = self.session.numbering
        if pdu.immediate:
            action()
        elif numbering.place(pdu.cmd_sn) is not Place.OUTSIDE:
            if numbering.waiting_bytes(pdu.data_segment_length) > MAX_HELD:
                raise ConnectionFailed(f"requests ahead of their turn hold more than {MAX_HELD} bytes")
            numbering.receive(pdu.cmd_sn, action)

    # --- task management and logout --------------------------------------------------------------------------------------

    def _on_task_management(self, pdu: TaskManagementRequest, header: bytes) -> None:
        assert self.session is not None
        if self.session.discovery:
            self._reject(RejectReason.COMMAND_NOT_SUPPORTED, header)
            return
        event = TaskManagement(
            pdu.initiator_task_tag,
            pdu.function,
            decode_lun(pdu.lun),
            pdu.referenced_task_tag,
            pdu.ref_cmd_sn,
            pdu.cmd_sn,
            pdu.immediate,
        )
        self._in_turn(pdu, partial(self._manage, event))

    def _manage(self, event: TaskManagement) -> None:
        if event.function == Function.TASK_REASSIGN:
            self.respond_task_management(event, FunctionResponse.REASSIGNMENT_NOT_SUPPORTED)
        elif not Function.ABORT_TASK <= event.function <= Function.TASK_REASSIGN:
            self.respond_task_management(event, FunctionResponse.NOT_SUPPORTED)
        else:
            self.events.append(event)

    def respond_task_management(self, event: TaskManagement, response: int) -> None:
        """Answer a TaskManagement with a FunctionResponse."""
        self._put_status(TaskManagementResponse(response=response, initiator_task_tag=event.itt))

    def _on_logout(self, pdu: LogoutRequest) -> None:
        event = LogoutRequested(pdu.initiator_task_tag, pdu.reason, pdu.cid)
        self._in_turn(pdu, partial(self._log_out, event))

    def _log_out(self, event: LogoutRequested) -> None:
        if event.reason == LogoutReason.REMOVE_FOR_RECOVERY:
            self._put_logout(event, LogoutStatus.RECOVERY_NOT_SUPPORTED)
        elif event.reason == LogoutReason.CLOSE_CONNECTION and event.cid != self._login.identity.cid:
            self._put_logout(event, LogoutStatus.CID_NOT_FOUND)
        elif event.reason not in (LogoutReason.CLOSE_SESSION, LogoutReason.CLOSE_CONNECTION):
            self._put_logout(event, LogoutStatus.CLEANUP_FAILED)
        else:
            # No command follows a Logout (RFC 7143 11.14): what does is not read
            self._paused = True
            self.events.append(event)

    def _put_logout(self, event: LogoutRequested, status: LogoutStatus) -> None:
        self._put_status(LogoutResponse(response=status, initiator_task_tag=event.itt))

    def answer_logout(self, event: LogoutRequested) -> None:
        """Tasks are gone: answer, and close when the answer is sent."""
        self._put_logout(event, LogoutStatus.SUCCESS)
        self.closing = True

    def send_async(
        self,
        event_code: int,
        *,
        lun: int = 0,
        sense: bytes = b"",
        parameter1: int = 0,
        parameter2: int = 0,
        parameter3: int = 0,
    ) -> None:
        """Send an Asynchronous Message: an AsyncEvent with its parameters; ``sense`` goes with the SCSI event."""
        data = len(sense).to_bytes(2, "big") + sense if sense else b""
        message = AsyncMessage(
            event=event_code,
            lun=encode_lun(lun),
            parameter1=parameter1,
            parameter2=parameter2,
            parameter3=parameter3,
        )
        self._put_status(message, data)

    def close(self) -> None:
        """The connection is gone: its buffers go back to the budget. Further calls do nothing."""
        if self.session is not None:
            self.session.close()

    # --- text ------------------------------------------------------------------------------------------------------------

    def _on_text(self, pdu: TextRequest, data: bytes, header: bytes) -> None:
        self._in_turn(pdu, partial(self._take_text, pdu, data, header))

    def _take_text(self, pdu: TextRequest, data: bytes, header: bytes) -> None:
        exchange = self._text
        if pdu.target_transfer_tag == RESERVED_TAG:
            if exchange is not None and exchange.pending:
                self._reject(RejectReason.TASK_IN_PROGRESS, header)
                return
            # A new exchange; what an initiator left unfinished before is forgotten
            exchange = self._text = TextExchange(pdu.initiator_task_tag)
        elif exchange is None or not exchange.continues(pdu):
            self._reject(RejectReason.INVALID_PDU_FIELD, header)
            return
        if pdu.final and pdu.continue_:
            self._end_text(RejectReason.PROTOCOL_ERROR, header)
        elif exchange.answering:
            self._put_text_part(exchange)
        elif not exchange.collect(data):
            self._end_text(RejectReason.OUT_OF_RESOURCES, header)
        elif pdu.continue_:
            self._put_text(exchange, b"", final=False, continues=False)
        else:
            self._answer_text(exchange, header)

    def _end_text(self, reason: RejectReason, header: bytes) -> None:
        self._text = None
        self._reject(reason, header)

    def _answer_text(self, exchange: TextExchange, header: bytes) -> None:
        try:
            pairs = parse_pairs(exchange.question())
        except FormatError:
            self._end_text(RejectReason.PROTOCOL_ERROR, header)
            return
        asked = [value for name, value in pairs if name == "SendTargets"]
        if asked:
            exchange.pending = True
            self.events.append(SendTargets(asked[0], exchange.itt))
            return
        answers, max_send = answer_full_feature(pairs)
        if max_send is not None:
            self._max_send = max_send
            self._set_hot_limit()
        exchange.answer(encode_pairs(answers))
        self._put_text_part(exchange)

    def answer_send_targets(self, event: SendTargets, records: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Answer SendTargets with (target name, addresses) records; an address is "host:port" or "host:port,tag"."""
        exchange = self._text
        if exchange is None or exchange.itt != event.itt or not exchange.pending:
            return
        exchange.answer(send_targets_text(records, self.settings.portal_group_tag))
        self._put_text_part(exchange)

    def _put_text_part(self, exchange: TextExchange) -> None:
        part, last = exchange.next_part(self._max_send)
        self._put_text(exchange, part, final=last, continues=not last)
        if last:
            self._text = None

    def _put_text(self, exchange: TextExchange, text: bytes, *, final: bool, continues: bool) -> None:
        assert self.session is not None
        exchange.ttt = RESERVED_TAG if final else self.session.new_ttt()
        response = TextResponse(
            final=final,
            continue_=continues,
            initiator_task_tag=exchange.itt,
            target_transfer_tag=exchange.ttt,
        )
        self._put_status(response, text)
