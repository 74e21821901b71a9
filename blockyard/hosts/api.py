"""What a host asks of the target: the part of ``client.BlockyardClient`` that ``hosts`` and ``docker`` use.

A Protocol, so that they can be run against a target that is an object of a test.
"""

from __future__ import annotations

from typing import Protocol

from blockyard.model import CloneRequest, Created, Group, Groups, NewGroup, Snapshot, Volume
from blockyard.model.attachments import Attached, Attachment, AttachRequest


class HostApi(Protocol):
    """Every method raises ProductError: Unreachable when no target answers, InUse while another host has the group."""

    def attach(self, group: str, host: str, asked: AttachRequest) -> Attached: ...

    def release(self, group: str, host: str) -> None: ...

    def attachments(self, group: str | None = None, host: str | None = None) -> tuple[Attachment, ...]: ...

    def list_groups(self) -> Groups: ...

    def show_group(self, name: str) -> Group: ...

    def create_group(self, asked: NewGroup) -> Created: ...

    def clone_group(self, source: str, asked: CloneRequest) -> Created: ...

    def resize_volume(self, group: str, lun: int, size: int) -> Volume: ...

    def delete_group(self, name: str) -> None: ...

    def create_snapshot(self, group: str, name: str) -> Snapshot: ...
