"""The harness itself, where it decides without a guest: which mirror, what the suite said, which file is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration import mirror
from integration.conformance_libiscsi import judge
from integration.inside import files, frames

SUITE_OUTPUT = """    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Suite: Example
  Test: Good ...passed
  Test: Partly ...    [SKIPPED] No such page.
passed
  Test: Bad ...    [FAILED] status 2
FAILED
    1. ../test-tool/test.c:67  - CU_ASSERT_EQUAL(ret,0)
  Test: Last ...passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Run Summary:    Type  Total    Ran Passed Failed Inactive
              suites      1      1    n/a      0        0
               tests      4      4      3      1        0
"""


def test_skips_outside_of_the_tests_are_not_counted() -> None:
    assert judge(SUITE_OUTPUT).skipped == ["Partly: No such page."]


def test_a_failed_test_is_named_though_the_suite_goes_on() -> None:
    verdict = judge(SUITE_OUTPUT)
    assert (verdict.bad, verdict.ran, verdict.failed) == (["Bad"], 4, 1)


def test_a_suite_without_a_summary_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="did not finish"):
        judge("Suite: Example\n  Test: Good ...passed\n")


def test_the_mirror_comes_from_one_line_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKYARD_GUEST_MIRROR", raising=False)
    comment = "# deb http://no.example/debian bookworm main\n"
    lines = comment + "deb [arch=amd64 trusted=yes] http://a.example/deb bookworm main\n"
    (tmp_path / "sources.list").write_text(lines)
    assert mirror.find("bookworm", apt=tmp_path) == "http://a.example/deb"


def test_the_mirror_comes_from_deb822_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKYARD_GUEST_MIRROR", raising=False)
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    other = "Types: deb\nURIs: http://b.example/x\nSuites: nodistro\nComponents: main\n"
    ours = (
        "Types: deb deb-src\n# a comment\nURIs:\n http://a.example/debian\nSuites: bookworm\nComponents: main contrib\n"
    )
    (folder / "all.sources").write_text(f"{other}\n{ours}")
    assert mirror.find("bookworm", apt=tmp_path) == "http://a.example/debian"


def test_no_mirror_says_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKYARD_GUEST_MIRROR", raising=False)
    (tmp_path / "sources.list").write_text("deb http://b.example/x nodistro main\n")
    with pytest.raises(mirror.NoMirror, match=r"seen: http://b\.example/x"):
        mirror.find("bookworm", apt=tmp_path)


def test_frames_survive_any_cut_of_the_stream() -> None:
    stream = frames.encode(frames.STDOUT, 7, b"some") + frames.encode(frames.EXIT, 7, b"0")
    bytes_left = iter([stream[index : index + 1] for index in range(len(stream))] + [b""])
    assert list(frames.frames(lambda n: next(bytes_left))) == [(frames.STDOUT, 7, b"some"), (frames.EXIT, 7, b"0")]


def test_a_file_with_one_wrong_byte_is_found(tmp_path: Path) -> None:
    for number in range(3):
        Path(files.path_of(str(tmp_path), number)).write_bytes(files.contents(number))
    files.check(str(tmp_path), 3)
    damaged = Path(files.path_of(str(tmp_path), 1))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match="1 of 3 fsynced files are damaged\nfile 1: other contents"):
        files.check(str(tmp_path), 3)
