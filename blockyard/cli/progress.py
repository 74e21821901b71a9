"""How far something is, on one line of standard error; nothing where that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from blockyard.cli.output import size_text
from blockyard.model import transfers

_REFRESH = 0.2  # seconds


class Progress:
    """As a context manager it clears its line at the end."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self.visible = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def count(self, length: int) -> None:
        """So many bytes more, of nobody knows how many."""
        self._bytes += length
        self._draw(f"{size_text(self._bytes)} {self._verb}, {self._rate(self._bytes)}")

    def tell(self, text: str) -> None:
        """What somebody else has counted."""
        self._draw(text)

    def show(self, progress: transfers.Progress | None) -> None:
        if progress is None:
            return
        share = 100 * progress.done / progress.total if progress.total else 100.0
        damage = f", {progress.errors} damaged" if progress.errors else ""
        done = f"{size_text(progress.done)} of {size_text(progress.total)} {self._verb} ({share:.0f} %)"
        self._draw(f"{done}, {self._rate(progress.done)}{self._left(progress)}{damage}")

    def _left(self, progress: transfers.Progress) -> str:
        """The time that is left at the pace so far."""
        if not 0 < progress.done < progress.total:
            return ""
        seconds = round((time.monotonic() - self._began) * (progress.total - progress.done) / progress.done)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        if hours:
            return f", {hours} h {minutes} min left"
        return f", {minutes} min {seconds % 60} s left" if minutes else f", {seconds} s left"

    def _rate(self, done: int) -> str:
        return f"{size_text(int(done / max(time.monotonic() - self._began, 0.001)))}/s"

    def _draw(self, text: str) -> None:
        now = time.monotonic()
        if self.visible and now - self._shown >= _REFRESH:
            self._shown = now
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
