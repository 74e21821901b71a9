"""What ``serve`` is told: validated once, then frozen. Nothing here opens or makes anything."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from blockyard.model import Value

MAX_SOCKET_PATH = 107  # bytes; sun_path of unix(7) without its final zero
MAX_POOL_SIZE = 1 << 50  # bytes; guessed, far above what one directory will hold
MIN_MAP_MEMORY = 16 << 20  # bytes; below it, what one large command needs would be most of it
# Linux gives a silent target up after 10 s; longer than some minutes nobody wants to wait to hear of a host's death.
MAX_PING_SECONDS = 300
MAX_WORKERS = 64  # guessed: more processes than any machine of the field has cores for

_PORTAL = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^:\[\]\s]+)):(?P<port>\d{1,5})")


class Portal(Value):
    """Where initiators connect."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_portal(text: object) -> object:
    """``HOST:PORT`` or ``[IPv6]:PORT``; what is no text is left to pydantic."""
    if not isinstance(text, str):
        return text
    match = _PORTAL.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT with a port of 0 to 65535 (IPv6 in brackets: [::1]:3260)")
    return Portal(host=match["six"] or match["host"], port=int(match["port"]))


def _advertised(portal: Portal | None) -> Portal | None:
    if portal is not None and portal.port == 0:
        raise ValueError("the advertised port is 0, allowed are 1 to 65535")
    return portal


def api_path(text: str) -> str:
    """The absolute path of ``unix:PATH``: what is shown as the API's address is right in every directory."""
    if not text.startswith("unix:") or len(text) <= len("unix:"):
        raise ValueError(f"{text!r} is not an API address: unix:PATH")
    path = os.path.abspath(text.removeprefix("unix:"))
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"the path of the API socket has {len(path.encode())} bytes, allowed are {MAX_SOCKET_PATH}")
    return path


def _ping_seconds(seconds: float) -> float:
    if not 1 <= seconds <= MAX_PING_SECONDS:
        raise ValueError(f"{seconds:g} s is not allowed: 1 to {MAX_PING_SECONDS} s")
    return seconds


PortalText = Annotated[Portal, BeforeValidator(parse_portal)]


class ServeConfig(Value):
    store: Path
    portals: tuple[PortalText, ...] = ()
    """To be opened, beside sockets that are handed over."""
    advertise: Annotated[PortalText | None, AfterValidator(_advertised)] = None
    create: bool = False
    """Whether a store, and pools up to ``workers``, are made where there are none."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    api: Annotated[Path, BeforeValidator(api_path)]
    api_listen: PortalText | None = None
    """Where the API is served over TLS, too."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ping_interval: Annotated[float, AfterValidator(_ping_seconds)] = 3.0
    """Seconds without a sign of life after which a session is asked for one."""
    ping_timeout: Annotated[float, AfterValidator(_ping_seconds)] = 3.0
    """Seconds that the answer may take; then the session is dropped, and its host counts as dead."""
    pool_size: int | None = Field(default=None, ge=1 << 20, le=MAX_POOL_SIZE)
    """Bytes that each pool may grow to; None: what the host file system has."""
    map_memory: int | None = Field(default=None, ge=MIN_MAP_MEMORY, le=MAX_POOL_SIZE)
    """Bytes of its maps that each pool keeps in memory; None: 1 GiB."""
    private_frees: bool = True
    """Whether a block is free as soon as the only entry that names it goes; else sweeps alone find what is free."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if len({self.api_listen is None, self.tls_cert is None, self.tls_key is None}) != 1:
            raise ValueError("--api-listen, --tls-cert and --tls-key need each other")
        return self
