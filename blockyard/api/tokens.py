"""/v1/tokens and /v1/audit: who may speak to the daemon over the network, and what was asked of it."""

from __future__ import annotations

from typing import Annotated, Protocol, cast

from fastapi import APIRouter, Depends, Query, Request, status

from blockyard.model.tokens import AuditEntry, CreatedToken, NewToken, Token

router = APIRouter(tags=["tokens"])


class TokenBook(Protocol):
    """Where tokens and the audit log are kept (``daemon.yard_database``)."""

    async def create_token(self, asked: NewToken) -> CreatedToken: ...
    def list_tokens(self) -> tuple[Token, ...]: ...
    def find_token(self, text: str) -> Token | None:
        """The good token with this text."""

    async def revoke_token(self, number: int) -> Token:
        """Idempotent. Raises NotFound."""

    def record(self, entry: AuditEntry) -> None:
        """Add to the audit log, soon; never fails the request that it tells of."""

    async def list_audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The newest entries, oldest first."""


def _book(request: Request) -> TokenBook:
    return cast("TokenBook", request.app.state.tokens)


Book = Annotated[TokenBook, Depends(_book)]


@router.post("/tokens", status_code=status.HTTP_201_CREATED)
async def create_token(asked: NewToken, book: Book) -> CreatedToken:
    """The only answer that holds the token's text."""
    return await book.create_token(asked)


@router.get("/tokens")
async def list_tokens(book: Book) -> tuple[Token, ...]:
    return book.list_tokens()


@router.delete("/tokens/{number}")
async def revoke_token(number: int, book: Book) -> Token:
    """It is good for nothing from now on; the listing still shows it."""
    return await book.revoke_token(number)


@router.get("/audit")
async def list_audit(book: Book, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> tuple[AuditEntry, ...]:
    return await book.list_audit(limit)
