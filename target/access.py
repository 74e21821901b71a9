"""Who may log in: which of a group's client records a connection falls under. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Protocol, TypeVar

ANY = "any"
"""The client record that admits every initiator."""


class Admission(Protocol):
    """What the worker's record of a client and the daemon's projection of it have in common."""

    @property
    def initiator(self) -> str:
        """An IQN, or ``any``."""

    @property
    def address(self) -> str | None:
        """CIDR range that the connection must come from; None: anywhere."""


A = TypeVar("A", bound=Admission)


def find_client(clients: Iterable[A], initiator: str, address: str) -> A | None:
    """The record that admits ``initiator`` from ``address`` (no port): its own before ``any``; None if none does."""
    matching = [client for client in clients if _matches(client, initiator, address)]
    return min(matching, key=lambda client: client.initiator == ANY, default=None)


def _matches(client: Admission, initiator: str, address: str) -> bool:
    # RFC 7143 4.2.7.1: iSCSI names are compared case-insensitively after normalization.
    if client.initiator != ANY and client.initiator.lower() != initiator.lower():
        return False
    return client.address is None or _inside(address, client.address)


def _inside(address: str, network: str) -> bool:
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:
        return False


def host_of(peer: str) -> str:
    """The address of an ``address:port``, without port and brackets."""
    return peer.rpartition(":")[0].strip("[]")
