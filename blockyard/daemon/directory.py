"""Whose login is it, and what may a discovery session see: the daemon's projection, asked by the front door.

A guess that must be safe, not an authority: the worker checks again. Invariant: an unknown target is answered 02/03,
which ends Linux's retries for good, only when every pool has said what it holds; all that concerns a pool that is not
serving, or a group that is between two pools, is answered 03/01, which is retried; and no two pools get one's logins.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from blockyard.daemon.pool_worker import PoolWorker
from blockyard.model import Group
from blockyard.model.moves import owner
from pdus.iscsi.login import LoginStatus
from target.access import find_client
from target.front_door import Route

Key = tuple[PoolWorker, str]
"""What a route leads to: the pool, and the IQN that was asked for."""


class YardDirectory:
    def __init__(self, pools: Mapping[str, PoolWorker]) -> None:
        self._pools = pools

    def route(self, target: str, initiator: str, address: str) -> Route | LoginStatus:
        copies = self._find(target)
        if not copies:
            all_known = all(pool.reported for pool in self._pools.values())
            return LoginStatus.NOT_FOUND if all_known else LoginStatus.SERVICE_UNAVAILABLE
        found = owner(copies)
        if found is None:
            return LoginStatus.SERVICE_UNAVAILABLE
        pool, group = found
        if not pool.serving:
            return LoginStatus.SERVICE_UNAVAILABLE
        if not _admits(group, initiator, address):
            return LoginStatus.AUTHORIZATION_FAILURE
        return Route((pool, group.iqn))

    def visible(self, initiator: str, address: str) -> list[str]:
        """Targets of pools that are down included: the initiator that asks will try them again."""
        copies: dict[str, list[tuple[PoolWorker, Group]]] = {}
        for pool in self._pools.values():
            for group in pool.groups.values():
                copies.setdefault(group.iqn, []).append((pool, group))
        return [iqn for iqn, found in copies.items() if any(_admits(each, initiator, address) for each in _say(found))]

    def hand_over(self, key: object, sock: socket.socket, received: bytes, replied: int) -> None:
        """Give the connection to the worker that ``route`` named. If that one died meanwhile the connection is closed,
        and the initiator tries again."""
        assert isinstance(key, tuple)
        pool, iqn = key
        pool.hand_over(iqn, sock, received, replied)

    def _find(self, target: str) -> list[tuple[PoolWorker, Group]]:
        """Every copy of it: more than one while it moves from pool to pool."""
        wanted = target.lower()  # RFC 7143 4.2.7.1: names are compared case-insensitively
        return [(pool, group) for pool in self._pools.values() for group in pool.groups.values() if group.iqn == wanted]


def _say(copies: list[tuple[PoolWorker, Group]]) -> list[Group]:
    """Those whose word counts: the group's; all, while it is not known which that is."""
    found = owner(copies)
    return [group for _, group in copies] if found is None else [found[1]]


def _admits(group: Group, initiator: str, address: str) -> bool:
    if group.hosts:  # then its clients count for nothing
        return initiator.lower() in (host.lower() for host in group.hosts)
    return find_client(group.clients, initiator, address) is not None
