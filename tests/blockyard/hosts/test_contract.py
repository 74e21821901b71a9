"""The simulated host keeps the contract of hosts."""

from __future__ import annotations

import pytest

from blockyard.model import Volume
from blockyard.model.attachments import Attached, AttachRequest
from tests.blockyard.hosts import contract
from tests.blockyard.hosts.contract import Bench
from tests.blockyard.hosts.simulated_host import SimulatedHost
from tests.blockyard.hosts.simulated_target import SimulatedTarget

IQN = "iqn.2026-01.example.blockyard:host-a"


class SimulatedBench:
    def __init__(self) -> None:
        self.target = SimulatedTarget()
        self.host = SimulatedHost(self.target, IQN)

    def attached(self) -> Attached:
        group = self.target.make(f"group-{len(self.target.groups)}", 320 << 20)
        return self.target.attach(group.name, IQN, AttachRequest())

    def grow(self, attached: Attached) -> Volume:
        volume = attached.attachment.volumes[0]
        return self.target.resize_volume(attached.attachment.group, 0, volume.size * 2)


@pytest.mark.parametrize("case", contract.CASES, ids=lambda case: case.__name__)
def test_the_simulated_host_keeps_to(case: object) -> None:
    assert callable(case)
    bench: Bench = SimulatedBench()
    case(bench)
