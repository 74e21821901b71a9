"""The I_T nexus as the device server sees it: who sent the command (SAM-5, I_T nexus)."""

from __future__ import annotations


class Nexus:
    """One session. Compared by identity: a session that reinstates another is a new nexus."""

    __slots__ = ("initiator_name", "initiator_port", "read_only")

    def __init__(self, initiator_name: str, isid: bytes, *, read_only: bool = False) -> None:
        self.initiator_name = initiator_name
        self.initiator_port = f"{initiator_name},i,0x{isid.hex()}"
        """The SCSI initiator port's name (RFC 7143 4.2.7.3); outlives the session."""
        self.read_only = read_only
        """Every logical unit is write protected for it."""

    def __repr__(self) -> str:
        return f"Nexus({self.initiator_port})"
