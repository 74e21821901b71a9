"""Requests in full feature phase that are no SCSI commands: NOP, task management, logout, text (RFC 7143 11.5, 11.10,
11.14, 11.18), and the Asynchronous Messages of ours.

Answered here when nobody else has to know, else an event for the owner. Invariant: a non-immediate request acts in its
CmdSN turn, an immediate one at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pdus.errors import FormatError
from pdus.iscsi.async_message import AsyncMessage
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.logout import LogoutReason, LogoutRequest, LogoutResponse, LogoutStatus
from pdus.iscsi.nop import NopIn, NopOut
from pdus.iscsi.reject import RejectReason
from pdus.iscsi.task_management import Function, FunctionResponse, TaskManagementRequest, TaskManagementResponse
from pdus.iscsi.text import TextRequest, TextResponse, encode_pairs, parse_pairs
from target.iscsi.channel import Channel
from target.iscsi.discovery import TextExchange, send_targets_text
from target.iscsi.errors import ConnectionFailed
from target.iscsi.events import (
    LogoutRequested,
    SendTargets,
    TaskManagement,
)
from target.iscsi.negotiation import answer_full_feature
from target.iscsi.numbering import Place
from target.iscsi.session import decode_lun, encode_lun

MAX_HELD = 1 << 20
"""Bytes of requests that wait for a CmdSN gap to be filled; guessed: with one connection gaps are exotic."""


class Requests(Channel):
    """The part of a connection that carries everything but SCSI commands."""

    # --- NOP ----------------------------------------------------------------------------------------------------------

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

    # --- task management and logout -----------------------------------------------------------------------------------

    def _on_task_management(self, pdu: TaskManagementRequest, header: bytes) -> None:
        assert self.session is not None
        if self.session.discovery:
            self._reject(RejectReason.COMMAND_NOT_SUPPORTED, header)
            return
        if pdu.immediate and self._managing >= self.settings.max_immediate_commands:
            self._reject(RejectReason.IMMEDIATE_COMMAND_REJECT, header)
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
        self._managing += 1
        if event.function == Function.TASK_REASSIGN:
            self.respond_task_management(event, FunctionResponse.REASSIGNMENT_NOT_SUPPORTED)
        elif not Function.ABORT_TASK <= event.function <= Function.TASK_REASSIGN:
            self.respond_task_management(event, FunctionResponse.NOT_SUPPORTED)
        else:
            self.events.append(event)

    def respond_task_management(self, event: TaskManagement, response: int) -> None:
        """Answer a TaskManagement with a FunctionResponse."""
        self._managing -= 1
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

    # --- text ---------------------------------------------------------------------------------------------------------

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
