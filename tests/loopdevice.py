"""Block devices for tests: loop devices over sparse files, with sectors of a chosen size. They need root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = "this test needs losetup (Debian package mount) and the right to set up loop devices (root)"


class LoopDevice:
    """``path`` is a block device whose bytes lie in ``file``."""

    def __init__(self, file: Path, size: int, sector: int = 512) -> None:
        self.file = file
        with file.open("wb") as made:
            made.truncate(size)
        self.path = Path(self._losetup("--find", "--show", "--sector-size", str(sector), str(file)))

    def grow(self, size: int) -> None:
        with self.file.open("r+b") as file:
            file.truncate(size)
        self._losetup("--set-capacity", str(self.path))

    def stored_bytes(self) -> int:
        """What the host's file system gave for the device's content."""
        subprocess.run(["sync", "--data", str(self.file)], check=True, timeout=30)
        return self.file.stat().st_blocks * 512

    def close(self) -> None:
        self._losetup("--detach", str(self.path))

    @staticmethod
    def _losetup(*arguments: str) -> str:
        try:
            done = subprocess.run(["losetup", *arguments], capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            raise AssertionError(f"losetup is not there: {NEEDED}") from None
        assert done.returncode == 0, f"losetup {' '.join(arguments)} failed: {done.stderr.strip()}; {NEEDED}"
        return done.stdout.strip()


@contextmanager
def loop_device(folder: Path, size: int, sector: int = 512) -> Iterator[LoopDevice]:
    device = LoopDevice(folder / f"device-{len(list(folder.glob('device-*')))}", size, sector)
    try:
        yield device
    finally:
        device.close()
