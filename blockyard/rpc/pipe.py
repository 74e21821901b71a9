"""Bytes between daemon and worker that are too many for a call: a socket pair beside the channel, one a transfer.

The call that goes with a pipe is answered when the transfer is over. The kernel's buffer and asyncio's flow control
are the back-pressure: whoever reads slowly slows the writer. Invariant: both ends are closed when the transfer ends,
however it ends, so that the other side always learns of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from blockyard.model import Value
from blockyard.rpc.calls import Call

R = TypeVar("R", bound=Value)

CHUNK = 256 << 10  # bytes moved at a time; guessed: a few of the kernel's buffers


@dataclass(frozen=True, slots=True)
class Pipe:
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def close(self) -> None:
        self.writer.close()


class Piped(Protocol):
    """A pool, as far as this is concerned."""

    async def call(self, call: Call[R], *, seconds: float | None = 60) -> R: ...
    async def open_pipe(self) -> Pipe: ...


async def open_pipe(number: int, sock: socket.socket) -> Pipe:
    """This process's end, which belongs to the pipe from now on."""
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=CHUNK)
    return Pipe(number, reader, writer)


async def download(pool: Piped, make_call: Callable[[int], Call[R]]) -> AsyncIterator[bytes]:
    """What the worker writes. Raises what the call raises, if that is before the first byte; else the iterator does."""
    pipe = await pool.open_pipe()
    call = asyncio.ensure_future(pool.call(make_call(pipe.number), seconds=None))
    try:
        first = await pipe.reader.read(CHUNK)
        if not first:
            await call
    except BaseException:
        _end(pipe, call)
        raise
    return _chunks(first, pipe, call)


async def _chunks(first: bytes, pipe: Pipe, call: asyncio.Future[R]) -> AsyncIterator[bytes]:
    try:
        chunk = first
        while chunk:
            yield chunk
            chunk = await pipe.reader.read(CHUNK)
        await call
    finally:
        _end(pipe, call)


async def upload(pool: Piped, make_call: Callable[[int], Call[R]], chunks: AsyncIterator[bytes]) -> R:
    """Write ``chunks`` for the worker; the answer of the call."""
    pipe = await pool.open_pipe()
    call = asyncio.ensure_future(pool.call(make_call(pipe.number), seconds=None))
    writing = asyncio.ensure_future(_write_all(pipe, chunks))
    try:
        # The answer may come before the end of the input: then nobody wants the rest.
        await asyncio.wait({writing, call}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            await writing
        return await call
    finally:
        writing.cancel()
        _end(pipe, call)


async def _write_all(pipe: Pipe, chunks: AsyncIterator[bytes]) -> None:
    try:
        async for chunk in chunks:
            pipe.writer.write(chunk)
            await pipe.writer.drain()
        pipe.writer.write_eof()
    except (ConnectionError, RuntimeError):  # the worker takes no more; the answer of its call says why
        return


def _end(pipe: Pipe, call: asyncio.Future[R]) -> None:
    pipe.close()
    if not call.cancel() and not call.cancelled():
        call.exception()  # nobody asks any more: it must not be reported as forgotten
