"""The command line of snapshot contents: what it refuses before it asks the daemon, and how values are read."""

from __future__ import annotations

import pytest

from blockyard.cli import snapshot_content
from blockyard.cli.progress import Progress
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
