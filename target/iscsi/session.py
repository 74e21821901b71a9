"""The session: command numbering, tasks by tag, transfer tags, negotiated keys; and the task, one per SCSI command.

With MaxConnections 1 a session has one connection, which owns what is per connection (StatSN, digests, buffers).
Invariant: a task is in ``tasks`` from its arrival until it is answered or aborted, and exactly then ``active``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pdus.codec import Buffer
from pdus.iscsi.bhs import RESERVED_TAG
from pdus.iscsi.command import ScsiCommand
from pdus.iscsi.task_management import FunctionResponse
from target.iscsi.budget import SessionBudget, WorkerBudget
from target.iscsi.negotiation import Parameters
from target.iscsi.numbering import CommandNumbering
from target.iscsi.serial import less
from target.iscsi.settings import Settings
from target.iscsi.transfer import Transfer

if TYPE_CHECKING:
    from target.iscsi.commands import Commands
    from target.iscsi.events import SessionIdentity, TaskManagement

_SINGLE_LEVEL = (1 << 48) - 1  # the bits of a LUN below its first level (SAM-5, single level LUN structure)


def decode_lun(lun: int) -> int:
    """The LUN's number by peripheral (bus 0) or flat space addressing (SAM-5); -1 for what we never report."""
    if lun & _SINGLE_LEVEL:
        return -1
    first = lun >> 48
    if first <= 0xFF:
        return first
    return first & 0x3FFF if first >> 14 == 1 else -1


def encode_lun(lun: int) -> int:
    """The eight LUN bytes as a number: peripheral addressing up to 255, flat space above."""
    return (lun if lun <= 0xFF else lun | 0x4000) << 48


class Task:
    """One SCSI command, its data, and the right to write (the store's Permit).

    ``lun`` is -1 when its addressing is not understood; ``cdb`` is 16 bytes, more with an extended CDB;
    ``expected_length`` is the Expected Data Transfer Length in bytes (of the Data-Out if the command is bidirectional,
    then ``expected_read_length`` is that of the Data-In). ``data_out`` is complete or None; ``wanted`` is how many
    bytes the device server asked for, which may exceed ``expected_length``. ``nexus`` and ``scsi`` are opaque here.
    """

    __slots__ = (
        "active",
        "attribute",
        "cdb",
        "cmd_sn",
        "connection",
        "data_out",
        "expected_length",
        "expected_read_length",
        "immediate_data",
        "itt",
        "lun",
        "nexus",
        "read",
        "revoked",
        "scsi",
        "transfer",
        "wanted",
        "wire_lun",
        "write",
    )

    def __init__(self, connection: Commands, nexus: object, pdu: ScsiCommand) -> None:
        self.connection = connection
        self.nexus = nexus
        self.itt = pdu.initiator_task_tag
        wire_lun = self.wire_lun = pdu.lun
        self.lun = 0 if wire_lun == 0 else decode_lun(wire_lun)
        self.cdb = pdu.cdb
        self.attribute = pdu.attribute
        self.read = pdu.read
        self.write = pdu.write
        self.expected_length = pdu.expected_data_transfer_length
        self.expected_read_length = 0
        self.cmd_sn = pdu.cmd_sn
        self.immediate_data: bytes = b""
        self.data_out: Buffer | None = None
        self.transfer: Transfer | None = None
        self.wanted = 0
        self.revoked = False
        self.active = True
        self.scsi: object | None = None

    def data_in(self, length: int) -> memoryview:
        """``length`` writable bytes for a result that is given before the handler returns. Small ones are lent: the
        connection uses them again for the next task. A handler that must wait allocates its own."""
        return self.connection.lend(length)

    def begin_reading(self, length: int) -> None:
        """The owner waits for ``length`` bytes of Data-In in a buffer of its own; until ``end_reading`` they count."""
        self.connection.reading += length

    def end_reading(self, length: int) -> None:
        """Called once for each ``begin_reading``, aborted or not."""
        self.connection.reading -= length


class Session:
    """What the connections of one I_T nexus share. ``nexus`` is the owner's; every task carries it."""

    __slots__ = (
        "_last_ttt",
        "budget",
        "identity",
        "nexus",
        "numbering",
        "parameters",
        "tasks",
        "tsih",
        "waiting",
    )

    def __init__(
        self,
        identity: SessionIdentity,
        tsih: int,
        nexus: object,
        parameters: Parameters,
        cmd_sn: int,
        settings: Settings,
        worker: WorkerBudget,
    ) -> None:
        self.identity = identity
        self.tsih = tsih
        self.nexus = nexus
        self.parameters = parameters
        self.numbering = CommandNumbering(cmd_sn, settings.command_window)
        self.tasks: dict[int, Task] = {}
        self.waiting: deque[Task] = deque()
        """Writes for whose data no buffer is free yet, first come first served."""
        self.budget = SessionBudget(settings.session_buffers, worker, self.retry_waiting)
        self._last_ttt = 0

    @property
    def discovery(self) -> bool:
        return self.identity.session_type == "Discovery"

    def new_ttt(self) -> int:
        """A Target Transfer Tag that is not in use: they count up and are never the reserved one."""
        self._last_ttt = (self._last_ttt + 1) % RESERVED_TAG
        return self._last_ttt

    def abort(self, task: Task) -> None:
        """Revoke the task and forget its data. It will not be answered; late Data-Out for it is discarded."""
        task.revoked = True
        if task.active:
            self.end(task)
            self.numbering.grant(len(self.tasks))

    def end(self, task: Task) -> None:
        """The task is over: it leaves ``tasks`` and gives its buffer back."""
        task.active = False
        del self.tasks[task.itt]
        transfer = task.transfer
        if transfer is not None:
            task.transfer = None
            if transfer.waiting:
                self.waiting.remove(task)
            if transfer.reserved or transfer.unsolicited:
                self.budget.release(transfer.reserved, transfer.unsolicited)

    def close(self) -> None:
        """The connection is gone, and the session with it: buffers go back. Tasks are the owner's to abort before."""
        self.waiting.clear()
        self.budget.close()

    def abort_missing(self, event: TaskManagement) -> FunctionResponse:
        """The answer to ABORT TASK for a tag that names no task (RFC 7143 11.6.1): a command that is still to come
        is counted as received and never executed."""
        numbering = self.numbering
        if numbering.inside(event.ref_cmd_sn) and less(event.ref_cmd_sn, event.cmd_sn):
            numbering.plug(event.ref_cmd_sn)
            return FunctionResponse.COMPLETE
        return FunctionResponse.TASK_DOES_NOT_EXIST

    def retry_waiting(self) -> bool:
        """Go on with the writes that wait for a buffer, as far as the budget goes. True: none waits any more."""
        while self.waiting:
            task = self.waiting.popleft()
            if not task.connection.resume_transfer(task):
                self.waiting.appendleft(task)
                return False
        return True
