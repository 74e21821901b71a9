"""The FastAPI application: routers put together, and every error as ``{"error": {"code", "message"}}``."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from blockyard.api.access import authorize
from blockyard.api.body_limit import BodyLimit
from blockyard.api.levels import LEVELS, NOUNS
from blockyard.api.tokens import TokenBook
from blockyard.errors import Detail, Internal, Invalid, NotFound, ProductError, explain
from blockyard.operations import Operations


def make_app(operations: Operations, tokens: TokenBook) -> FastAPI:
    """To be reached through a ``door``: without one every request is refused."""
    app = FastAPI(
        title="Blockyard",
        description="Volume groups served by iSCSI",
        version=operations.version,
        dependencies=[Depends(authorize)],
        openapi_url=None,  # served by a route of ours, which demands a token like all
        docs_url=None,
        redoc_url=None,
    )
    app.state.operations, app.state.tokens, app.state.levels = operations, tokens, LEVELS
    app.add_middleware(BodyLimit)
    for noun in NOUNS:
        app.include_router(noun.router, prefix="/v1")
    app.add_exception_handler(ProductError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _defect)
    return app


def body_of(error: ProductError) -> dict[str, dict[str, Detail]]:
    return {"error": {**error.details, "code": error.answer.code, "message": str(error)}}


def _answer(error: ProductError, status: int | None = None) -> JSONResponse:
    return JSONResponse(body_of(error), status_code=status or error.answer.http_status)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProductError)
    return _answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    return _answer(Invalid(explain(error.errors())))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _answer(NotFound(message) if error.status_code == 404 else Invalid(message), error.status_code)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """uvicorn logs the traceback."""
    return _answer(Internal(f"{request.method} {request.url.path} failed: the daemon's log has the details"))
