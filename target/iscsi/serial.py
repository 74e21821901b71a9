"""Serial number arithmetic on 32 bits (RFC 1982), the order of CmdSN, StatSN and DataSN (RFC 7143 4.2.2.1).

Invariant: every number that leaves this module is in 0..0xffffffff.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF
_HALF = 0x80000000


def add(number: int, amount: int) -> int:
    """``number`` moved by ``amount``, which may be negative, wrapping at 32 bits."""
    return (number + amount) & MASK


def less(a: int, b: int) -> bool:
    """Whether ``a`` comes before ``b``. False in both directions for numbers half the circle apart (RFC 1982 3.2)."""
    return 0 < ((b - a) & MASK) < _HALF


def less_or_equal(a: int, b: int) -> bool:
    """Whether ``a`` is ``b`` or comes before it."""
    return ((b - a) & MASK) < _HALF
