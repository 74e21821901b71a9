"""What the wire layer raises: one error for anything that cannot be read or written as declared."""

from __future__ import annotations


class FormatError(ValueError):
    """Bytes lack the declared form, or a value does not fit its field. Says what was seen and what is allowed."""
