"""What a connection tells its owner: frozen values in the order in which they happened. No behaviour.

A SCSI command's event is the ``Task`` itself (``session``), so that the hot path makes one object per command.
"""

from __future__ import annotations

from dataclasses import dataclass

from target.iscsi.session import Task


@dataclass(frozen=True, slots=True)
class LoginStarted:
    """The first Login Request's keys are complete. Nothing more is read until ``accept_login`` or ``refuse_login``.

    ``session_type`` is "Normal" or "Discovery"; ``target_name`` may be None only for discovery.
    """

    initiator_name: str
    initiator_alias: str
    session_type: str
    target_name: str | None
    isid: bytes
    tsih: int
    cid: int


SessionIdentity = LoginStarted
"""Who a session belongs to is what the login's first request said."""


@dataclass(frozen=True, slots=True)
class SessionRequested:
    """Authenticated and negotiated: nothing more is read until ``establish`` or ``refuse_login``."""

    identity: SessionIdentity


@dataclass(frozen=True, slots=True)
class DataArrived:
    """All the Data-Out that was wanted is in ``task.data_out``."""

    task: Task


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """The initiator broke off or garbled the task's Data-Out. The task is revoked and already answered with CHECK
    CONDITION: take it out of the task set, if it is there."""

    task: Task


@dataclass(frozen=True, slots=True)
class TaskManagement:
    """A task management request. ``lun`` as in Task; ``cmd_sn`` is the request's own."""

    itt: int
    function: int
    lun: int
    referenced_task_tag: int
    ref_cmd_sn: int
    cmd_sn: int
    immediate: bool


@dataclass(frozen=True, slots=True)
class SendTargets:
    """``which`` is "All", a target name, or empty for the session's own target."""

    which: str
    itt: int


@dataclass(frozen=True, slots=True)
class LogoutRequested:
    """``reason`` is a LogoutReason (0 session, 1 connection: the same with one connection). No commands follow."""

    itt: int
    reason: int
    cid: int


Event = (
    LoginStarted
    | SessionRequested
    | Task
    | DataArrived
    | TransferFailed
    | TaskManagement
    | SendTargets
    | LogoutRequested
)
