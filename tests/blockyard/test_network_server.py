"""The server behind the TLS socket: connections that keep a request's head to themselves are closed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from blockyard.api.app import make_app
from blockyard.api.door import NetworkDoor
from blockyard.daemon import api_server
from blockyard.daemon.api_server import ApiServer, TlsFiles, TlsSocket
from blockyard.daemon.yard_database import YardDatabase
from blockyard.model.tokens import NewToken
from tests.blockyard.support import MemoryYard, run

TLS = Path(__file__).parent.parent / "tls"
FILES = TlsFiles(TLS / "yard.pem", TLS / "yard.key")
HEAD = b"GET /v1/health HTTP/1.1\r\nhost: yard\r\n"


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=FILES.certificate)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def ended(port: int, said: bytes) -> bytes:
    """What is answered until the server closes."""
    reader, writer = await connect(port)
    writer.write(said)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.slow
def test_who_keeps_a_head_back_is_closed_and_who_sends_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "HEAD_SECONDS", 1.0)

    async def test() -> None:
        book = YardDatabase(tmp_path / "yard.db")
        listening = TlsSocket("127.0.0.1", 0, FILES)
        async with MemoryYard() as yard:
            server = ApiServer(NetworkDoor(make_app(yard.operations, book), book), FILES)
            serving = asyncio.create_task(server.serve(sockets=[listening.sock]))
            await server.listening.wait()
            token = (await book.create_token(NewToken(admin=True))).text
            assert await asyncio.gather(*(ended(listening.port, said) for said in (b"", HEAD))) == [b"", b""]
            good = HEAD + f"authorization: Bearer {token}\r\n".encode()
            assert b" 401 " in await ended(listening.port, HEAD + b"\r\n")
            assert b" 200 " in await ended(listening.port, good + b"connection: close\r\n\r\n")
            kept = await ended(listening.port, good + b"\r\n" + HEAD)
            assert kept.count(b"HTTP/1.1 200") == 1, "the second head never came to its end"
            server.stop()
            await serving
        listening.close()
        book.close()

    run(test())
