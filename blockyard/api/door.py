"""The doors of the API: each knows who comes through it, and writes down what is asked. Plain ASGI coats.

The local door is the Unix socket's: who can open that is an administrator. The network door demands a bearer token
(RFC 6750); an address that keeps sending wrong ones is answered no more for a while. What a caller may do is
``access``'s. Invariant: what an outsider sends reaches the application, and the audit log, only in bounded amounts.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockyard.api.access import CALLER, LOCAL, NOTE, Caller
from blockyard.api.tokens import TokenBook
from blockyard.errors import ProductError, TooManyRequests, Unauthenticated
from blockyard.model.tokens import AuditEntry, Token

READING = ("GET", "HEAD", "OPTIONS")
REFUSED = (401, 403)
MAX_ACTION = 500  # characters of method, path and query that the audit log keeps; the longest of ours has 300
NOBODY = "nobody"


class WrongTokens:
    """How often each address came with a wrong token lately. Sans-IO: time is an argument."""

    LIMIT = 10  # wrong ones in ``SECONDS``; guessed: a person or a script that was given the wrong file needs fewer
    SECONDS = 60.0
    ADDRESSES = 1024  # remembered; guessed. The one that was quiet longest is forgotten first.

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def add(self, address: str, now: float) -> bool:
        """Note one. False: there are too many."""
        lately = [when for when in self._wrong.pop(address, []) if now - when < self.SECONDS]
        within = len(lately) < self.LIMIT
        self._wrong[address] = [*lately, now] if within else lately
        if len(self._wrong) > self.ADDRESSES:
            self._wrong.popitem(last=False)
        return within


class LocalDoor:
    def __init__(self, app: ASGIApp, book: TokenBook) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _pass(self._app, self._book, LOCAL, scope, receive, send)


class NetworkDoor:
    def __init__(self, app: ASGIApp, book: TokenBook, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._book = book
        self._now = now
        self._wrong = WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = self._book.find_token(_bearer(scope))
        # A good token is let in whoever else comes from its address: it could not be guessed anyhow (256 bits), and
        # the limit is there for the log's sake and the processor's.
        if token is not None:
            await _pass(self._app, self._book, _caller(token), scope, receive, send)
        elif self._wrong.add(_address(scope), self._now()):
            _record(self._book, NOBODY, scope, 401)
            await _refuse(send, Unauthenticated("a good token is needed: Authorization: Bearer byt_... (`blockyard "
                                                "token create` makes one, BLOCKYARD_TOKEN hands it over)"))  # fmt: skip
        else:
            await _refuse(send, TooManyRequests(f"{WrongTokens.LIMIT} wrong tokens came from {_address(scope)} in "
                                                f"{WrongTokens.SECONDS:g} s: wait a minute"))  # fmt: skip


async def _pass(app: ASGIApp, book: TokenBook, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the request as ``caller``'s, and write down what changed something or was refused."""
    scope[CALLER] = caller

    async def recorded(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = int(message["status"])
            if scope["method"] not in READING or status in REFUSED:
                _record(book, caller.name, scope, status)
        await send(message)

    await app(scope, receive, recorded)


def _record(book: TokenBook, who: str, scope: Scope, status: int) -> None:
    query, note = bytes(scope["query_string"]).decode("latin-1"), scope.get(NOTE)
    action = f"{scope['method']} {scope['path']}{'?' if query else ''}{query}"[:MAX_ACTION]
    if note is not None:
        action += f" ({note})"
    shown = action.encode("unicode_escape", "backslashreplace").decode("ascii")  # no control character reaches a screen
    book.record(AuditEntry(time=time.time(), who=who, address=_address(scope), action=shown, status=status))


def _caller(token: Token) -> Caller:
    return Caller(f"token {token.id} ({token.host or 'admin'})", token.host, token.project)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _bearer(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, text = bytes(value).decode("latin-1").partition(" ")
            return text.strip() if scheme.lower() == "bearer" else ""
    return ""


async def _refuse(send: Send, error: ProductError) -> None:
    """Without reading the body: the connection ends with the answer."""
    body = json.dumps({"error": {"code": error.answer.code, "message": str(error)}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.answer.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
