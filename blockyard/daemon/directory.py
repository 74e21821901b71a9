"""Whose login is it, and what may a discovery session see: the daemon's projection, asked by the front door.

A guess that must be safe, not an authority: the worker checks again. Invariant: an unknown target is answered 02/03,
which ends Linux's retries for good, only when every pool has said what it holds; and all that concerns a pool that
is not serving is answered 03/01, which is retried.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from blockyard.daemon.pool_worker import PoolWorker
from blockyard.model import Group
from pdus.iscsi.login import LoginStatus
from target.access import find_client
from target.front_door import Route

Key = tuple[PoolWorker, str]
"""What a route leads to: the pool, and the IQN that was asked for."""


class YardDirectory:
    def __init__(self, pools: Mapping[str, PoolWorker]) -> None:
        self._pools = pools

    def route(self, target: str, initiator: str, address: str) -> Route | LoginStatus:
        found = self._find(target)
        if found is None:
            all_known = all(pool.reported for pool in self._pools.values())
            return LoginStatus.NOT_FOUND if all_known else LoginStatus.SERVICE_UNAVAILABLE
        pool, group = found
        if not pool.serving:
            return LoginStatus.SERVICE_UNAVAILABLE
        if not _admits(group, initiator, address):
            return LoginStatus.AUTHORIZATION_FAILURE
        return Route((pool, group.iqn))

    def visible(self, initiator: str, address: str) -> list[str]:
        """Targets of pools that are down included: the initiator that asks will try them again."""
        return [
            group.iqn
            for pool in self._pools.values()
            for group in pool.groups.values()
            if _admits(group, initiator, address)
        ]

    def hand_over(self, key: object, sock: socket.socket, received: bytes, replied: int) -> None:
        """Give the connection to the worker that ``route`` named. If that one died meanwhile the connection is closed,
        and the initiator tries again."""
        assert isinstance(key, tuple)
        pool, iqn = key
        pool.hand_over(iqn, sock, received, replied)

    def _find(self, target: str) -> tuple[PoolWorker, Group] | None:
        wanted = target.lower()  # RFC 7143 4.2.7.1: names are compared case-insensitively
        for pool in self._pools.values():
            for group in pool.groups.values():
                if group.iqn == wanted:
                    return pool, group
        return None


def _admits(group: Group, initiator: str, address: str) -> bool:
    if group.hosts:  # then its clients count for nothing
        return initiator.lower() in (host.lower() for host in group.hosts)
    return find_client(group.clients, initiator, address) is not None
