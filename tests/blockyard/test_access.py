"""Who may do what over the network: every route, for every kind of caller; the doors, tokens, audit log, limits."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import ValidationError

from blockyard.api.app import make_app
from blockyard.api.door import LocalDoor, NetworkDoor, WrongTokens
from blockyard.api.levels import LEVELS, NOUNS, Level
from blockyard.daemon import yard_database
from blockyard.daemon.yard_database import YardDatabase
from blockyard.errors import Invalid
from blockyard.model import NewGroup, VolumeSpec, names
from blockyard.model.attachments import AttachRequest
from blockyard.model.names import PROJECT
from blockyard.model.tokens import AuditEntry, NewToken
from tests.blockyard.support import HOST_A, HOST_B, FakeSession, MemoryYard, run

MIB = 1 << 20
NEIGHBOUR = "iqn.2004-10.com.example:neighbour"
"""Another host of host A's project."""
GROUP = "db"
"""Project A's. Beside it there are one of project B and ``plain`` of none."""
THEIRS = "the-group-of-b"
HOST_C = "iqn.2004-10.com.example:host-c"
"""Another host of project B."""
ROUTES: list[APIRoute] = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
BODIES: dict[str, dict[str, Any]] = {
    "create_group": {"name": "new", "volumes": [{"size": MIB}]},
    "set_group": {"cache": "writethrough"},
    "clone_group": {"snapshot": "s", "name": "copy"},
    "rollback_group": {"snapshot": "s"},
    "add_volume": {"size": MIB, "name": "more"},
    "resize_volume": {"size": 2 * MIB},
    "create_snapshot": {"name": "t"},
    "allow_client": {"initiator": HOST_B},
    "attach": {},
    "create_token": {"admin": True},
}
PARAMETERS = {"group": GROUP, "host": HOST_A, "lun": "0", "initiator": HOST_B, "number": "1"}
NAMES = {"/groups": GROUP, "/pools": "pool-0", "/groups/{group}/snapshots": "s"}
"""What ``{name}`` stands for, by the path before it."""


async def nothing(*_: object, **__: object) -> AsyncIterator[bytes]:
    async def empty() -> AsyncIterator[bytes]:
        return
        yield b""

    return empty()


class Callers:
    """A yard behind both doors, and a client for each kind of caller."""

    def __init__(self, yard: MemoryYard, book: YardDatabase) -> None:
        self.yard, self.book = yard, book
        app = make_app(yard.operations, book)
        self.app = app
        self.now = 0.0
        self._doors = {"local": LocalDoor(app, book), "network": NetworkDoor(app, book, lambda: self.now)}
        for streaming in ("diff_snapshots", "verify_snapshot", "send_snapshot", "scrub_pool"):
            setattr(yard.operations, streaming, nothing)

    async def token(self, **asked: Any) -> str:
        return (await self.book.create_token(NewToken(**asked))).text

    async def ask(
        self, method: str, path: str, *, token: str | None = None, door: str = "network", address: str = "", **more: Any
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self._doors[door], client=(address or "192.0.2.9", 4711))
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://yard") as client:
            return await client.request(method, f"/v1{path}", headers=headers, **more)


def with_callers(test: Callable[[Callers], Awaitable[None]]) -> None:
    async def prepared() -> None:
        with opened_book() as book:
            async with MemoryYard() as yard:
                for name, labels in ((GROUP, {PROJECT: "a"}), (THEIRS, {PROJECT: "b"}), ("plain", {})):
                    volumes = (VolumeSpec(size=MIB),)
                    await yard.operations.create_group(NewGroup(name=name, volumes=volumes, labels=labels))
                await yard.operations.create_snapshot(GROUP, "s")
                await test(Callers(yard, book))

    run(prepared())


@contextmanager
def opened_book() -> Iterator[YardDatabase]:
    with TemporaryDirectory() as folder:
        book = YardDatabase(Path(folder) / "yard.db")
        try:
            yield book
        finally:
            book.close()


def path_of(route: APIRoute) -> str:
    before = route.path.partition("/{name}")[0]
    return route.path.format(**PARAMETERS, name=NAMES.get(before, ""))


def name_of(route: APIRoute) -> str:
    return f"{min(route.methods)} {route.path}"


async def statuses(callers: Callers, route: APIRoute) -> dict[str, httpx.Response]:
    tokens = {
        "nobody": None,
        "wrong": "byt_wrong",
        "a": await callers.token(host=HOST_A, project="a"),
        "b": await callers.token(host=HOST_B, project="b"),
        "neighbour": await callers.token(host=NEIGHBOUR, project="a"),
        "admin": await callers.token(admin=True),
    }
    body = BODIES.get(route.endpoint.__name__)
    return {
        who: await callers.ask(min(route.methods), path_of(route), token=token, json=body)
        for who, token in tokens.items()
    }


# --- every route -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_every_route_demands_what_the_table_says(route: APIRoute) -> None:
    async def test(callers: Callers) -> None:
        level = LEVELS[route.endpoint]
        await callers.yard.operations.attach(THEIRS, HOST_C, AttachRequest())
        answered = await statuses(callers, route)
        assert {who: answered[who].status_code for who in ("nobody", "wrong")} == {"nobody": 401, "wrong": 401}
        for who in ("nobody", "wrong", "a", "neighbour"):
            assert THEIRS not in answered[who].text
            assert HOST_C not in answered[who].text
        assert answered["admin"].status_code not in (401, 403)
        if level is Level.ADMIN:
            assert {answered[who].status_code for who in ("a", "b", "neighbour")} == {403}
        elif level is Level.ANY:
            assert not {answered[who].status_code for who in ("a", "b", "neighbour")} & {401, 403}
        else:
            assert answered["a"].status_code not in (401, 403, 404), answered["a"].text
            assert answered["b"].status_code == 404
            assert f"no group is named {GROUP};" in answered["b"].json()["error"]["message"]
            assert (answered["neighbour"].status_code == 403) == (level is Level.SELF)

    with_callers(test)


def test_the_table_and_the_application_have_the_same_routes() -> None:
    async def test(callers: Callers) -> None:
        assert {route.endpoint for route in ROUTES} == set(LEVELS)
        described = {
            (method.upper(), path) for path, methods in callers.app.openapi()["paths"].items() for method in methods
        }
        assert described == {(min(route.methods), f"/v1{route.path}") for route in ROUTES}
        ours = [noun.router for noun in NOUNS]
        for route in callers.app.routes:  # what it serves beside the nouns' routers, described or not
            assert getattr(route, "original_router", None) in ours or getattr(route, "endpoint", None) in LEVELS

    with_callers(test)


def test_a_route_without_a_level_is_the_administrators_alone() -> None:
    async def test(callers: Callers) -> None:
        callers.app.state.levels = {}
        token = await callers.token(host=HOST_A, project="a")
        assert (await callers.ask("GET", "/health", token=token)).status_code == 403
        assert (await callers.ask("GET", "/health", token=await callers.token(admin=True))).status_code == 200

    with_callers(test)


def test_without_a_door_nobody_is_served() -> None:
    async def test(callers: Callers) -> None:
        transport = httpx.ASGITransport(callers.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://yard") as client:
            assert (await client.get("/v1/groups")).status_code == 401

    with_callers(test)


def test_the_local_door_needs_no_token() -> None:
    async def test(callers: Callers) -> None:
        assert (await callers.ask("GET", "/pools", door="local")).status_code == 200

    with_callers(test)


# --- what a host sees and makes --------------------------------------------------------------------------------------


def test_a_host_sees_the_groups_of_its_project_alone() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        groups = (await callers.ask("GET", "/groups", token=token)).json()["groups"]
        assert [group["name"] for group in groups] == [GROUP]
        assert (await callers.ask("GET", "/groups/plain", token=token)).status_code == 404
        admin = await callers.token(admin=True)
        assert len((await callers.ask("GET", "/groups", token=admin)).json()["groups"]) == 3

    with_callers(test)


def test_what_a_host_makes_is_in_its_project_and_has_no_clients() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        asked = {"name": "new", "volumes": [{"size": MIB}], "labels": {"docker.fs": "ext4"}}
        made = await callers.ask("POST", "/groups", token=token, json=asked)
        assert made.json()["labels"] == {"docker.fs": "ext4", PROJECT: "a"}
        assert (await callers.ask("POST", "/groups", token=token, json=asked)).status_code == 200
        for labels in ({PROJECT: "b"}, {PROJECT: ""}):
            refused = await callers.ask("POST", "/groups", token=token, json=asked | {"name": "x", "labels": labels})
            assert refused.status_code == 403
        opened = asked | {"name": "open", "clients": [{"initiator": "any"}]}
        assert (await callers.ask("POST", "/groups", token=token, json=opened)).status_code == 403
        many = asked | {"name": "many", "labels": {str(number): "" for number in range(names.MAX_LABELS)}}
        assert (await callers.ask("POST", "/groups", token=token, json=many)).status_code == 400, "with the project's"

    with_callers(test)


def test_a_hosts_clone_is_in_its_project_and_leaves_the_clients_behind() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        await callers.ask("PUT", f"/groups/{GROUP}/clients/any", door="local", json={"initiator": "any"})
        asked = {"snapshot": "s", "name": "copy"}
        clone = (await callers.ask("POST", f"/groups/{GROUP}:clone", token=token, json=asked)).json()
        assert (clone["clients"], clone["labels"]) == ([], {PROJECT: "a"})
        opened = asked | {"name": "open", "clients": [{"initiator": "any"}]}
        assert (await callers.ask("POST", f"/groups/{GROUP}:clone", token=token, json=opened)).status_code == 403

    with_callers(test)


@pytest.mark.parametrize("path", ["/groups", f"/groups/{GROUP}:clone"])
def test_of_somebody_elses_group_a_host_learns_only_that_the_name_is_taken(path: str) -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        asked = {"name": THEIRS} | ({"snapshot": "s"} if "clone" in path else {"volumes": [{"size": 7 * MIB}]})
        refused = await callers.ask("POST", path, token=token, json=asked)
        assert (refused.status_code, refused.json()["error"]["message"]) == (409, f"the name {THEIRS} is taken")

    with_callers(test)


@pytest.mark.parametrize("path", ["/groups", f"/groups/{GROUP}:clone"])
def test_a_host_does_not_hear_whose_an_iqn_is(path: str) -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        asked = {"name": "new", "iqn": callers.yard.pool.groups[THEIRS].iqn}
        asked |= {"snapshot": "s"} if "clone" in path else {"volumes": [{"size": MIB}]}
        refused = await callers.ask("POST", path, token=token, json=asked)
        assert refused.status_code == 403
        assert f"group {THEIRS}" not in refused.text
        assert (await callers.ask("POST", path, door="local", json=asked)).status_code == 409

    with_callers(test)


def test_somebody_elses_group_is_not_there_while_it_moves_either() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        groups = callers.yard.pool.groups
        for name in (GROUP, THEIRS):
            groups[name] = groups[name].model_copy(update={"leaving": uuid4()})
        seen = {name: await callers.ask("GET", f"/groups/{name}", token=token) for name in (GROUP, THEIRS)}
        assert {name: answer.status_code for name, answer in seen.items()} == {GROUP: 200, THEIRS: 404}
        taken = await callers.ask("POST", "/groups", token=token, json={"name": THEIRS, "volumes": [{"size": MIB}]})
        assert taken.json()["error"]["message"] == f"the name {THEIRS} is taken"

    with_callers(test)


def test_a_host_cannot_move_a_group_out_of_its_project() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        changed = await callers.ask("PATCH", f"/groups/{GROUP}", token=token, json={"labels": {"x": "y"}})
        assert changed.json()["labels"] == {"x": "y", PROJECT: "a"}
        moved = await callers.ask("PATCH", f"/groups/{GROUP}", token=token, json={"labels": {PROJECT: "b"}})
        assert moved.status_code == 403

    with_callers(test)


def test_a_host_attaches_as_itself_and_lists_its_own() -> None:
    async def test(callers: Callers) -> None:
        await callers.yard.operations.attach("plain", HOST_A, AttachRequest())
        await callers.yard.operations.attach(THEIRS, HOST_B, AttachRequest())
        token = await callers.token(host=HOST_A, project="a")
        attached = await callers.ask("PUT", f"/groups/{GROUP}/attachments/{HOST_A}", token=token, json={})
        assert attached.json()["chap"]["user"] == HOST_A
        listed = await callers.ask("GET", "/attachments", token=token)
        assert [each["group"] for each in listed.json()] == [GROUP], "plain is of no project"
        assert (await callers.ask("GET", f"/attachments?host={HOST_B}", token=token)).status_code == 403
        neighbour = await callers.token(host=NEIGHBOUR, project="a")
        path = f"/groups/{GROUP}/attachments/{NEIGHBOUR}"
        refused = await callers.ask("PUT", path, token=neighbour, json={})
        assert (refused.status_code, refused.json()["error"]["alive"]) == (409, True)
        assert (await callers.ask("PUT", path, token=neighbour, json={"take_over": True})).status_code == 200

    with_callers(test)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", f"/groups/{GROUP}?force=true", None),
        ("DELETE", f"/groups/{GROUP}/volumes/0?force=true", None),
        ("POST", f"/groups/{GROUP}:rollback", {"snapshot": "s", "force": True}),
    ],
)
def test_a_host_ends_no_sessions_of_others_by_force(method: str, path: str, body: dict[str, Any] | None) -> None:
    async def test(callers: Callers) -> None:
        callers.yard.worker.targets.open.append(FakeSession(callers.yard.pool.groups[GROUP].iqn))
        token = await callers.token(host=HOST_A, project="a")
        refused = await callers.ask(method, path, token=token, json=body)
        assert (refused.status_code, "--force" in refused.json()["error"]["message"]) == (403, True)
        assert (await callers.ask(method, path, door="local", json=body)).status_code in (200, 204)

    with_callers(test)


def test_health_tells_a_host_nothing_of_the_machine() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        found = (await callers.ask("GET", "/health", token=token)).json()
        assert (found["status"], found["store"], found["pools"]) == ("ok", "", [])

    with_callers(test)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_revoked_token_is_good_for_nothing_at_once() -> None:
    async def test(callers: Callers) -> None:
        admin = await callers.token(admin=True)
        made = (await callers.ask("POST", "/tokens", token=admin, json={"host": HOST_A, "project": "a"})).json()
        assert (await callers.ask("GET", "/health", token=made["text"])).status_code == 200
        for _ in range(2):
            revoked = await callers.ask("DELETE", f"/tokens/{made['token']['id']}", token=admin)
            assert revoked.json()["revoked"] is not None
        assert (await callers.ask("GET", "/health", token=made["text"])).status_code == 401
        listed = await callers.ask("GET", "/tokens", token=admin)
        assert made["text"] not in listed.text
        assert (await callers.ask("DELETE", "/tokens/99", token=admin)).status_code == 404

    with_callers(test)


@pytest.mark.parametrize(
    "asked",
    [{}, {"host": HOST_A}, {"project": "a"}, {"admin": True, "host": HOST_A}, {"host": "any", "project": "a"}],
)
def test_a_token_is_a_hosts_in_a_project_or_an_administrators(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NewToken(**asked)


def test_tokens_and_audit_survive_a_restart_and_only_hashes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "yard.db"

    async def first() -> str:
        book = YardDatabase(path)
        kept = await book.create_token(NewToken(host=HOST_A, project="a"))
        gone = await book.create_token(NewToken(admin=True))
        await book.revoke_token(gone.token.id)
        book.record(AuditEntry(time=1.0, who="local", address="", action="PUT /x", status=200))
        book.close()
        return kept.text

    async def second(text: str) -> None:
        book = YardDatabase(path)
        found = book.find_token(text)
        assert found is not None
        assert (found.host, found.project, found.admin) == (HOST_A, "a", False)
        assert [token.revoked is None for token in book.list_tokens()] == [True, False]
        assert [entry.action for entry in await book.list_audit(10)] == ["PUT /x"]
        book.close()

    text = run(first())
    run(second(text))
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(text.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_damaged_database_is_moved_aside_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "yard.db"
    path.write_bytes(b"no database " * 1000)
    YardDatabase(path).close()
    assert [file.name for file in tmp_path.iterdir() if "damaged" in file.name]
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(Invalid, match="version is 7"):
        YardDatabase(path)


# --- audit and limits ------------------------------------------------------------------------------------------------


def test_the_audit_log_tells_who_changed_what_and_who_was_refused() -> None:
    async def test(callers: Callers) -> None:
        token = await callers.token(host=HOST_A, project="a")
        await callers.ask("GET", f"/groups/{GROUP}", token=token)
        await callers.ask("POST", f"/groups/{GROUP}/snapshots", token=token, json={"name": "t"})
        await callers.ask("GET", "/pools", token=token)
        await callers.ask("GET", "/pools%1b[2J", token="byt_wrong")
        path = f"/groups/{GROUP}/attachments/{HOST_B}"
        await callers.ask("PUT", path, door="local", json={"take_over": True})
        await callers.ask("DELETE", f"/groups/{GROUP}?force=true", door="local")
        admin = await callers.token(admin=True)
        entries = (await callers.ask("GET", "/audit", token=admin)).json()
        who = f"token 1 ({HOST_A})"
        assert [(entry["who"], entry["action"], entry["status"]) for entry in entries] == [
            (who, f"POST /v1/groups/{GROUP}/snapshots", 201),
            (who, "GET /v1/pools", 403),
            ("nobody", r"GET /v1/pools\x1b[2J", 401),
            ("local", f"PUT /v1{path} (take over)", 200),
            ("local", f"DELETE /v1/groups/{GROUP}?force=true", 204),
        ]
        assert {entry["address"] for entry in entries} == {"192.0.2.9"}
        assert len((await callers.ask("GET", "/audit?limit=2", token=admin)).json()) == 2

    with_callers(test)


def test_an_address_with_too_many_wrong_tokens_has_to_wait_and_good_ones_do_not() -> None:
    async def test(callers: Callers) -> None:
        good = await callers.token(admin=True)
        answers = [await callers.ask("GET", "/health", token="byt_wrong") for _ in range(WrongTokens.LIMIT + 3)]
        assert [answer.status_code for answer in answers] == [401] * WrongTokens.LIMIT + [429] * 3
        assert (await callers.ask("GET", "/health", token="byt_wrong", address="192.0.2.10")).status_code == 401
        assert (await callers.ask("GET", "/health", token=good)).status_code == 200
        assert len(await callers.book.list_audit(100)) == WrongTokens.LIMIT + 1, "the log is bounded, too"
        callers.now += WrongTokens.SECONDS
        assert (await callers.ask("GET", "/health", token="byt_wrong")).status_code == 401

    with_callers(test)


def test_the_audit_log_keeps_the_newest_entries_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yard_database, "MAX_AUDIT", 5)

    async def test() -> None:
        book = YardDatabase(tmp_path / "yard.db")
        for number in range(12):
            book.record(AuditEntry(time=number, who="local", address="", action=f"PUT /{number}", status=200))
        assert [entry.action for entry in await book.list_audit(100)] == [f"PUT /{number}" for number in range(7, 12)]
        book.close()

    run(test())


def test_only_so_many_addresses_are_remembered() -> None:
    wrong = WrongTokens()
    for number in range(2 * WrongTokens.ADDRESSES):
        assert wrong.add(str(number), 0.0)
    assert len(wrong._wrong) == WrongTokens.ADDRESSES


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic dXNlcg==", "Bearer byt_ä", "byt_x"])
def test_whatever_is_no_good_bearer_token_is_refused(value: str) -> None:
    async def test(callers: Callers) -> None:
        transport = httpx.ASGITransport(NetworkDoor(callers.app, callers.book))
        async with httpx.AsyncClient(transport=transport, base_url="http://yard") as client:
            answer = await client.get("/v1/health", headers=[(b"authorization", value.encode())])
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")

    with_callers(test)
