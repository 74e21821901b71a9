"""The command line against the REST API over its real Unix socket: answers, next steps, errors, exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockyard.cli.main import main
from blockyard.cli.output import print_table, size_text
from tests.blockyard.support import HOST_A, HOST_B, SECRET, FakeSession, MemoryYard, served_yard


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryYard]:
    path = tmp_path_factory.mktemp("yard") / "api.sock"
    with served_yard(path) as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKYARD_API", f"unix:{path}")
        patch.setattr(served, "api_path", path, raising=False)
        yield served


class Command:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def json(self, *words: str) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def group(yard: MemoryYard, cli: Command, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:60].rstrip("-.[]")
    cli.json("group", "create", name, "--size", "1M", "--client", "any")
    return name


def api(yard: MemoryYard, method: str, path: str, **more: Any) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(yard.api_path))  # type: ignore[attr-defined]
    with httpx.Client(transport=transport, base_url="http://blockyard/v1") as http:
        return http.request(method, path, **more)


def test_group_create_prints_the_lines_that_log_a_host_in(yard: MemoryYard, cli: Command) -> None:
    code, out, _ = cli("group", "create", "lines", "--size", "10G", "--client", "any")
    iqn = cli.json("group", "show", "lines")["iqn"]
    assert code == 0
    assert "iscsiadm -m discovery -t sendtargets -p 192.0.2.1:3260" in out
    assert f"iscsiadm -m node -T {iqn} -p 192.0.2.1:3260 --login" in out


def test_group_create_answers_json_with_the_iqn(yard: MemoryYard, cli: Command) -> None:
    made = cli.json("group", "create", "as-json", "--size", "10G", "--client", "any")
    assert made["iqn"].endswith(":as-json")
    assert made["volumes"][0]["size"] == 10 << 30
    assert (made["created"], made["volumes"][0]["lun"]) == (True, 0)
    assert not cli.json("group", "create", "as-json", "--size", "10G", "--client", "any")["created"]


def test_a_generated_secret_is_shown_once(yard: MemoryYard, cli: Command) -> None:
    chap = ["--client", HOST_A, "--chap-user", "alice", "--generate-chap"]
    made = cli.json("group", "create", "secretive", "--size", "1M", *chap)
    assert len(made["chap_secret"]) == 16
    for words in (["group", "show", "secretive"], ["client", "ls", "secretive"]):
        _, out, _ = cli(*words)
        assert made["chap_secret"] not in out


def test_chap_lines_hide_a_secret_that_was_given(
    yard: MemoryYard, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    file = tmp_path / "secret"
    file.write_text("battery staple 5678\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(SECRET + "\n"))
    chap = ["--chap-user", "alice", "--chap-secret-file", "-"]
    mutual = ["--mutual-user", "yard", "--mutual-secret-file", str(file)]
    code, out, err = cli("client", "allow", group, HOST_A, *chap, *mutual)
    assert code == 0, err
    assert "node.session.auth.username -v alice" in out
    assert "node.session.auth.username_in -v yard" in out
    assert SECRET not in out
    assert cli.json("client", "ls", group)[1]["auth"] == "mutual chap"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chap-user", "a"], "needs one of"),
        (["--generate-chap"], "need --chap-user"),
        (["--mutual-user", "a"], "need each other"),
        (["--chap-user", "a", "--chap-secret-file", "/nonexistent"], "cannot be read"),
        (["--address", "nonsense"], "address range"),
    ],
)
def test_options_that_do_not_fit_are_refused(yard: MemoryYard, cli: Command, options: list[str], said: str) -> None:
    code, _, err = cli("client", "allow", "any-group", HOST_A, *options)
    assert (code, said in err) == (2, True), err


def test_equal_and_short_secrets_are_refused_without_being_shown(
    yard: MemoryYard, cli: Command, tmp_path: Path
) -> None:
    same, short = tmp_path / "same", tmp_path / "short"
    same.write_text(SECRET)
    short.write_text("tooshort")
    chap = ["client", "allow", "x", HOST_A, "--chap-user", "a", "--chap-secret-file"]
    code, _, err = cli(*chap, str(same), "--mutual-user", "b", "--mutual-secret-file", str(same))
    assert (code, "must differ" in err, SECRET in err) == (2, True, False)
    code, _, err = cli(*chap, str(short))
    assert (code, "8 bytes, allowed are 12" in err, "tooshort" in err) == (2, True, False)


def test_listings_are_tables_without_a_terminals_decoration(yard: MemoryYard, cli: Command, group: str) -> None:
    cli("snapshot", "create", f"{group}@one")
    for words in (["group", "ls"], ["group", "show", group], ["volume", "ls", group], ["snapshot", "ls", group]):
        code, out, err = cli(*words)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        assert "MiB" in out or "one" in out


def test_the_life_of_a_group(yard: MemoryYard, cli: Command, group: str) -> None:
    cli.json("snapshot", "create", group, "one")
    assert [each["name"] for each in cli.json("snapshot", "ls", group)] == ["one"]
    assert cli.json("group", "clone", f"{group}@one", "a-clone")["origin"] == f"{group}@one"
    assert cli.json("group", "rollback", group, "one")["name"].startswith("before-rollback-")
    assert cli.json("volume", "add", group, "--size", "1M", "--name", "log")["lun"] == 1
    assert cli.json("volume", "resize", group, "1", "2M")["size"] == 2 << 20
    assert cli.json("volume", "rm", group, "1") == {"deleted": 1}
    assert cli.json("group", "set", group, "--cache", "writethrough")["cache"] == "writethrough"
    assert cli.json("client", "deny", group, "any") == {"denied": "any"}
    assert cli.json("snapshot", "rm", f"{group}@one") == {"deleted": f"{group}@one"}
    assert cli.json("group", "rm", group) == {"deleted": group}
    assert cli.json("group", "rm", "a-clone") == {"deleted": "a-clone"}
    assert cli.json("pool", "sweep", "pool-0") == {"freed": 0}


def test_every_noun_answers_people(yard: MemoryYard, cli: Command, group: str) -> None:
    verbs = [
        (["snapshot", "create", group, "x"], "Next: blockyard group clone"),
        (["group", "rollback", f"{group}@x"], "To undo"),
        (["group", "clone", f"{group}@x", "other"], "made from"),
        (["group", "rm", "other"], "deleted"),
        (["volume", "add", group, "--size", "1M"], "LUN 1"),
        (["volume", "resize", group, "1", "2M"], "2 MiB now"),
        (["volume", "rm", group, "1"], "removed"),
        (["client", "allow", group, HOST_A], "may log in"),
        (["client", "deny", group, HOST_A], "no longer"),
        (["group", "set", group, "--cache", "writethrough"], "writethrough now"),
        (["snapshot", "rm", group, "x"], "deleted"),
        (["pool", "sweep", "pool-0"], "came back"),
        (["pool", "show", "pool-0"], "Flush rounds"),
        (["pool", "ls"], "serving"),
        (["session", "ls"], ""),
        (["version"], "blockyard "),
    ]
    for words, said in verbs:
        code, out, err = cli(*words)
        assert (code, said in out) == (0, True), (words, out, err)


def test_sessions_are_listed_and_keep_a_group_from_being_deleted(yard: MemoryYard, cli: Command, group: str) -> None:
    iqn = cli.json("group", "show", group)["iqn"]
    yard.worker.targets.open.append(FakeSession(iqn))
    assert cli.json("session", "ls")[0]["initiator"] == HOST_A
    assert HOST_A in cli("session", "ls", group)[1]
    assert cli.json("group", "show", group)["sessions"] == 1
    code, _, err = cli("group", "rm", group)
    assert (code, "open session" in err) == (6, True)
    assert cli("group", "rm", group, "--force")[0] == 0


def test_sizes_are_rounded_up_and_that_is_said(yard: MemoryYard, cli: Command) -> None:
    code, out, err = cli("group", "create", "rounded", "--size", "5000", "--client", "any")
    assert (code, "rounded up to 8192" in err, "8 KiB" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["group", "create", "Bad_Name", "--size", "1G"], 2, "is not a group name"),
        (["group", "create", "x", "--size", "1Q"], 2, "is not a size"),
        (["group", "create", "x", "--size", "257T"], 2, "256 TiB"),
        (["group", "create", "x", "--size", "1G", "--client", "bob"], 2, "is not an initiator name"),
        (["group", "create", "x", "--size", "1G", "--iqn", "iqn.bad"], 2, "is not a target name"),
        (["group", "show", "nope"], 4, "no group is named nope"),
        (["group", "clone", "nope", "x"], 2, "GROUP@SNAPSHOT"),
        (["snapshot", "create", "nope", "x"], 4, "no group is named nope"),
        (["snapshot", "create", "a@b", "c"], 2, "does not name one snapshot"),
        (["pool", "show", "nope"], 4, "there are: pool-0"),
        (["session", "ls", "nope"], 4, "no group is named nope"),
        (["group", "frob"], 2, "frob"),
    ],
)
def test_a_refusal_is_one_line_and_has_its_exit_code(
    yard: MemoryYard, cli: Command, words: list[str], exit_code: int, said: str
) -> None:
    code, out, err = cli(*words)
    assert (code, out, said in err) == (exit_code, "", True), err
    assert "Traceback" not in err


def test_without_a_daemon_it_says_how_to_start_one(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKYARD_API", "unix:/nonexistent/api.sock")
    code, _, err = cli("group", "ls")
    assert (code, "blockyard serve --store DIR --portal HOST:PORT" in err) == (3, True)
    monkeypatch.setenv("BLOCKYARD_API", "http://localhost")
    assert cli("group", "ls")[0] == 2


def test_a_narrow_terminal_loses_the_columns_that_can_be_asked_for_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width, there in ((30, False), (60, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(["Group", ">Size", "~IQN"], [["db", "10 GiB", HOST_A]], empty="")
        out = capsys.readouterr().out
        assert ("10 GiB" in out, HOST_A in out) == (True, there)


def test_piped_tables_have_nothing_at_the_ends_of_their_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(["Group", ">Size", "~IQN"], [["db", "10 GiB", HOST_A], ["staging", "1 GiB", "-"]], empty="")
    assert capsys.readouterr().out.splitlines() == [
        "Group      Size  IQN",
        f"db       10 GiB  {HOST_A}",
        "staging   1 GiB  -",
    ]


def test_help_and_wrong_options_are_plain_text_and_name_the_exit_codes(cli: Command) -> None:
    _, out, _ = cli("--help")
    assert "10 locked" in " ".join(out.split())
    code, _, err = cli("group", "create", "db", "--seize", "1G")
    assert (code, "No such option: --seize" in err) == (2, True)
    assert (out + err).isascii()


@pytest.mark.parametrize("noun", ["group", "volume", "snapshot", "client", "session", "pool"])
def test_every_verb_has_an_example(cli: Command, noun: str) -> None:
    _, out, _ = cli(noun, "--help")
    verbs = [word for word in ("create", "ls", "show", "rm", "add", "allow", "deny", "sweep") if f"\n  {word} " in out]
    assert verbs
    for verb in verbs:
        assert "Example: blockyard" in cli(noun, verb, "--help")[1]


def test_rest_errors_have_code_and_message_and_show_no_input(yard: MemoryYard) -> None:
    missing = api(yard, "GET", "/groups/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    client = {"initiator": HOST_A, "chap": {"user": "a", "secret": "tooshort"}}
    invalid = api(yard, "PUT", f"/groups/x/clients/{HOST_A}", json=client)
    assert (invalid.status_code, invalid.json()["error"]["code"]) == (400, "invalid")
    assert "tooshort" not in invalid.text
    other = api(yard, "PUT", "/groups/x/clients/any", json={"initiator": HOST_A})
    assert (other.status_code, "must be the same" in other.text) == (400, True)
    assert api(yard, "GET", "/nowhere").json()["error"]["code"] == "not_found"
    assert api(yard, "PUT", "/groups").status_code == 405
    unknown = api(yard, "POST", "/groups", json={"name": "x", "volumes": [{"size": 1}], "sise": 3})
    assert (unknown.status_code, "sise" in unknown.text) == (400, True)


def test_rest_refuses_a_body_that_would_fill_the_memory(yard: MemoryYard) -> None:
    refused = api(yard, "POST", "/groups", content=b'{"name":"' + b"x" * (2 << 20))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "invalid")


def test_rest_names_only_what_is_wrong_with_a_volume(yard: MemoryYard) -> None:
    refused = api(yard, "POST", "/groups", json={"name": "x", "volumes": [{"size": -1}]})
    assert refused.json()["error"]["message"].startswith("volumes.0.size: a volume of -1 bytes is not allowed")
    assert ";" not in refused.text
    none = api(yard, "POST", "/groups", json={"name": "x", "volumes": []})
    assert none.json()["error"]["message"] == "volumes: a group of 0 volumes is not allowed: 1 to 256"


def test_rest_tells_made_from_found(yard: MemoryYard, cli: Command) -> None:
    body = {"name": "by-rest", "volumes": [{"size": 1 << 20}]}
    assert [api(yard, "POST", "/groups", json=body).status_code for _ in range(2)] == [201, 200]
    assert api(yard, "DELETE", "/groups/by-rest").status_code == 204


def test_rest_describes_itself_and_its_health(yard: MemoryYard) -> None:
    health = api(yard, "GET", "/health").json()
    assert (health["status"], health["version"], health["portals"]) == ("ok", "1.2.3", ["192.0.2.1:3260"])
    paths = api(yard, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/groups", "/v1/groups/{name}:clone", "/v1/groups/{group}/clients/{initiator}"} <= set(paths)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (4096, "4 KiB"), (10 << 30, "10 GiB"), (3 << 39, "1.5 TiB"), (None, "-")],
)
def test_sizes_are_readable(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_attaching_shows_the_login_and_a_holder_is_named(yard: MemoryYard, cli: Command, group: str) -> None:
    code, out, _ = cli("attachment", "create", group, "--host", HOST_A)
    secret = cli.json("attachment", "create", group, "--host", HOST_A)["chap"]["secret"]
    iqn = yard.pool.groups[group].iqn
    assert code == 0
    assert f"iscsiadm -m node -T {iqn} -p 192.0.2.1:3260 -o update -n node.session.auth.password -v {secret}" in out
    code, _, err = cli("attachment", "create", group, "--host", HOST_B)
    assert (code, HOST_A in err, "take it over" in err) == (6, True, True)
    code, out, _ = cli("attachment", "ls", group)
    assert (code, HOST_A in out, secret in out) == (0, True, False)
    assert f"Attached to  {HOST_A}" in cli("group", "show", group)[1]
    code, out, _ = cli("attachment", "take-over", group, "--host", HOST_B, "--mode", "read-only-many")
    assert (code, "read-only-many, generation 2" in out) == (0, True)
    for _ in range(2):
        assert cli("attachment", "release", group, "--host", HOST_B)[0] == 0
    assert "No attachments" in cli("attachment", "ls", group)[1]


def test_labels_are_set_merged_and_taken_away(cli: Command, group: str) -> None:
    cli.json("group", "set", group, "--label", "a=1", "--label", "b=2")
    assert cli.json("group", "set", group, "--label", "a=", "--label", "c=x=y")["labels"] == {"b": "2", "c": "x=y"}
    assert "b=2, c=x=y" in cli("group", "show", group)[1]
    assert cli.json("group", "set", group, "--cache", "writethrough")["labels"] == {"b": "2", "c": "x=y"}
    assert cli("group", "set", group)[0] == 2
    code, _, err = cli("group", "set", group, "--label", "novalue")
    assert (code, "KEY=VALUE" in err) == (2, True)


def test_a_token_is_shown_once_and_the_audit_log_tells_of_it(cli: Command) -> None:
    code, out, _ = cli("token", "create", "--host", HOST_A, "--project", "shop")
    [text] = [line for line in out.splitlines() if line.startswith("byt_")]
    assert (code, "in project shop" in out) == (0, True)
    listed = cli("token", "ls")[1]
    assert (HOST_A in listed, text in listed) == (True, False)
    number = str(cli.json("token", "ls")[-1]["id"])
    assert "is revoked" in cli("token", "revoke", number)[1]
    assert cli("token", "revoke", "4711")[0] == 4
    assert cli("token", "create")[0] == 2
    assert f"DELETE /v1/tokens/{number}" in cli("audit", "ls", "--limit", "3")[1]
    assert cli.json("audit", "ls", "--limit", "1")[0]["status"] == 404


def test_the_api_describes_itself_on_the_command_line(cli: Command) -> None:
    code, out, _ = cli("api", "openapi")
    assert code == 0
    assert "/v1/groups/{group}/attachments/{host}" in json.loads(out)["paths"]
