"""One TCP connection, sans-IO: bytes in, events and bytes out (RFC 7143). Feeding and directing; rules live beside it.

Not I/O, no clock, no randomness: all three are arguments. The connection is in one of three phases: login (``login``),
full feature (``commands``, ``requests``), over (``failed`` or ``closing``). Login pauses reading while the owner
decides. Invariant: whatever is received, ``buffer_updated`` raises nothing: it answers, or it sets ``failed``; and what
is buffered stays bounded by the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pdus.codec import Buffer, FixedLayout
from pdus.errors import FormatError
from pdus.iscsi.bhs import BHS_SIZE, BasicHeader
from pdus.iscsi.command import ScsiCommand
from pdus.iscsi.data import DataOut
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import DIGEST_SIZE
from pdus.iscsi.login import LoginRequest, LoginResponse, LoginStatus
from pdus.iscsi.logout import LogoutRequest
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.reject import RejectReason
from pdus.iscsi.snack import SnackRequest
from pdus.iscsi.task_management import TaskManagementRequest
from pdus.iscsi.text import TextRequest
from target.iscsi.commands import Commands
from target.iscsi.errors import ConnectionFailed, LoginRefused
from target.iscsi.events import (
    LoginStarted,
    SessionRequested,
)
from target.iscsi.login import LoginPolicy, Reply, Step
from target.iscsi.negotiation import LOGIN_MAX_SEGMENT
from target.iscsi.requests import Requests
from target.iscsi.serial import MASK
from target.iscsi.session import Session

LANDING_MINIMUM = 8192
"""Bytes of Data-Out still missing from which receiving in place pays for its bookkeeping; guessed."""
NARROW_MINIMUM = 65536
"""Bytes reserved for solicited data from which headers are received apart from data; guessed."""

CROWD = 64
"""PDUs taken at once from which the next are received in small portions: a buffer full of headers alone holds 5,000,
which kept the loop for 30 ms."""

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


class Connection(Commands, Requests):
    """One TCP connection. Public attributes: see ``channel.Channel``."""

    # --- input --------------------------------------------------------------------------------------------------------

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
        count = 0
        try:
            while self.failed is None and not self.closing and not self._paused and self._next_pdu():
                count += 1
        except ConnectionFailed as error:
            self.fail(str(error))
        except LoginRefused as error:
            self.fail(str(error))
        self._receive.crowded = count > CROWD
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

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def last_heard(self) -> float:
        """When the initiator last gave a sign of life, on the clock of the caller."""
        return self._heard

    def heard(self, now: float) -> None:
        """The initiator gave a sign of life other than bytes: it took some of ours."""
        self._heard = now
        self._pinged = None

    def tick(self, now: float) -> None:
        """Look at deadlines; call about once a second."""
        if self.failed is not None or self.closing:
            return
        settings = self.settings
        self._release_idle(now)
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

    def _release_idle(self, now: float) -> None:
        """Give buffers back when no command has come for a while; pings come to idle connections, too."""
        session = self.session
        if session is None or session.tasks or session.numbering.exp_cmd_sn != self._last_exp_cmd_sn:
            self._commanded = now
            self._last_exp_cmd_sn = 0 if session is None else session.numbering.exp_cmd_sn
        elif now - self._commanded >= self.settings.ping_interval and self._landing is None:
            self._lender.clear()
            self._scratch = memoryview(b"")
            self._receive.shrink()

    # --- login --------------------------------------------------------------------------------------------------------

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
            initiator_task_tag=self._login.task_tag,
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
