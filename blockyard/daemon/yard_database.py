"""``yard.db``: what belongs to the yard and to no pool: tokens, as hashes, and the audit log. SQLite.

Losing it loses no target: hosts stay logged in, and the Unix socket needs no token to make new ones. Every statement
runs in one helper thread, in order; the loop reads tokens from memory alone. Invariant: a token is good for somebody
only after it is durable, and for nobody from the moment that its revocation is asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from blockyard.errors import Invalid, NotFound
from blockyard.model.tokens import AuditEntry, CreatedToken, NewToken, Token

log = logging.getLogger("blockyard.daemon")

T = TypeVar("T")

VERSION = 1  # PRAGMA user_version
PREFIX = "byt_"  # so that scanners of leaked secrets find them
TOKEN_BYTES = 32
MAX_AUDIT = 100_000  # entries, the oldest go first; guessed: some months of a busy yard in 20 MiB
MAX_WAITING = 10_000  # entries not yet written, above which further ones are lost: the disk is stuck
SCHEMA = """
CREATE TABLE IF NOT EXISTS token (
    id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, host TEXT, project TEXT,
    created REAL NOT NULL, revoked REAL);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, who TEXT NOT NULL, address TEXT NOT NULL,
    action TEXT NOT NULL, status INTEGER NOT NULL);
"""


class YardDatabase:
    """Owned by the daemon, under the store's lock. ``close`` writes what is waiting."""

    def __init__(self, path: Path) -> None:
        """Made if it is not there. Raises Invalid when it cannot be used."""
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="yard.db")
        self._waiting: deque[AuditEntry] = deque()
        try:
            self._database, self._tokens = self._thread.submit(_open_or_replace, path).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise Invalid(f"{path} cannot be used: {error}") from error

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def create_token(self, asked: NewToken) -> CreatedToken:
        text = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        hashed, now = _hash(text), time.time()

        def insert() -> int:
            with self._database:
                row = (hashed, asked.host, asked.project, now)
                found = self._database.execute(
                    "INSERT INTO token (hash, host, project, created) VALUES (?, ?, ?, ?)", row
                )
            return int(found.lastrowid or 0)

        number = await self._do(insert)
        token = Token(id=number, admin=asked.admin, host=asked.host, project=asked.project, created=now, revoked=None)
        self._tokens[hashed] = token
        return CreatedToken(token=token, text=text)

    def list_tokens(self) -> tuple[Token, ...]:
        return tuple(sorted(self._tokens.values(), key=lambda token: token.id))

    def find_token(self, text: str) -> Token | None:
        """The good token with this text. Found by its hash, so no comparison tells how much of a guess was right."""
        token = self._tokens.get(_hash(text))
        return token if token is not None and token.revoked is None else None

    async def revoke_token(self, number: int) -> Token:
        """Idempotent. Raises NotFound."""
        found = next((each for each in self._tokens.items() if each[1].id == number), None)
        if found is None:
            raise NotFound(f"there is no token {number}; `blockyard token ls` shows those that exist")
        hashed, token = found
        if token.revoked is None:
            token = self._tokens[hashed] = token.model_copy(update={"revoked": time.time()})

        def update() -> None:
            with self._database:
                self._database.execute("UPDATE token SET revoked = ? WHERE id = ?", (token.revoked, number))

        await self._do(update)
        return token

    # --- the audit log -----------------------------------------------------------------------------------------------

    def record(self, entry: AuditEntry) -> None:
        """Add to the audit log, soon. What cannot be written is said in the daemon's log."""
        if len(self._waiting) >= MAX_WAITING:
            log.error("audit: lost %s by %s: %d others wait to be written", entry.action, entry.who, MAX_WAITING)
            return
        self._waiting.append(entry)
        self._thread.submit(self._write_waiting).add_done_callback(_log_failure)

    def _write_waiting(self) -> None:
        """All that wait in one transaction: at the daemon's end a long queue must not take a sync each. A deque's ends
        may be used from two threads at once."""
        rows = []
        while self._waiting:
            entry = self._waiting.popleft()
            rows.append((entry.time, entry.who, entry.address, entry.action, entry.status))
        if not rows:
            return
        with self._database:
            self._database.executemany(
                "INSERT INTO audit (time, who, address, action, status) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._database.execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (MAX_AUDIT,))

    async def list_audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The newest entries, oldest first."""

        def select() -> list[tuple[float, str, str, str, int]]:
            return self._database.execute(
                "SELECT time, who, address, action, status FROM audit ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()

        return tuple(
            AuditEntry(time=when, who=who, address=address, action=action, status=status)
            for when, who, address, action, status in reversed(await self._do(select))
        )

    # --- the thread --------------------------------------------------------------------------------------------------

    async def _do(self, statement: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(statement))

    def close(self) -> None:
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()


def _open_or_replace(path: Path) -> tuple[sqlite3.Connection, dict[str, Token]]:
    try:
        return _open(path)
    except sqlite3.OperationalError:
        raise  # it may be whole: no space, no rights, a newer version
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time():.0f}")
        path.rename(aside)
        log.error("%s is damaged (%s): moved to %s. Tokens have to be made again; targets are served as before",
                  path, error, aside.name)  # fmt: skip
        return _open(path)


def _open(path: Path) -> tuple[sqlite3.Connection, dict[str, Token]]:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it readable for all
    database = sqlite3.connect(path)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.OperationalError(f"its version is {version}, allowed is {VERSION}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA user_version = {VERSION}")
        rows = database.execute("SELECT hash, id, host, project, created, revoked FROM token").fetchall()
    except sqlite3.Error:
        database.close()
        raise
    return database, {
        hashed: Token(id=number, admin=host is None, host=host, project=project, created=created, revoked=revoked)
        for hashed, number, host, project, created, revoked in rows
    }


def _log_failure(written: Future[None]) -> None:
    if written.exception() is not None:
        log.error("audit: entries could not be written: %s", written.exception())


def _hash(text: str) -> str:
    """No salt and no stretching: 256 random bits cannot be searched for."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
