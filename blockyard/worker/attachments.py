"""Who has a group: giving it to a host, taking it over, giving it up, and whether a holder lives.

The order of a change is the promise of fencing: what the losers are writing is revoked in memory, the new generation
and its secret are journalled and made durable, the losers' sessions are dropped, and only then is anything answered.
Nothing waits for a host: whether a holder is alive is told, never asked. Invariants: at any moment the attachments of a
group do not exclude each other; a generation has one secret, which the same host gets again however often it asks.
"""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from blockstore import api
from blockyard.errors import InUse, Invalid
from blockyard.model import ChapCredentials
from blockyard.model.attachments import Attached, Attachment, AttachMode, AttachRequest
from blockyard.worker.records import product_errors, volume_model, wait_for_store

SECRET_LENGTH = 16  # characters; the most that Windows takes; RFC 7143 9.2.1 wants 12 bytes
SECRET_ALPHABET = string.ascii_letters + string.digits  # no shell, form or option parser mangles them
MAX_ATTACHMENTS = 256  # of a group; guessed: each costs some 300 bytes in every journalled change of the group
FIRST_LOGIN_SECONDS = 60.0  # that a host which was not seen yet counts as alive; from the seam with the plugins


class OpenSession(Protocol):
    @property
    def target(self) -> str: ...
    @property
    def initiator(self) -> str: ...


class Targets(Protocol):
    """What is used of ``target.targets.Targets``."""

    def sessions(self) -> Sequence[OpenSession]: ...
    def fenced(self, iqn: str, keep: Collection[str]) -> AbstractContextManager[None]: ...
    def seen(self, iqn: str, host: str) -> float | None: ...


class Attachments:
    def __init__(
        self,
        pool: api.Pool,
        targets: Targets,
        show: Callable[[api.Group], object],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``show`` brings a group's target up to its record, and tells the daemon. ``now``: seconds since 1970."""
        self._pool = pool
        self._targets = targets
        self._show = show
        self._now = now
        self._started = now()
        self._changing = asyncio.Lock()

    async def attach(self, group: api.Group, host: str, asked: AttachRequest) -> Attached:
        """Idempotent for the same host and mode. Raises InUse when somebody's hold excludes the host."""
        async with self._changing:
            own = _find(group, host)
            mode = api.AttachMode(asked.mode.value)
            if own is None or own.mode is not mode:
                keep = _compatible(group, host, mode)
                if not asked.take_over:
                    self._refuse_holders(group, host, keep)
                if len(keep) >= MAX_ATTACHMENTS:
                    raise Invalid(f"group {group.record.name} is attached to {len(keep)} hosts: more are not allowed")
                own = self._new_attachment(group, host, mode)
                await self._change(group, (*keep, own))
            return Attached(
                attachment=self._model(group, own),
                chap=ChapCredentials(user=own.chap.user, secret=own.chap.secret),
            )

    async def release(self, group: api.Group, host: str) -> None:
        """Nothing of the host lands any more when this returns. Idempotent."""
        async with self._changing:
            own = _find(group, host)
            if own is not None:
                await self._change(group, [each for each in group.record.attachments if each is not own])

    def show(self, groups: Iterable[api.Group]) -> tuple[Attachment, ...]:
        return tuple(self._model(group, each) for group in groups for each in group.record.attachments)

    # --- changing ----------------------------------------------------------------------------------------------------

    def _new_attachment(self, group: api.Group, host: str, mode: api.AttachMode) -> api.AttachmentRecord:
        secret = api.ChapSecret(host, "".join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_LENGTH)))
        return api.AttachmentRecord(host, mode, group.record.attach_generation + 1, self._now(), secret)

    async def _change(self, group: api.Group, attachments: Sequence[api.AttachmentRecord]) -> None:
        """Revoke, journal, flush, drop; see the head of this file."""
        keep = [each.host for each in attachments if each in group.record.attachments]
        with self._targets.fenced(group.record.iqn, keep):
            with product_errors():
                future = group.update(attachments=attachments)
            await wait_for_store(future)
            self._show(group)
        # Had the target been put up anew meanwhile (a rollback), sessions were dropped that no fence had revoked.
        await wait_for_store(self._barrier())

    def _barrier(self) -> Future[None]:
        future: Future[None] = Future()

        def settled(error: api.StoreError | None) -> None:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._pool.barrier(settled)
        return future

    # --- refusing ----------------------------------------------------------------------------------------------------

    def _refuse_holders(self, group: api.Group, host: str, keep: Collection[api.AttachmentRecord]) -> None:
        for each in group.record.attachments:
            if each not in keep:
                raise self._held(group, host, each)
        if group.record.attachments:
            return
        clients = sorted({each.initiator for each in self._targets.sessions() if each.target == group.record.iqn})
        if clients:
            raise InUse(
                f"group {group.record.name} has open session(s) of its client(s) {', '.join(clients)}, which could "
                "write on: log out there first, or take it over",
                holder=clients[0],
                alive=True,
            )

    def _held(self, group: api.Group, host: str, holder: api.AttachmentRecord) -> InUse:
        shown = self._model(group, holder)
        what = f"group {group.record.name} is attached to {holder.host} ({holder.mode.value})"
        if holder.host.lower() == host.lower():
            next_step = "release it first to attach it in another mode"
        else:
            next_step = "release it there, or take it over"
        return InUse(
            f"{what}, {self._sign_of_life(shown)}: {next_step}",
            holder=holder.host,
            alive=shown.alive,
            seen=shown.seen,
        )

    def _sign_of_life(self, shown: Attachment) -> str:
        if shown.alive:
            return "which is alive" if shown.sessions else "which has not logged in yet"
        if shown.seen is None:
            return f"which has not logged in since {_time_text(max(shown.created, self._started))}"
        return f"which is not alive: last seen {_time_text(shown.seen)}, {self._now() - shown.seen:.0f} s ago"

    # --- showing -----------------------------------------------------------------------------------------------------

    def _model(self, group: api.Group, own: api.AttachmentRecord) -> Attachment:
        record, host = group.record, own.host.lower()
        sessions = sum(
            each.target == record.iqn and each.initiator.lower() == host for each in self._targets.sessions()
        )
        seen = self._targets.seen(record.iqn, own.host)
        waiting = seen is None and self._now() - max(own.created, self._started) < FIRST_LOGIN_SECONDS
        return Attachment(
            group=record.name,
            host=own.host,
            mode=AttachMode(own.mode.value),
            generation=own.generation,
            target=record.iqn,
            volumes=tuple(volume_model(group, each) for each in sorted(record.volumes, key=lambda each: each.lun)),
            created=own.created,
            sessions=sessions,
            alive=sessions > 0 or waiting,
            seen=seen,
            chap_user=own.chap.user,
        )


def _find(group: api.Group, host: str) -> api.AttachmentRecord | None:
    # RFC 7143 4.2.7.1: iSCSI names are compared case-insensitively
    return next((each for each in group.record.attachments if each.host.lower() == host.lower()), None)


def _compatible(group: api.Group, host: str, mode: api.AttachMode) -> list[api.AttachmentRecord]:
    """The attachments of other hosts that may stand beside a new one of ``mode``: readers see one content, and
    writers know of each other."""
    if mode is api.AttachMode.SINGLE_WRITER:
        return []
    return [each for each in group.record.attachments if each.mode is mode and each.host.lower() != host.lower()]


def _time_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
