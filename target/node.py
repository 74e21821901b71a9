"""A target node: one IQN's sessions joined to its device server (RFC 7143 4.1; SAM-5, SCSI target device).

It carries what ``target.iscsi`` understood to ``target.scsi`` and the answers back; neither knows the other. It
owns the TSIHs, the LUN map, the clients and the sessions. It knows no sockets: a ``Stream`` sends what is queued.

Invariant (permits): an answer that promises "nothing of this lands any more" (task management, login, logout) leaves
only after the store's barrier, since a revoked write may already be in the batch being written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from blockstore.api import Done, Group, StoreError
from pdus.iscsi.async_message import AsyncEvent
from pdus.iscsi.login import LoginStatus
from pdus.iscsi.task_management import Function, FunctionResponse
from target.access import find_client, host_of
from target.admission import Admitted, admitted
from target.iscsi.events import (
    DataArrived,
    Event,
    LogoutRequested,
    SendTargets,
    SessionIdentity,
    TaskManagement,
    TransferFailed,
)
from target.iscsi.session import Session, Task
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

    def __init__(
        self, node: TargetNode, stream: Stream, identity: SessionIdentity, tsih: int, *, read_only: bool
    ) -> None:
        self.node = node
        self.stream = stream
        self.identity = identity
        self.tsih = tsih
        self.nexus = Nexus(identity.initiator_name, identity.isid, read_only=read_only)
        self.connected = time.time()
        self.commands = 0
        self.read_bytes = 0
        self.write_bytes = 0

    @property
    def seen(self) -> float:
        """When the initiator last gave a sign of life, in seconds since 1970."""
        return time.time() - self.stream.silence

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


class FencedSession:
    """In the place of a session whose host has lost the group: whatever still arrives means nothing."""

    __slots__ = ("session",)

    def __init__(self, session: NodeSession) -> None:
        self.session = session


def nexus_key(identity: SessionIdentity) -> tuple[str, bytes]:
    """What makes two sessions the same I_T nexus: there is one portal group, and names have no case (4.2.7.1)."""
    return identity.initiator_name.lower(), identity.isid


V = TypeVar("V")


def _changed(before: Mapping[int, V], now: Mapping[int, V]) -> list[int]:
    """LUNs that were there before, with another value."""
    return [lun for lun, value in now.items() if before.get(lun, value) != value]


class TargetNode:
    """One target. ``barrier`` is its pool's."""

    def __init__(self, iqn: str, barrier: Callable[[Done], None], advertise: str | None = None) -> None:
        self.iqn = iqn
        self._advertise = advertise
        self.device_server = DeviceServer()
        self.clients: tuple[Admitted, ...] = ()
        self.sessions: dict[tuple[str, bytes], NodeSession] = {}
        """By initiator name and ISID: with the one portal group that is the I_T nexus."""
        self._barrier = barrier
        self.retired = False
        """No session begins any more: the group is being deleted or rolled back."""
        self._fences = 0
        """How many are being put up at the moment; meanwhile nobody logs in."""
        self._seen: dict[str, float] = {}
        """Attached hosts that had a session and have it no more: when they gave their last sign of life."""
        self._sizes: dict[int, int] = {}
        self._write_through: dict[int, bool] = {}
        self._last_tsih = 0
        self._empty = asyncio.Event()
        self._empty.set()

    # --- what it serves ------------------------------------------------------------------------------------------

    def project(self, group: Group) -> None:
        """Take over clients and volumes of ``group``, and tell the sessions what changed."""
        self._admit(admitted(group.record))
        names = {volume.lun: volume.name for volume in group.record.volumes}
        if self.device_server.set_units(group.volumes, names):
            self._announce_luns()
        sizes = {lun: volume.size for lun, volume in group.volumes.items()}
        for lun in _changed(self._sizes, sizes):
            self.device_server.capacity_changed(lun)
        write_through = {lun: volume.write_through for lun, volume in group.volumes.items()}
        for lun in _changed(self._write_through, write_through):
            self.device_server.mode_changed(lun)
        self._sizes, self._write_through = sizes, write_through

    def _admit(self, clients: tuple[Admitted, ...]) -> None:
        """A client that is no longer allowed, or whose secrets changed, loses its sessions now."""
        before, self.clients = self.clients, clients
        for session in tuple(self.sessions.values()):
            initiator, address = session.identity.initiator_name, host_of(session.stream.peer)
            now = find_client(clients, initiator, address)
            if now is None or now != find_client(before, initiator, address):
                session.stream.close("the client's access changed")
        attached = {client.initiator.lower() for client in clients if client.generation}
        self._seen = {host: when for host, when in self._seen.items() if host in attached}

    def _announce_luns(self) -> None:
        self._notify(AsyncEvent.SCSI, sense_data=sense.REPORTED_LUNS_DATA_HAS_CHANGED.fixed())

    def _notify(self, event: AsyncEvent, *, sense_data: bytes = b"", parameter3: int = 0) -> None:
        """Send an Asynchronous Message to every session, but not behind the answer to a Logout."""
        for session in self.sessions.values():
            if not session.stream.connection.closing:
                session.stream.connection.send_async(event, sense=sense_data, parameter3=parameter3)
                session.stream.wake()

    def infos(self) -> Iterable[SessionInfo]:
        return [session.info() for session in self.sessions.values()]

    # --- fencing -------------------------------------------------------------------------------------------------

    def fence(self, keep: Collection[str]) -> list[NodeSession]:
        """Revoke all that is being written by initiators other than ``keep``, take nothing more from them, and let
        nobody log in, until ``end_fence``. What was revoked may still be in the batch being written: whoever fences
        waits for the store (``Group.update``, or the barrier) before it promises anything."""
        self._fences += 1
        kept = {host.lower() for host in keep}
        fenced = [each for each in self.sessions.values() if each.identity.initiator_name.lower() not in kept]
        for session in fenced:
            self._abort_all(session)
            session.stream.context = FencedSession(session)
        return fenced

    def end_fence(self, fenced: Iterable[NodeSession]) -> None:
        """Drop the sessions that ``fence`` returned. From now on the group's record says who may log in."""
        self._fences -= 1
        for session in fenced:
            session.stream.close("its host has lost the group")

    def seen(self, host: str) -> float | None:
        """When ``host`` last gave a sign of life in a session, in seconds since 1970; None: it had none, as far as is
        known here."""
        name = host.lower()
        open_now = [each.seen for each in self.sessions.values() if each.identity.initiator_name.lower() == name]
        return max(open_now, default=self._seen.get(name))

    # --- sessions ------------------------------------------------------------------------------------------------

    def establish(self, stream: Stream, identity: SessionIdentity, client: Admitted) -> None:
        """Enter full feature phase as ``client``, or refuse. A session of the same nexus is reinstated: it ends, and
        what it was writing is committed or dropped, before the login is answered (RFC 7143 6.3.5). The same goes for
        a session that was lost just now: hence the barrier before every login."""
        refusal = self._refusal(client)
        if refusal is not None:
            stream.connection.refuse_login(refusal)
            stream.wake()
            return
        old = self.sessions.get(nexus_key(identity))
        if old is not None:
            old.stream.close("session reinstated by a new login")
        self._after_barrier(stream, "login", partial(self._begin, stream, identity, client))

    def _begin(self, stream: Stream, identity: SessionIdentity, client: Admitted) -> None:
        key = nexus_key(identity)
        if key in self.sessions or self._refusal(client) is not None:
            # While the store was settling another login of this nexus was answered, or the group has changed
            self.establish(stream, identity, client)
            return
        session = NodeSession(self, stream, identity, self._new_tsih(), read_only=client.read_only)
        self.sessions[key] = session
        self._empty.clear()
        stream.context = session
        self.device_server.add_nexus(session.nexus)
        stream.connection.establish(session.tsih, session.nexus)
        log.info("%s logged in to %s from %s", identity.initiator_name, self.iqn, stream.peer)
        stream.wake()

    def _refusal(self, client: Admitted) -> LoginStatus | None:
        """Why nobody, or not this client, may log in: the group may change while an initiator proves who it is."""
        if self.retired or self._fences:
            return LoginStatus.SERVICE_UNAVAILABLE  # retried; whoever comes again is told where the target has gone
        return None if client in self.clients else LoginStatus.AUTHORIZATION_FAILURE

    def _after_barrier(self, stream: Stream, what: str, then: Callable[[], None]) -> None:
        """Run ``then`` once everything revoked so far is dropped or was committed before. If the store cannot tell
        which, nothing is answered."""

        def settled(error: StoreError | None) -> None:
            if stream.closed:
                return
            if error is None:
                stream.guard(then)
            else:
                stream.close(f"{what} not completed: {error}")

        self._barrier(settled)

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
        key = nexus_key(session.identity)
        if self.sessions.get(key) is session:
            del self.sessions[key]
        self._remember(session)
        if not self.sessions:
            self._empty.set()

    def _remember(self, session: NodeSession) -> None:
        host = session.identity.initiator_name.lower()
        if any(client.generation and client.initiator.lower() == host for client in self.clients):
            self._seen[host] = session.seen

    def _abort_all(self, session: NodeSession) -> None:
        owner = session.stream.connection.session
        if owner is not None:
            self._abort(owner, tuple(owner.tasks.values()))

    def _abort(self, owner: Session, tasks: Collection[Task]) -> None:
        self.device_server.abort(*tasks)
        for task in tasks:
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
            stream.guard(task.connection.respond, task, result.status, result.sense, result.data)
        elif not task.revoked:
            # The store cannot say whether the write happened; after a reconnect the initiator finds out.
            stream.close("a write is undecided")
        stream.wake()

    def _name_itself(self, session: NodeSession, event: SendTargets) -> None:
        """SendTargets in a normal session names only this target (RFC 7143, appendix C)."""
        mine = event.which.lower() in ("", self.iqn.lower())
        address = self._advertise or local_address(session.stream.sock)
        session.stream.connection.answer_send_targets(event, [(self.iqn, [address])] if mine else [])

    def _log_out(self, session: NodeSession, event: LogoutRequested) -> None:
        self._abort_all(session)
        stream = session.stream

        def answer() -> None:
            stream.connection.answer_logout(event)
            stream.wake()

        self._after_barrier(stream, "logout", answer)

    # --- task management (RFC 7143 4.2.3, 11.5, 11.6) --------------------------------------------------------------

    def _manage(self, session: NodeSession, event: TaskManagement) -> None:
        try:
            response = self._apply(session, event)
        except NoSuchUnit:
            response = FunctionResponse.LUN_DOES_NOT_EXIST
        stream = session.stream

        def answer() -> None:
            stream.connection.respond_task_management(event, response)
            stream.wake()
            if event.function == Function.TARGET_COLD_RESET:
                stream.flush()
                self.drop("target cold reset")

        self._after_barrier(stream, "task management", answer)

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
        self._abort(owner, (task,))
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
        self._abort(
            owner,
            [task for task in owner.tasks.values() if id(task) not in queued and (lun is None or task.lun == lun)],
        )

    def drain(self, seconds: int) -> None:
        """Ask every session to log out within ``seconds`` (RFC 7143 11.9.1, event 1)."""
        self._notify(AsyncEvent.REQUEST_LOGOUT, parameter3=seconds)

    async def wait_empty(self) -> None:
        """Until no session is left."""
        await self._empty.wait()

    def drop(self, reason: str) -> None:
        """End every session now."""
        for session in tuple(self.sessions.values()):
            session.stream.close(reason)
