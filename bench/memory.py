"""How much memory a process has."""

from __future__ import annotations

import resource


def resident(pid: int | None = None) -> int:
    """Bytes of ``pid`` (None: this process) that are in memory now (proc(5), statm)."""
    with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
