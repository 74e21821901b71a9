"""The command line of snapshot contents: what it refuses before it asks the daemon, and how values are read."""

from __future__ import annotations

from uuid import UUID

import pytest

from blockstore.stream import Head, Ref, StreamEncoder, StreamVolume, pack
from blockyard.cli import snapshot_content
from blockyard.cli.progress import Progress
from blockyard.cli.sending import Passing
from blockyard.cli.values import rate_of
from blockyard.errors import Invalid
from blockyard.model import transfers


@pytest.mark.parametrize(
    ("text", "rate"), [("200M", 200 << 20), ("200M/s", 200 << 20), ("4096", 4096), ("1.5G", 3 << 29)]
)
def test_a_rate_is_a_size_a_second(text: str, rate: int) -> None:
    assert rate_of(text) == rate


@pytest.mark.parametrize("text", ["fast", "0", "4095", ""])
def test_a_rate_that_reads_nothing_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="rate: "):
        rate_of(text)


def test_only_snapshots_of_one_group_are_compared() -> None:
    with pytest.raises(Invalid, match="of two groups"):
        snapshot_content.diff("db@a", "web@b")
    with pytest.raises(Invalid, match="of two groups"):
        snapshot_content.diff("db@a", "web")


def test_a_base_of_another_group_is_refused() -> None:
    with pytest.raises(Invalid, match="only a snapshot of group db"):
        snapshot_content.send("db@b", base="web@a")


def test_status_and_abort_exclude_each_other() -> None:
    with pytest.raises(Invalid, match="exclude each other"):
        snapshot_content.receive("copy", status=True, abort=True)


def test_progress_says_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sent") as progress:
        progress.count(1 << 20)
        progress.show(transfers.Progress(done=1, total=2))

    assert capsys.readouterr() == ("", "")


def test_progress_shows_share_rate_and_damage_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("scrubbed") as progress:
        progress.show(transfers.Progress(done=1 << 20, total=4 << 20, errors=2))

    shown = capsys.readouterr().err
    assert "1 MiB of 4 MiB scrubbed (25 %)" in shown
    assert "2 damaged" in shown


@pytest.mark.parametrize(("seconds", "left"), [(3, "9 s left"), (40, "2 min 0 s left"), (2000, "1 h 40 min left")])
def test_progress_shows_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: int, left: str
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress("sent") as progress:
        now += seconds
        progress.show(transfers.Progress(done=1 << 20, total=4 << 20))

    assert capsys.readouterr().err.endswith(f", {left}\r\x1b[K")


@pytest.mark.parametrize("chunk", [1, 7, 44, 1 << 20])
def test_the_content_of_a_passing_stream_is_counted_however_it_is_cut(chunk: int) -> None:
    encoder = StreamEncoder()
    head = Head("db", Ref("a", UUID(int=1)), 0.0, None, (StreamVolume(0, "vol0", 1 << 20),))
    contents = [bytes(5000), b"x" * 100]
    pieces = [encoder.piece(0, 1 << 20, pack(content), len(content)) for content in contents]
    stream = b"".join([encoder.head(head), *pieces, encoder.tail()])

    passing = Passing()
    for at in range(0, len(stream), chunk):
        passing.count(stream[at : at + chunk])

    assert passing.content == 5100


def test_bytes_that_are_no_stream_pass_uncounted() -> None:
    passing = Passing()
    passing.count(b"no stream of ours at all, but longer than an envelope is")

    assert passing.content == 0
