"""SCSI commands in full feature phase: from the PDU to the Task, its Data-Out, and its answer (RFC 7143 11.3-11.8).

Checks that belong to iSCSI are made here, before the owner sees a task; what a CDB means is the device server's. The
hot path (``_on_command``, ``respond``) is one straight run without intermediate objects; ``response`` is the plain way,
and ``tests/target/iscsi/bench_engine.py`` measures both.
Invariant: an active task is answered exactly once, by its owner or for its failed transfer, or aborted.
"""

from __future__ import annotations

from functools import partial

from pdus.codec import Buffer
from pdus.errors import FormatError
from pdus.iscsi.bhs import BHS_SIZE, RESERVED_TAG
from pdus.iscsi.command import ScsiCommand, ScsiResponse
from pdus.iscsi.data import DataIn, DataOut
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import DIGEST_SIZE
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import RejectReason
from target.iscsi.additional import read_additional_headers
from target.iscsi.channel import Channel
from target.iscsi.conditions import (
    CHECK_CONDITION,
    INCORRECT_AMOUNT_OF_DATA,
    PROTOCOL_SERVICE_CRC_ERROR,
    TASK_SET_FULL,
    UNEXPECTED_UNSOLICITED_DATA,
)
from target.iscsi.events import (
    DataArrived,
    TransferFailed,
)
from target.iscsi.numbering import Place
from target.iscsi.receive import Landing
from target.iscsi.response import Answer, Numbers, put_response
from target.iscsi.serial import MASK
from target.iscsi.session import Session, Task
from target.iscsi.transfer import Transfer, Verdict

SMALL_IMMEDIATE = 16 << 10
"""Bytes of immediate data that are taken without asking the budget: the window bounds them to 4 MiB a session."""

_EMPTY_HEADER = bytes(BHS_SIZE)


class Commands(Channel):
    """The part of a connection that carries SCSI commands."""

    # --- SCSI commands ------------------------------------------------------------------------------------------------

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

    def _fail_command(self, task: Task, final: bool, sense: bytes, status: int = CHECK_CONDITION) -> bool:
        transfer = task.transfer = Transfer(0, b"")
        transfer.fail(sense, status)
        if not final:
            transfer.expect_unsolicited(task.expected_length)
        task.revoked = True
        return False

    def _report_failure(self, task: Task) -> None:
        """The transfer of a task that the owner knows has failed."""
        if not task.revoked:
            task.revoked = True
            self.events.append(TransferFailed(task))
        self._answer_failure(task)

    def _answer_failure(self, task: Task) -> None:
        """End a task with its transfer's failure, once the initiator has nothing more of it to send."""
        transfer = task.transfer
        if task.active and transfer is not None and transfer.failed and transfer.failure is not None:
            status, sense = transfer.failure
            self.respond(task, status, sense)

    # --- Data-Out -----------------------------------------------------------------------------------------------------

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
        if task.data_out is not None:
            # The owner has the data and may be writing it: too late to fail the task, its own answer will come
            self._reject(RejectReason.PROTOCOL_ERROR, self._header(start))
            return None, None
        if task.transfer is None:
            if pdu.target_transfer_tag != RESERVED_TAG or not task.write:
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
            self._report_failure(task)
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
        if capped > self.settings.session_buffers:
            # Never granted: the device server's maximum transfer length has to be below the budget
            transfer.fail(b"", TASK_SET_FULL)
            self._report_failure(task)
            return False
        if transfer.complete:
            task.data_out = transfer.data()
            return True
        # Who needs no more than is here already does not queue behind those who wait for a buffer
        queues = bool(session.waiting) and capped > transfer.unsolicited
        if queues or not self._begin_transfer(session, task, transfer):
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
        assert session is not None
        assert transfer is not None
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

    # --- answers to SCSI commands -------------------------------------------------------------------------------------

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
            self._respond_to_transfer(session, task, task.transfer, status, sense, data)
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
        elif not length and not task.read and task.wanted == expected:
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

    def _respond_to_transfer(
        self, session: Session, task: Task, transfer: Transfer, status: int, sense: bytes, data: Buffer | None
    ) -> None:
        if transfer.sequences and data is None:
            # RFC 7143 11.4.2: a command that ends early is answered after the final bit of its unsolicited data
            transfer.fail(sense, status)
            task.revoked = True  # its owner has ended it, and needs not be told of the end again
            return
        r2ts = transfer.r2t_sn
        session.end(task)
        self._respond_fully(session, task, status, sense, data, r2ts)

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
