"""What this target offers, declares and allows: one frozen value given to every connection. No state."""

from __future__ import annotations

from dataclasses import dataclass

PORTAL_GROUP_TAG = 1
"""There is one portal group: every portal leads to every target."""
COMMAND_WINDOW = 256
"""Commands a session may have outstanding. Linux has 128 (cmds_max); twice that keeps other initiators busy too."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Lengths and budgets are bytes, times are seconds.

    262144 for segments and the first burst is what Linux asks for: a write of up to 256 KiB needs no round trip. A
    burst of 1 MiB makes the usual largest Linux write one R2T, and bounds what one R2T reserves to 1/16 of a session's
    budget.
    """

    max_recv_data_segment_length: int = 262144
    first_burst_length: int = 262144
    max_burst_length: int = 1048576
    max_outstanding_r2t: int = 4
    initial_r2t: bool = False
    immediate_data: bool = True
    header_digests: tuple[str, ...] = ("CRC32C", "None")
    data_digests: tuple[str, ...] = ("CRC32C", "None")
    command_window: int = COMMAND_WINDOW
    ping_interval: float = 10.0
    ping_timeout: float = 10.0
    login_deadline: float = 10.0
    session_buffers: int = 16 << 20
    worker_buffers: int = 256 << 20
    max_immediate_commands: int = 64  # guessed: immediate commands are not bounded by the window, so they need a bound
    portal_group_tag: int = PORTAL_GROUP_TAG

    def __post_init__(self) -> None:
        if not 1 <= self.max_outstanding_r2t <= 8:
            raise ValueError(f"max_outstanding_r2t {self.max_outstanding_r2t} is outside 1..8")
        if self.first_burst_length > self.max_burst_length:
            raise ValueError(
                f"first_burst_length {self.first_burst_length} exceeds max_burst_length {self.max_burst_length}"
            )
