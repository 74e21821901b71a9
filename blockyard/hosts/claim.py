"""Getting a group for this host, also from a host that has died.

A holder that answers the target's pings keeps the group: the error names it. One that is silent is waited for until
the target says that it is not alive, and is then fenced. Who is logged in as a client is no holder, and is never fenced
from here. Invariant: nobody is fenced whom the target calls alive.
"""

from __future__ import annotations

import time

from blockyard.errors import InUse
from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Deadline, Host
from blockyard.model.attachments import Attached, Attachment, AttachMode, AttachRequest

_POLL = 1.0
_LOOKS = 2  # until a refusal that names no holder is believed: one may have given the group back in between
_ADVANCE = 1.0  # seconds; the target reckons from two clocks, and what was under way may still have come


def claim(api: HostApi, host: Host, iqn: str, group: str, mode: AttachMode, patience: Deadline) -> Attached:
    """Raises InUse when another host has it and goes on living, or stays undecided for longer than ``patience``."""
    first_seen: dict[str, float | None] = {}
    without_holder = 0
    while True:
        try:
            return api.attach(group, iqn, AttachRequest(mode=mode))
        except InUse as error:
            refusal = error
        listed = api.attachments(group=group)
        holders = [each for each in listed if each.host.lower() != iqn.lower()]
        if not listed:
            without_holder += 1
            if without_holder == _LOOKS:
                raise refusal
            host.sleep(_POLL)
            continue
        if not any(holder.alive for holder in holders):
            return api.attach(group, iqn, AttachRequest(mode=mode, take_over=True))
        for holder in holders:
            if holder.alive and _has_answered(first_seen.setdefault(holder.host, holder.seen), holder.seen):
                raise InUse(_refusal(holder, "which answers"))
        if patience.over:
            raise InUse(_refusal(next(each for each in holders if each.alive), "which has not been declared dead yet"))
        host.sleep(_POLL)


def _has_answered(first: float | None, now: float | None) -> bool:
    """Since it was looked at first. Both are the target's clock, so the clocks of the hosts don't matter."""
    return now is not None and (first is None or now > first + _ADVANCE)


def _refusal(holder: Attachment, condition: str) -> str:
    since = "" if holder.seen is None else f" (last answer {time.strftime('%H:%M:%S', time.gmtime(holder.seen))} UTC)"
    return (
        f"{holder.group} is attached to host {holder.host}, {condition}{since}: stop what uses it there, "
        "or fence that host with a take-over"
    )
