"""Groups, snapshots, clones and rollbacks against a model of dicts, with kills and sweeps in between."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blockstore.support import GRAIN, MIB, PERMIT, Answer, Driver, Store, pattern
from tests.scale import scaled

GRAINS = 64
step = st.tuples(
    st.sampled_from(
        ["write"] * 6
        + ["ragged"] * 2
        + ["discard", "snapshot", "snapshot", "clone", "rollback", "delete snapshot"]
        + ["delete group", "kill", "close", "sweep", "checkpoint"]
    ),
    st.integers(0, 1 << 16),
    st.integers(0, GRAINS - 9),
    st.integers(1, 8),
)


class Machine:
    """The store, and what it should hold: group -> bytes, group -> snapshot -> bytes."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.driver: Driver = self.store.open()
        self.names = 0
        self.groups: dict[str, bytearray] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.new_group()

    def new_name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def new_group(self) -> None:
        name = self.new_name()
        self.driver.group(name, size=MIB)
        self.groups[name], self.snapshots[name] = bytearray(GRAINS * GRAIN), {}

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Joined, not waited for: the next verb must take it along."""
        self.driver.pool.groups[name].volumes[0].write(offset, data, PERMIT, Answer())
        self.groups[name][offset : offset + len(data)] = data

    def do(self, verb: str, pick: int, grain: int, count: int) -> None:
        name = sorted(self.groups)[pick % len(self.groups)]
        group, pool = self.driver.pool.groups[name], self.driver.pool
        snapshots = self.snapshots[name]
        snapshot = sorted(snapshots)[pick % len(snapshots)] if snapshots else None
        if verb == "write":
            self.write(name, grain * GRAIN, pattern(pick, count * GRAIN))
        elif verb == "ragged":
            self.write(name, grain * GRAIN + 512, pattern(pick, count * 1536))
        elif verb == "discard":
            group.volumes[0].discard(grain * GRAIN, count * GRAIN, PERMIT, Answer())
            self.groups[name][grain * GRAIN : (grain + count) * GRAIN] = bytes(count * GRAIN)
        elif verb == "snapshot":
            new = self.new_name()
            self.driver.wait(group.snapshot(new))
            snapshots[new] = bytes(self.groups[name])
        elif verb == "clone" and snapshot and len(self.groups) < 4:
            new = self.new_name()
            self.driver.wait(pool.clone_group(name, snapshot, new, iqn=new, clients=[]))
            self.groups[new], self.snapshots[new] = bytearray(snapshots[snapshot]), {}
        elif verb == "rollback" and snapshot:
            automatic = self.driver.wait(group.rollback(snapshot))
            snapshots[automatic.name] = bytes(self.groups[name])
            self.groups[name] = bytearray(snapshots[snapshot])
        elif verb == "delete snapshot" and snapshot:
            self.driver.wait(group.delete_snapshot(snapshot))
            del snapshots[snapshot]
        elif verb == "delete group" and len(self.groups) > 1:
            self.driver.wait(pool.delete_group(name))
            del self.groups[name], self.snapshots[name]
        elif verb == "kill":
            self.driver.finish(pool.barrier)
            self.driver = self.store.reopen()
        elif verb == "close":
            self.store.close()
            self.driver = self.store.open()
        elif verb == "sweep":
            pool.sweep()
            self.driver.runner.elapse(0.003)
        elif verb == "checkpoint":
            pool.checkpoint()
            self.driver.runner.tick()

    def compare(self) -> None:
        pool = self.driver.pool
        assert sorted(pool.groups) == sorted(self.groups)
        for name, content in self.groups.items():
            group = pool.groups[name]
            assert self.driver.read(group.volumes[0], 0, len(content)) == content
            assert sorted(group.snapshots) == sorted(self.snapshots[name])
            mapped = sum(any(content[at : at + GRAIN]) for at in range(0, len(content), GRAIN))
            assert group.mapped_bytes(0) == mapped * GRAIN
        for name, snapshots in self.snapshots.items():
            for snapshot, expected in snapshots.items():
                clone = self.driver.wait(pool.clone_group(name, snapshot, "look", iqn="look", clients=[]))
                assert self.driver.read(clone.volumes[0], 0, len(expected)) == expected
                self.driver.wait(pool.delete_group("look"))


@pytest.mark.slow
@settings(max_examples=scaled(40), deadline=None, derandomize=True)
@given(st.lists(step, max_size=30))
def test_a_pool_behaves_like_its_model(steps: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="blockyard-model-") as directory:
        machine = Machine(Path(directory) / "pool")
        for each in steps:
            machine.do(*each)
        machine.compare()
        machine.driver = machine.store.reopen()
        machine.compare()
        machine.store.prove_whole()
