"""What this device server promises in VPD page B0h and therefore enforces. All lengths are in logical blocks."""

from __future__ import annotations

from blockstore.api import GRAIN, LOGICAL_BLOCK

LOGICAL_PER_PHYSICAL = GRAIN // LOGICAL_BLOCK
LOGICAL_PER_PHYSICAL_EXPONENT = LOGICAL_PER_PHYSICAL.bit_length() - 1

MAX_TRANSFER_LENGTH = (8 << 20) // LOGICAL_BLOCK
"""8 MiB (guessed): above what Linux sends in one command, and copied in a few milliseconds."""

OPTIMAL_TRANSFER_LENGTH = (1 << 20) // LOGICAL_BLOCK
"""1 MiB (guessed)."""

MAX_UNMAP_BLOCKS = (512 << 20) // LOGICAL_BLOCK
"""512 MiB; libiscsi's suite takes more than 2**20 blocks for insane."""

MAX_UNMAP_DESCRIPTORS = 512

MAX_WRITE_SAME_LENGTH = 0xFFFF // LOGICAL_PER_PHYSICAL * LOGICAL_PER_PHYSICAL
"""Just under 32 MiB: what WRITE SAME (10) can ask for, in whole physical blocks. libiscsi's suite takes more as leave
to send a WRITE of 65536 blocks, whatever the maximum transfer length says."""

DISCARD_SLICE = 64 << 20
"""Bytes unmapped per step, so that no step holds the loop long (guessed: 16384 map entries)."""

PATTERN_SLICE = 256 << 10
"""Bytes of a pattern written per step: a long WRITE SAME never fills the pool's batch alone (guessed)."""
