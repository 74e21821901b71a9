"""What every phase of a connection stands on: the outcome, StatSN, digests, buffers, the out-queue.

No protocol decisions: ``commands`` and ``requests`` answer PDUs with what is here, ``connection`` feeds and directs
them. Invariant: every status-bearing PDU takes the next StatSN at the moment it is queued, so they leave in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pdus.codec import Buffer
from pdus.iscsi.async_message import AsyncMessage
from pdus.iscsi.bhs import BHS_SIZE
from pdus.iscsi.command import ScsiResponse
from pdus.iscsi.data import DataIn
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import DIGEST_SIZE
from pdus.iscsi.logout import LogoutResponse
from pdus.iscsi.nop import NopIn
from pdus.iscsi.r2t import ReadyToTransfer
from pdus.iscsi.reject import Reject, RejectReason
from pdus.iscsi.task_management import TaskManagementResponse
from pdus.iscsi.text import TextResponse
from target.iscsi.budget import WorkerBudget
from target.iscsi.discovery import TextExchange
from target.iscsi.events import (
    Event,
)
from target.iscsi.lending import Lender
from target.iscsi.login import Login
from target.iscsi.negotiation import LOGIN_MAX_SEGMENT
from target.iscsi.output import COPY_LIMIT, Output
from target.iscsi.receive import Landing, ReceiveBuffer
from target.iscsi.serial import MASK
from target.iscsi.session import Session
from target.iscsi.settings import Settings


class Channel:
    """State and output of one connection.

    ``events`` are to be popped by the owner; ``failed`` is a reason to send what is queued and then close; ``closing``
    means to close when everything is sent; ``session`` is None during login; ``owner`` is the owner's own; ``wake`` is
    called when output was queued by another connection's doing.
    """

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
        self.reading = 0
        """Bytes of Data-In that tasks are waiting for from the store, in buffers of their own."""
        self._scratch = memoryview(b"")
        self._lender = Lender()
        self._text: TextExchange | None = None
        self._managing = 0  # task management requests that the owner has not answered
        self._heard = now
        self._commanded = now
        self._last_exp_cmd_sn = 0
        self._pinged: float | None = None
        # Reused headers of the two hottest answers: only the fields that differ are set each time
        self._data_in = DataIn(final=True, has_status=True)
        self._good = ScsiResponse()
        self._hot_limit = 0

    # --- output -------------------------------------------------------------------------------------------------------

    @property
    def out_bytes(self) -> int:
        """Bytes queued and not yet sent."""
        return self._output.size

    @property
    def unsent(self) -> int:
        """Bytes that are queued or will be without another command: what bounds the memory of a peer's reads."""
        return self._output.size + self.reading

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
            return self._lender.lend(length)
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

    def _data_intact(self, at: int, end: int) -> bool:
        view = self._receive.view
        return digest(view[at:end]) == view[end : end + DIGEST_SIZE]

    def _header(self, start: int) -> bytes:
        return bytes(self._receive.view[start : start + BHS_SIZE])

    def _set_hot_limit(self) -> None:
        """Up to which expected length ``respond`` takes its short way: one PDU, copied, no digests."""
        assert self.session is not None
        plain = not (self._header_digest or self._data_digest)
        self._hot_limit = min(COPY_LIMIT, self._max_send, self.session.parameters.max_burst) if plain else -1
