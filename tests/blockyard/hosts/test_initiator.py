"""open-iscsi as verbs: what the contract cannot show, because it has one thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from blockyard.hosts.commands import Deadline
from blockyard.hosts.initiator import Initiator, Session
from blockyard.model.attachments import Attached, AttachRequest
from tests.blockyard.hosts.simulated_host import NODES, SimulatedHost
from tests.blockyard.hosts.simulated_target import SimulatedTarget

IQN = "iqn.2026-01.example.blockyard:host-a"
MEETING_SECONDS = 0.2  # that the first writer gives the second one to come, which must not


class MeetingHost(SimulatedHost):
    """Two that write files by way of the same one have time to meet."""

    def __init__(self, target: SimulatedTarget) -> None:
        super().__init__(target, IQN)
        self.met: list[str] = []
        self._under_way: set[str | None] = set()
        self._meeting = threading.Event()

    def replace(self, path: str, content: bytes, *, by_way_of: str | None = None) -> None:
        if by_way_of in self._under_way:
            self.met.append(path)
            self._meeting.set()
        self._under_way.add(by_way_of)
        self._meeting.wait(MEETING_SECONDS)
        super().replace(path, content, by_way_of=by_way_of)
        self._under_way.discard(by_way_of)


def test_logins_at_the_same_time_do_not_write_each_others_records() -> None:
    target = SimulatedTarget()
    host = MeetingHost(target)
    initiator = Initiator(host)

    def log_in(attached: Attached) -> Session:
        attachment = attached.attachment
        return initiator.log_in(attachment.target, attachment.portals, attached.chap, Deadline(host, 60))

    volumes = [target.attach(target.make(name, 1 << 30).name, IQN, AttachRequest()) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as threads:
        sessions = list(threads.map(log_in, volumes))
    assert host.met == []
    assert [session.target for session in sessions] == [each.attachment.target for each in volumes]
    for each in volumes:
        (record,) = [path for path in host.files if path.startswith(f"{NODES}/{each.attachment.target}/")]
        assert each.chap.secret.encode() in host.files[record]
