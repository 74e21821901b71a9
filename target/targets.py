"""The targets of one pool: which exist, who may log in, and the login stage of every connection handed over.

The authority on access: the front door only guesses whose socket it is. Not a target itself (``node``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator

from blockstore.api import Done, Group
from pdus.iscsi.login import LoginStatus
from target.access import find_client, host_of
from target.admission import Admitted
from target.iscsi.auth import ChapCredentials
from target.iscsi.events import Event, LoginStarted, SessionRequested
from target.iscsi.login import LoginPolicy
from target.node import FencedSession, NodeSession, SessionInfo, TargetNode
from target.portal import Stream

log = logging.getLogger("blockyard.target")

DRAIN_SECONDS = 3
"""How long the sessions of a deleted target may take to log out when asked."""


class PendingLogin:
    """A connection between its first Login Request and full feature phase."""

    __slots__ = ("client", "node")

    def __init__(self, node: TargetNode, client: Admitted) -> None:
        self.node = node
        self.client = client


class Targets:
    """All target nodes of one pool by IQN. Handler of every stream of the worker's portal."""

    def __init__(self, barrier: Callable[[Done], None], *, advertise: str | None = None) -> None:
        """``barrier`` is the pool's. ``advertise``: the ``host:port`` that SendTargets names; None: the address that
        the initiator reached."""
        self._barrier = barrier
        self._advertise = advertise
        self._nodes: dict[str, TargetNode] = {}

    def put(self, group: Group) -> None:
        """Serve ``group``, or serve it as it is now."""
        iqn = group.record.iqn
        node = self._nodes.get(iqn.lower())
        if node is None:
            node = self._nodes[iqn.lower()] = TargetNode(iqn, self._barrier, self._advertise)
        node.project(group)

    async def remove(self, iqn: str) -> None:
        """Stop serving: no login any more (02/03 ends the initiators' retries), sessions are asked to log out and
        dropped if they do not."""
        node = self._nodes.pop(iqn.lower(), None)
        if node is None:
            return
        node.retired = True
        node.drain(DRAIN_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(node.wait_empty(), DRAIN_SECONDS)
        node.drop("the target was removed")

    @contextlib.contextmanager
    def fenced(self, iqn: str, keep: Collection[str]) -> Iterator[None]:
        """While it lasts, no session of the target but those of the hosts in ``keep`` writes anything, and nobody logs
        in (03/01: tried again). What they were writing is revoked at once; at the end they are dropped."""
        node = self._nodes.get(iqn.lower())
        if node is None:
            yield
            return
        fenced = node.fence(keep)
        try:
            yield
        finally:
            node.end_fence(fenced)

    def seen(self, iqn: str, host: str) -> float | None:
        """When ``host`` last gave a sign of life in a session of the target, in seconds since 1970."""
        node = self._nodes.get(iqn.lower())
        return None if node is None else node.seen(host)

    def sessions(self) -> list[SessionInfo]:
        return [info for node in self._nodes.values() for info in node.infos()]

    def visible(self, initiator: str, address: str) -> list[str]:
        """IQNs that ``initiator`` may log in to from ``address``."""
        return [node.iqn for node in self._nodes.values() if find_client(node.clients, initiator, address)]

    # --- Handler -------------------------------------------------------------------------------------------------

    def on_event(self, stream: Stream, event: Event) -> None:
        context = stream.context
        if type(context) is NodeSession:
            context.node.on_event(context, event)
        elif type(context) is FencedSession:
            return  # nothing of it counts any more; its connection is about to be closed
        elif isinstance(event, LoginStarted):
            self._start_login(stream, event)
        elif isinstance(event, SessionRequested):
            self._establish(stream, event)

    def on_closed(self, stream: Stream) -> None:
        context = stream.context
        session = context.session if type(context) is FencedSession else context
        if type(session) is NodeSession:
            session.node.lose(session)

    def _start_login(self, stream: Stream, event: LoginStarted) -> None:
        node = self._nodes.get((event.target_name or "").lower())
        if node is None:
            stream.connection.refuse_login(LoginStatus.NOT_FOUND)
            log.info("login of %s from %s refused: no target %s", event.initiator_name, stream.peer, event.target_name)
            return
        client = find_client(node.clients, event.initiator_name, host_of(stream.peer))
        if client is None:
            stream.connection.refuse_login(LoginStatus.AUTHORIZATION_FAILURE)
            log.warning(
                "login of %s from %s to %s refused: no client of it", event.initiator_name, stream.peer, node.iqn
            )
            return
        stream.context = PendingLogin(node, client)
        stream.connection.accept_login(policy_of(client))

    def _establish(self, stream: Stream, event: SessionRequested) -> None:
        pending = stream.context
        assert isinstance(pending, PendingLogin)
        pending.node.establish(stream, event.identity, pending.client)


def policy_of(client: Admitted) -> LoginPolicy:
    """What the login must prove, from the client's record."""
    if client.chap is None:
        return LoginPolicy()
    mutual = client.mutual
    credentials = ChapCredentials(
        client.chap.user,
        client.chap.secret.encode(),
        mutual.user if mutual else None,
        mutual.secret.encode() if mutual else None,
    )
    return LoginPolicy(chap=credentials)
