"""The API over TLS with the product in its own processes: certificates, tokens, what the command line makes of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blockyard.client import BlockyardClient
from blockyard.errors import AlreadyExists, Forbidden, InUse, Invalid, NotFound, Unauthenticated, Unreachable
from blockyard.model import NewGroup, VolumeSpec
from blockyard.model.attachments import AttachRequest
from tests.initiator import Initiator, read10
from tests.product import BLOCKYARD, Product, free_port
from tests.system.conftest import assert_whole

pytestmark = pytest.mark.slow

TLS = Path(__file__).parent.parent / "tls"
HOST_A, HOST_B = "iqn.2026-01.example:host-a", "iqn.2026-01.example:host-b"
MIB = 1 << 20


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Product]:
    files = ("--tls-cert", str(TLS / "yard.pem"), "--tls-key", str(TLS / "yard.key"))
    served = Product(tmp_path_factory.mktemp("tls"), "--api-listen", f"127.0.0.1:{port}", *files)
    with served:
        yield served
    assert_whole(served.store)


def over_tls(port: int, token: str, authority: str = "yard.pem", host: str = "127.0.0.1") -> BlockyardClient:
    return BlockyardClient(f"https://{host}:{port}", token=token, authority=TLS / authority)


def make_token(yard: Product, *options: str) -> str:
    return str(yard.cli("token", "create", *options)["text"])


def command(port: int, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    where = {"BLOCKYARD_API": f"https://127.0.0.1:{port}", "BLOCKYARD_CA": str(TLS / "yard.pem")}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BLOCKYARD_")}
    return subprocess.run(
        [BLOCKYARD, *words], env=clean | where | environment, capture_output=True, text=True, timeout=60
    )


def test_a_host_makes_attaches_and_uses_a_group_and_another_project_sees_none_of_it(yard: Product, port: int) -> None:
    a = over_tls(port, make_token(yard, "--host", HOST_A, "--project", "a"))
    b = over_tls(port, make_token(yard, "--host", HOST_B, "--project", "b"))
    neighbour = over_tls(port, make_token(yard, "--host", HOST_B, "--project", "a"))
    asked = NewGroup(name="data", volumes=(VolumeSpec(size=MIB),))
    with a, b, neighbour:
        assert a.create_group(asked).created
        assert not a.create_group(asked).created
        attached = a.attach("data", HOST_A, AttachRequest())
        chap = (attached.chap.user, attached.chap.secret.encode())
        with Initiator(yard.address, attached.attachment.target, name=HOST_A, chap=chap) as session:
            session.login()
            while session.run(bytes(6)).status:
                pass
            session.good(read10(0, 8), data_in=4096)
            with pytest.raises(NotFound):
                b.show_group("data")
            with pytest.raises(AlreadyExists, match="the name data is taken"):
                b.create_group(asked)
            with pytest.raises(Forbidden):
                neighbour.attach("data", HOST_A, AttachRequest(take_over=True))
            with pytest.raises(InUse, match="alive") as refused:
                neighbour.attach("data", HOST_B, AttachRequest())
            assert refused.value.details["alive"] is True
        assert [each.group for each in a.attachments(host=HOST_A)] == ["data"]
        a.resize_volume("data", 0, 2 * MIB)
        a.create_snapshot("data", "s")
        with pytest.raises(Forbidden):
            a.list_pools()
        neighbour.attach("data", HOST_B, AttachRequest(take_over=True))
        with pytest.raises(InUse, match=f"attached to {HOST_B}"):
            a.delete_group("data")
        neighbour.release("data", HOST_B)
        a.delete_group("data")


def test_a_stream_passes_over_tls(yard: Product, port: int) -> None:
    with over_tls(port, make_token(yard, "--admin")) as admin:
        admin.create_group(NewGroup(name="sent", volumes=(VolumeSpec(size=MIB),)))
        admin.create_snapshot("sent", "s")
        stream = b"".join(admin.send_snapshot("sent", "s", base=None, resume=None))
        assert admin.receive_snapshot("copy", iter([stream]), pool=None).name == "s"


def test_the_command_line_takes_token_and_certificate_from_the_environment(
    yard: Product, port: int, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(make_token(yard, "--admin") + "\n")
    shown = command(port, "api", "openapi", BLOCKYARD_TOKEN_FILE=str(file))
    assert "/v1/groups/{group}/attachments/{host}" in json.loads(shown.stdout)["paths"]
    assert command(port, "group", "ls", BLOCKYARD_TOKEN=file.read_text().strip()).returncode == 0
    cases: list[tuple[dict[str, str], int, str]] = [
        ({}, Invalid("").answer.exit_code, "BLOCKYARD_TOKEN"),
        ({"BLOCKYARD_TOKEN": "byt_wrong"}, Unauthenticated("").answer.exit_code, "a good token is needed"),
        ({"BLOCKYARD_TOKEN_FILE": str(tmp_path / "none")}, Invalid("").answer.exit_code, "cannot be read"),
        ({"BLOCKYARD_TOKEN": "x", "BLOCKYARD_CA": str(file)}, Invalid("").answer.exit_code, "BLOCKYARD_CA"),
        ({"BLOCKYARD_TOKEN": "x", "BLOCKYARD_API": "http://127.0.0.1"}, Invalid("").answer.exit_code, "allowed are"),
    ]
    for environment, code, said in cases:
        done = command(port, "group", "ls", **environment)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_a_token_is_sent_to_no_server_whose_certificate_is_not_trusted(yard: Product, port: int) -> None:
    with over_tls(port, "byt_x", "other.pem") as client, pytest.raises(Unreachable, match="certificate"):
        client.health()


def test_tokens_are_listed_revoked_and_survive_a_restart_and_everything_is_audited(yard: Product, port: int) -> None:
    text = make_token(yard, "--host", HOST_A, "--project", "a")
    number = yard.cli("token", "ls")[-1]["id"]
    assert yard.stop() == 0
    yard.start()
    with over_tls(port, text) as client:
        assert client.health().status == "ok"
        yard.cli("token", "revoke", str(number))
        with pytest.raises(Unauthenticated):
            client.health()
    [*_, revoked, refused] = yard.cli("audit", "ls")
    assert (revoked["who"], revoked["action"]) == ("local", f"DELETE /v1/tokens/{number}")
    assert (refused["who"], refused["address"], refused["status"]) == ("nobody", "127.0.0.1", 401)
    assert (yard.store / "yard.db").stat().st_mode & 0o777 == 0o600


def test_losing_the_yards_database_loses_no_target(yard: Product) -> None:
    yard.create_group("survivor", MIB)
    attached = yard.cli("attachment", "create", "survivor", "--host", HOST_A)
    assert yard.stop() == 0
    for file in yard.store.glob("yard.db*"):
        file.unlink()
    yard.start()
    assert yard.cli("attachment", "create", "survivor", "--host", HOST_A)["chap"] == attached["chap"]
    assert yard.cli("token", "ls") == []


def test_connections_that_speak_no_tls_or_nothing_cost_nobody_anything(yard: Product, port: int) -> None:
    token = make_token(yard, "--admin")
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    try:
        for number, sock in enumerate(idle):
            with suppress(OSError):
                sock.sendall(b"GET /v1/health HTTP/1.1\r\n\r\n" if number % 2 else b"\x16\x03\x01")
        with over_tls(port, token) as client:
            assert client.health().status == "ok"
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--api-listen", "127.0.0.1:0"), "need each other"),
        (("--tls-key", "k"), "need each other"),
        (("--api-listen", "127.0.0.1:0", "--tls-cert", "none.pem", "--tls-key", "none.key"), "cannot be used"),
        (
            ("--api-listen", "127.0.0.1:0", "--tls-cert", str(TLS / "other.pem"), "--tls-key", str(TLS / "yard.key")),
            "cannot be used",
        ),
        (("--api-listen", "nonsense"), "--api-listen"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is(tmp_path: Path, options: Any, said: str) -> None:
    where = ("--store", str(tmp_path / "s"), "--portal", "127.0.0.1:0", "--api", f"unix:{tmp_path / 'api'}")
    done = subprocess.run([BLOCKYARD, "serve", *where, *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
