"""A target node: one IQN's sessions joined to its device server (RFC 7143 4.1; SAM-5, SCSI target device).

It carries what ``target.iscsi`` understood to ``target.scsi`` and the answers back; neither knows the other. It
owns the TSIHs, the LUN map, the clients and the sessions. It knows no sockets: a ``Stream`` sends what is queued.

Invariant (permits): an answer that promises "nothing of this lands any more" (task management, reinstating login,
logout) leaves only after the store's barrier, since a revoked write may already be in the batch being written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blockstore.api import ClientRecord, Done, Group, StoreError
from pdus.iscsi.async_message import AsyncEvent
from pdus.iscsi.task_management import Function, FunctionResponse
from target.access import find_client, host_of
from target.iscsi.events import (
    DataArrived,
    Event,
    LogoutRequested,
    SendTargets,
    SessionIdentity,
    TaskManagement,
    TransferFailed,
)
from target.iscsi.session import Task
from target.portal import Stream, local_address
from target.scsi import sense
from target.scsi.device_server import UNANSWERED, DeviceServer, NoSuchUnit
from target.scsi.nexus import Nexus
from target.scsi.result import Result

log = logging.getLogger("blockyard.target")

MAX_TSIH = 0xFFFF


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One logged-in session, as an operator sees it. ``connected`` is seconds since 1970; bytes are payload."""

    target: str
    initiator: str
    initiator_alias: str
    isid: str
    tsih: int
    address: str
    connected: float
    auth: str
    digests: str
    commands: int
    read_bytes: int
    write_bytes: int


class NodeSession:
    """One I_T nexus with its one connection (MaxConnections is 1)."""

    __slots__ = (
        "commands",
        "connected",
        "identity",
        "nexus",
        "node",
        "read_bytes",
        "stream",
        "tsih",
        "write_bytes",
    )

    def __init__(self, node: TargetNode, stream: Stream, identity: SessionIdentity, tsih: int) -> None:
        self.node = node
        self.stream = stream
        self.identity = identity
        self.tsih = tsih
        self.nexus = Nexus(identity.initiator_name, identity.isid)
        self.connected = time.time()
        self.commands = 0
        self.read_bytes = 0
        self.write_bytes = 0

    def info(self) -> SessionInfo:
        connection = self.stream.connection
        return SessionInfo(
            self.node.iqn,
            self.identity.initiator_name,
            self.identity.initiator_alias,
            self.identity.isid.hex(),
            self.tsih,
            self.stream.peer,
            self.connected,
            connection.auth,
            connection.digests,
            self.commands,
            self.read_bytes,
            self.write_bytes,
        )


class TargetNode:
    """One target. ``barrier`` is its pool's."""

    def __init__(self, iqn: str, barrier: Callable[[Done], None]) -> None:
        self.iqn = iqn
        self.device_server = DeviceServer()
        self.clients: tuple[ClientRecord, ...] = ()
        self.sessions: dict[tuple[str, bytes], NodeSession] = {}
        """By initiator name and ISID: with the one portal group that is the I_T nexus."""
        self._barrier = barrier
        self._sizes: dict[int, int] = {}
        self._last_tsih = 0
        self._empty = asyncio.Event()
        self._empty.set()

    # --- what it serves ------------------------------------------------------------------------------------------

    def project(self, group: Group) -> None:
        """Take over clients and volumes of ``group``, and tell the sessions what changed."""
        self._admit(group.record.clients)
        names = {volume.lun: volume.name for volume in group.record.volumes}
        if self.device_server.set_units(group.volumes, names):
            self._announce_luns()
        sizes = {lun: volume.size for lun, volume in group.volumes.items()}
        for lun, size in sizes.items():
            if self._sizes.get(lun, size) != size:
                self.device_server.capacity_changed(lun)
        self._sizes = sizes

    def _admit(self, clients: tuple[ClientRecord, ...]) -> None:
        """A client that is no longer allowed, or whose secrets changed, loses its sessions now."""
        before, self.clients = self.clients, clients
        for session in tuple(self.sessions.values()):
            initiator, address = session.identity.initiator_name, host_of(session.stream.peer)
            now = find_client(clients, initiator, address)
            if now is None or now != find_client(before, initiator, address):
                session.stream.close("the client's access changed")

    def _announce_luns(self) -> None:
        data = sense.REPORTED_LUNS_DATA_HAS_CHANGED.fixed()
        for session in self.sessions.values():
            session.stream.connection.send_async(AsyncEvent.SCSI, sense=data)
            session.stream.wake()

    def infos(self) -> Iterable[SessionInfo]:
        return [session.info() for session in self.sessions.values()]

    # --- sessions ------------------------------------------------------------------------------------------------

    def establish(self, stream: Stream, identity: SessionIdentity, then: Callable[[], None]) -> None:
        """Enter full feature phase. A session of the same nexus is reinstated: it ends, and what it was writing is
        committed or dropped, before the login is answered (RFC 7143 6.3.5). ``then`` runs after the answer."""
        key = (identity.initiator_name, identity.isid)
        old = self.sessions.get(key)
        if old is not None:
            old.stream.close("session reinstated by a new login")

        def settled(error: StoreError | None) -> None:
            if stream.closed:
                return
            rival = self.sessions.get(key)
            if error is not None or rival is not None:
                stream.close(f"login not completed: {error or 'another login of the same nexus was faster'}")
                return
            session = NodeSession(self, stream, identity, self._new_tsih())
            self.sessions[key] = session
            self._empty.clear()
            stream.context = session
            self.device_server.add_nexus(session.nexus)
            stream.connection.establish(session.tsih, session.nexus)
            then()
            stream.wake()

        self._settle(settled, needed=old is not None)

    def _settle(self, settled: Done, *, needed: bool) -> None:
        if needed:
            self._barrier(settled)
        else:
            settled(None)

    def _new_tsih(self) -> int:
        used = {session.tsih for session in self.sessions.values()}
        while True:
            self._last_tsih = self._last_tsih % MAX_TSIH + 1
            if self._last_tsih not in used:
                return self._last_tsih

    def lose(self, session: NodeSession) -> None:
        """The connection is gone, and with ErrorRecoveryLevel 0 so is the session: no task of it may write."""
        self._abort_all(session)
        self.device_server.remove_nexus(session.nexus)
        if self.sessions.get((session.identity.initiator_name, session.identity.isid)) is session:
            del self.sessions[session.identity.initiator_name, session.identity.isid]
        if not self.sessions:
            self._empty.set()

    def _abort_all(self, session: NodeSession) -> None:
        owner = session.stream.connection.session
        if owner is None:
            return
        for task in tuple(owner.tasks.values()):
            self.device_server.abort(task)
            owner.abort(task)

    # --- events in full feature phase ----------------------------------------------------------------------------

    def on_event(self, session: NodeSession, event: Event) -> None:
        # The two hot ones first; the rest by kind.
        if type(event) is Task:
            self._start(session, event)
        elif type(event) is DataArrived:
            if not event.task.revoked:
                self._execute(event.task)
        elif isinstance(event, TransferFailed):
            self.device_server.abort(event.task)
        elif isinstance(event, TaskManagement):
            self._manage(session, event)
        elif isinstance(event, LogoutRequested):
            self._log_out(session, event)
        elif isinstance(event, SendTargets):
            self._name_itself(session, event)

    def _start(self, session: NodeSession, task: Task) -> None:
        if task.revoked:
            return
        session.commands += 1
        if task.write:
            session.write_bytes += task.expected_length
        elif task.read:
            session.read_bytes += task.expected_length
        admitted = self.device_server.admit(task)
        connection = session.stream.connection
        if type(admitted) is not int:
            assert isinstance(admitted, Result)
            connection.respond(task, admitted.status, admitted.sense, admitted.data)
        elif admitted == 0 or connection.want_data(task, admitted):
            self._execute(task)

    def _execute(self, task: Task) -> None:
        result = self.device_server.execute(task, self._finish)
        if result is not None:
            task.connection.respond(task, result.status, result.sense, result.data)

    def _finish(self, task: Task, result: Result) -> None:
        """A task that had to wait has ended."""
        stream = task.connection.owner
        assert isinstance(stream, Stream)
        if result is not UNANSWERED:
            task.connection.respond(task, result.status, result.sense, result.data)
            stream.wake()
        elif not task.revoked:
            # The store cannot say whether the write happened; after a reconnect the initiator finds out.
            stream.close("a write is undecided")

    def _name_itself(self, session: NodeSession, event: SendTargets) -> None:
        """SendTargets in a normal session names only this target (RFC 7143, appendix C)."""
        mine = event.which in ("", self.iqn)
        address = local_address(session.stream.sock)
        session.stream.connection.answer_send_targets(event, [(self.iqn, [address])] if mine else [])

    def _log_out(self, session: NodeSession, event: LogoutRequested) -> None:
        self._abort_all(session)
        stream = session.stream

        def settled(error: StoreError | None) -> None:
            if stream.closed:
                return
            if error is not None:
                stream.close(f"logout not completed: {error}")
                return
            stream.connection.answer_logout(event)
            stream.wake()

        self._barrier(settled)

    # --- task management (RFC 7143 4.2.3, 11.5, 11.6) --------------------------------------------------------------

    def _manage(self, session: NodeSession, event: TaskManagement) -> None:
        try:
            response = self._apply(session, event)
        except NoSuchUnit:
            response = FunctionResponse.LUN_DOES_NOT_EXIST
        stream = session.stream

        def settled(error: StoreError | None) -> None:
            if stream.closed:
                return
            if error is not None:
                stream.close(f"task management not completed: {error}")
                return
            stream.connection.respond_task_management(event, response)
            stream.wake()
            if event.function == Function.TARGET_COLD_RESET:
                self.drop("target cold reset")

        self._barrier(settled)

    def _apply(self, session: NodeSession, event: TaskManagement) -> FunctionResponse:
        server, nexus, lun = self.device_server, session.nexus, event.lun
        match event.function:
            case Function.ABORT_TASK:
                return self._abort_task(session, event)
            case Function.ABORT_TASK_SET:
                self._forget(server.abort_task_set(nexus, lun))
                self._forget_waiting(session, lun)
            case Function.CLEAR_TASK_SET:
                self._forget(server.clear_task_set(nexus, lun))
                self._forget_waiting(session, lun)
            case Function.LOGICAL_UNIT_RESET:
                self._forget(server.logical_unit_reset(nexus, lun))
                self._forget_waiting(session, lun)
            case Function.TARGET_WARM_RESET | Function.TARGET_COLD_RESET:
                self._forget(server.target_reset(nexus))
                self._forget_waiting(session, None)
            case Function.TASK_REASSIGN:
                return FunctionResponse.REASSIGNMENT_NOT_SUPPORTED
            case _:
                return FunctionResponse.NOT_SUPPORTED
        return FunctionResponse.COMPLETE

    def _abort_task(self, session: NodeSession, event: TaskManagement) -> FunctionResponse:
        owner = session.stream.connection.session
        assert owner is not None
        task = owner.tasks.get(event.referenced_task_tag)
        if task is None or task.lun != event.lun:
            return owner.abort_missing(event)
        self.device_server.abort(task)
        owner.abort(task)
        return FunctionResponse.COMPLETE

    def _forget(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            session = task.connection.session
            if session is not None:
                session.abort(task)

    def _forget_waiting(self, session: NodeSession, lun: int | None) -> None:
        """Tasks of this session that came before the request but were not yet admitted: the events of this tick
        are handled in order, so nothing younger than the request is here."""
        owner = session.stream.connection.session
        assert owner is not None
        queued = {id(event) for event in session.stream.connection.events if type(event) is Task}
        for task in tuple(owner.tasks.values()):
            if id(task) not in queued and (lun is None or task.lun == lun):
                self.device_server.abort(task)
                owner.abort(task)

    def drain(self, seconds: int) -> None:
        """Ask every session to log out within ``seconds`` (RFC 7143 11.9.1, event 1)."""
        for session in self.sessions.values():
            session.stream.connection.send_async(AsyncEvent.REQUEST_LOGOUT, parameter3=seconds)
            session.stream.wake()

    async def wait_empty(self) -> None:
        """Until no session is left."""
        await self._empty.wait()

    def drop(self, reason: str) -> None:
        """End every session now."""
        for session in tuple(self.sessions.values()):
            session.stream.close(reason)
