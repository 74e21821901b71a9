"""The REST client that the command line, plugins and hosts use: one method a verb.

Speaks to the daemon's Unix socket, or by TLS with a token; every refusal comes back as the ProductError that the daemon
raised. Invariant: a token is sent only to a server that proved its name with a certificate.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from blockyard.errors import Busy, Internal, Invalid, Unreachable, error_from
from blockyard.model import (
    Client,
    ClientSpec,
    CloneRequest,
    Created,
    Group,
    GroupChange,
    Groups,
    Health,
    MoveRequest,
    NewGroup,
    NewSize,
    NewSnapshot,
    Pool,
    RollbackRequest,
    Session,
    Snapshot,
    Swept,
    Value,
    Volume,
    VolumeSpec,
)
from blockyard.model.attachments import Attached, Attachment, AttachRequest
from blockyard.model.names import DEFAULT_API
from blockyard.model.tokens import AuditEntry, CreatedToken, NewToken, Token
from blockyard.model.transfers import Line, Receive

T = TypeVar("T")

SECONDS = 90.0  # for one verb; the daemon gives up on a silent worker after 60


class BlockyardClient:
    def __init__(
        self,
        address: str = DEFAULT_API,
        *,
        token: str | None = None,
        authority: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        seconds: float = SECONDS,
    ) -> None:
        """``address`` is ``unix:PATH`` or ``https://HOST:PORT``, which needs a ``token``; ``authority``: a file of
        certificates (PEM) to trust instead of the system's. ``transport`` replaces the socket in tests.
        ``seconds``: how long a verb may take."""
        self._address = address
        local = address.startswith("unix:")
        self._http = httpx.Client(
            transport=transport or (_local_transport(address) if local else _tls_transport(address, token, authority)),
            base_url="http://blockyard/v1" if local else f"{address.rstrip('/')}/v1",
            headers={} if token is None or local else {"authorization": f"Bearer {token}"},
            timeout=seconds,
            trust_env=False,  # no proxy stands between this machine and its target
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The daemon at BLOCKYARD_API, with BLOCKYARD_TOKEN or what BLOCKYARD_TOKEN_FILE holds, trusting BLOCKYARD_CA.
        Raises Invalid."""
        token, token_file = environment.get("BLOCKYARD_TOKEN"), environment.get("BLOCKYARD_TOKEN_FILE")
        if not token and token_file:
            try:
                token = Path(token_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"token file {token_file} (BLOCKYARD_TOKEN_FILE) cannot be read: {error}") from None
        authority = environment.get("BLOCKYARD_CA")
        return cls(
            environment.get("BLOCKYARD_API") or DEFAULT_API,
            token=token or None,
            authority=Path(authority) if authority else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- groups ----------------------------------------------------------------------------------------------------

    def create_group(self, asked: NewGroup) -> Created:
        return self._created("/groups", asked)

    def clone_group(self, source: str, asked: CloneRequest) -> Created:
        return self._created(f"/groups/{quote(source)}:clone", asked)

    def list_groups(self) -> Groups:
        return self._ask(Groups, "GET", "/groups")

    def show_group(self, name: str, *, usage: bool = False) -> Group:
        return self._ask(Group, "GET", f"/groups/{quote(name)}", params={"usage": True} if usage else None)

    def set_group(self, name: str, change: GroupChange) -> Group:
        return self._ask(Group, "PATCH", f"/groups/{quote(name)}", change)

    def delete_group(self, name: str, *, force: bool = False) -> None:
        self._send("DELETE", f"/groups/{quote(name)}", params={"force": force})

    def rollback_group(self, name: str, asked: RollbackRequest) -> Snapshot:
        return self._ask(Snapshot, "POST", f"/groups/{quote(name)}:rollback", asked)

    def move_group(self, name: str, asked: MoveRequest) -> Iterator[Line]:
        """How far it is, then the report. Closing the iterator before the cut-over gives the move up."""
        return self._lines("POST", f"/groups/{quote(name)}:move", {}, asked)

    def abort_move(self, name: str) -> None:
        self._send("DELETE", f"/groups/{quote(name)}/move")

    # --- volumes, snapshots, clients -------------------------------------------------------------------------------

    def list_volumes(self, group: str) -> list[Volume]:
        return self._ask(list[Volume], "GET", f"/groups/{quote(group)}/volumes")

    def add_volume(self, group: str, asked: VolumeSpec) -> Volume:
        return self._ask(Volume, "POST", f"/groups/{quote(group)}/volumes", asked)

    def resize_volume(self, group: str, lun: int, size: int) -> Volume:
        return self._ask(Volume, "PATCH", f"/groups/{quote(group)}/volumes/{lun}", NewSize(size=size))

    def remove_volume(self, group: str, lun: int, *, force: bool = False) -> None:
        self._send("DELETE", f"/groups/{quote(group)}/volumes/{lun}", params={"force": force})

    def list_snapshots(self, group: str) -> list[Snapshot]:
        return self._ask(list[Snapshot], "GET", f"/groups/{quote(group)}/snapshots")

    def create_snapshot(self, group: str, name: str) -> Snapshot:
        return self._ask(Snapshot, "POST", f"/groups/{quote(group)}/snapshots", NewSnapshot(name=name))

    def delete_snapshot(self, group: str, name: str) -> None:
        self._send("DELETE", f"/groups/{quote(group)}/snapshots/{quote(name)}")

    def diff_snapshots(self, group: str, old: str, new: str | None) -> Iterator[Line]:
        params = {} if new is None else {"new": new}
        return self._lines("GET", f"/groups/{quote(group)}/snapshots/{quote(old)}:diff", params)

    def verify_snapshot(self, group: str, name: str) -> Iterator[Line]:
        return self._lines("POST", f"/groups/{quote(group)}/snapshots/{quote(name)}:verify", {})

    def send_snapshot(self, group: str, name: str, *, base: str | None, resume: str | None) -> Iterator[bytes]:
        """The stream. Raises Unreachable when it breaks off."""
        params = {key: value for key, value in (("base", base), ("resume", resume)) if value is not None}
        path = f"/groups/{quote(group)}/snapshots/{quote(name)}/stream"
        with self._streamed("GET", path, params) as response:
            yield from response.iter_raw()

    def receive_snapshot(self, group: str, stream: Iterator[bytes], *, pool: str | None) -> Snapshot:
        params = {} if pool is None else {"pool": pool}
        with self._streamed("POST", f"/groups/{quote(group)}/receive", params, content=stream) as response:
            return Snapshot.model_validate_json(response.read())

    def show_receive(self, group: str) -> Receive:
        return self._ask(Receive, "GET", f"/groups/{quote(group)}/receive")

    def abort_receive(self, group: str) -> None:
        self._send("DELETE", f"/groups/{quote(group)}/receive")

    def list_clients(self, group: str) -> list[Client]:
        return self._ask(list[Client], "GET", f"/groups/{quote(group)}/clients")

    def allow_client(self, group: str, client: ClientSpec) -> Client:
        return self._ask(Client, "PUT", f"/groups/{quote(group)}/clients/{quote(client.initiator)}", client)

    def deny_client(self, group: str, initiator: str) -> None:
        self._send("DELETE", f"/groups/{quote(group)}/clients/{quote(initiator)}")

    # --- attachments -----------------------------------------------------------------------------------------------

    def attach(self, group: str, host: str, asked: AttachRequest) -> Attached:
        """Idempotent: the host that has the group gets the same secret again. Raises InUse while another has it."""
        return self._ask(Attached, "PUT", f"/groups/{quote(group)}/attachments/{quote(host)}", asked)

    def release(self, group: str, host: str) -> None:
        self._send("DELETE", f"/groups/{quote(group)}/attachments/{quote(host)}")

    def attachments(self, group: str | None = None, host: str | None = None) -> tuple[Attachment, ...]:
        """Those of one group, of one host, of both, or all."""
        path = "/attachments" if group is None else f"/groups/{quote(group)}/attachments"
        return self._ask(tuple[Attachment, ...], "GET", path, params={"host": host} if host else None)

    # --- sessions, pools, the yard ---------------------------------------------------------------------------------

    def list_sessions(self, group: str | None = None) -> list[Session]:
        return self._ask(list[Session], "GET", "/sessions", params={"group": group} if group else None)

    def list_pools(self) -> list[Pool]:
        return self._ask(list[Pool], "GET", "/pools")

    def show_pool(self, name: str) -> Pool:
        return self._ask(Pool, "GET", f"/pools/{quote(name)}")

    def sweep_pool(self, name: str) -> Swept:
        return self._ask(Swept, "POST", f"/pools/{quote(name)}:sweep", endless=True)

    def scrub_pool(self, name: str, rate: int | None) -> Iterator[Line]:
        return self._lines("POST", f"/pools/{quote(name)}:scrub", {} if rate is None else {"rate": rate})

    def health(self) -> Health:
        return self._ask(Health, "GET", "/health")

    # --- tokens, the API itself ------------------------------------------------------------------------------------

    def create_token(self, asked: NewToken) -> CreatedToken:
        return self._ask(CreatedToken, "POST", "/tokens", asked)

    def list_tokens(self) -> list[Token]:
        return self._ask(list[Token], "GET", "/tokens")

    def revoke_token(self, number: int) -> Token:
        return self._ask(Token, "DELETE", f"/tokens/{number}")

    def list_audit(self, limit: int) -> list[AuditEntry]:
        """The newest entries, oldest first."""
        return self._ask(list[AuditEntry], "GET", "/audit", params={"limit": limit})

    def openapi(self) -> dict[str, Any]:
        return self._ask(dict[str, Any], "GET", "/openapi.json")

    # --- HTTP ------------------------------------------------------------------------------------------------------

    def _created(self, path: str, body: Value) -> Created:
        response = self._send("POST", path, body)
        return Created(group=Group.model_validate_json(response.content), created=response.status_code == 201)

    def _ask(self, answer: type[T], method: str, path: str, body: Value | None = None, **options: Any) -> T:
        return TypeAdapter(answer).validate_json(self._send(method, path, body, **options).content)

    def _send(
        self,
        method: str,
        path: str,
        body: Value | None = None,
        *,
        params: dict[str, Any] | None = None,
        endless: bool = False,
    ) -> httpx.Response:
        content = None if body is None else body.model_dump_json().encode()
        headers = {"content-type": "application/json"} if content else None
        limit: dict[str, Any] = {"timeout": None} if endless else {}
        with self._reached(method, path):
            response = self._http.request(method, path, content=content, headers=headers, params=params, **limit)
        if response.is_error:
            raise _refusal(response)
        return response

    @contextmanager
    def _reached(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise Unreachable(
                f"no daemon answers at {self._address} ({error}): start one with "
                "`blockyard serve --store DIR --portal HOST:PORT`, or set BLOCKYARD_API to where it is"
            ) from None
        except httpx.TransportError as error:
            raise Unreachable(f"the daemon at {self._address} did not answer {method} {path}: {error}") from None

    @contextmanager
    def _streamed(
        self, method: str, path: str, params: dict[str, Any], content: Iterator[bytes] | Value | None = None
    ) -> Iterator[httpx.Response]:
        """A verb whose body or answer takes as long as it takes."""
        body = content.model_dump_json().encode() if isinstance(content, Value) else content
        headers = {"content-type": "application/json"} if isinstance(content, Value) else None
        with (
            self._reached(method, path),
            self._http.stream(method, path, params=params, content=body, headers=headers, timeout=None) as response,
        ):
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield response

    def _lines(self, method: str, path: str, params: dict[str, Any], body: Value | None = None) -> Iterator[Line]:
        """Raises what the last line says when that is a failure."""
        with self._streamed(method, path, params, body) as response:
            for text in response.iter_lines():
                line = Line.model_validate_json(text)
                if line.failure is not None:
                    raise error_from(line.failure.code, line.failure.message)
                yield line


def _local_transport(address: str) -> httpx.BaseTransport:
    # There is no TLS on a Unix socket: without verify=False httpx would load all certificates of the machine.
    return httpx.HTTPTransport(uds=address.removeprefix("unix:"), verify=False)


def _tls_transport(address: str, token: str | None, authority: Path | None) -> httpx.BaseTransport:
    if not address.startswith("https://"):
        raise Invalid(f"the API address is {address!r}, allowed are unix:PATH and https://HOST:PORT (BLOCKYARD_API)")
    if token is None:
        raise Invalid(f"{address} wants a token: set BLOCKYARD_TOKEN or BLOCKYARD_TOKEN_FILE")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("the token holds characters that no token has: is it the whole file, and the right one?")
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError; named for the reader
        raise Invalid(f"certificates {authority} (BLOCKYARD_CA) cannot be used: {error}") from None
    return httpx.HTTPTransport(verify=context)


def _refusal(response: httpx.Response) -> Exception:
    try:
        error = dict(response.json()["error"])
        return error_from(error.pop("code"), error.pop("message"), error)
    except (ValueError, KeyError, TypeError):
        # 503 without our words is the HTTP server's own: too many connections at the moment
        kind = Busy if response.status_code == 503 else Internal
        return kind(f"the daemon answered HTTP {response.status_code} without a reason")
