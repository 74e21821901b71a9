"""Two hosts, some volumes, requests in any order, and anything may die at any step: plugin, Docker, host, target.

A model knows which bytes each volume must hold and who may have it mounted. After every event the hosts are let
converge, and must have exactly what their ids say; in the end everything is unmounted, and nothing is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from blockyard.errors import ProductError
from blockyard.hosts.errors import HostError
from tests.blockyard.docker.world import STATE, A, B, Node
from tests.blockyard.hosts.simulated_target import SimulatedTarget
from tests.blockyard.hosts.steps import Killed, Moment
from tests.scale import SEED, scaled

VOLUMES = ("one", "two", "three")
KINDS = ("ext4", "xfs")
EVENTS = 200
KILLED = 0.4  # of the requests


@dataclass
class Yard:
    random: random.Random
    target: SimulatedTarget = field(default_factory=SimulatedTarget)
    data: dict[str, bytes] = field(default_factory=dict)
    """What was written last to each volume, by whoever had it."""
    ids: int = 0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = [Node(self.target, A), Node(self.target, B)]

    # --- requests --------------------------------------------------------------------------------------------------

    def request(self, what: str, node: Node, act: Callable[[], object]) -> bool:
        """Whether it was answered without an error; now and then the plugin dies of it, and Docker repeats it or
        does not."""
        self.said.append(f"{what} on {node.iqn[-6:]}")
        self.target.steps.restart()
        if self.random.random() < KILLED:
            self.target.steps.plan(self.random.randint(1, 12), self.random.choice(list(Moment)))
        try:
            act()
        except Killed as killed:
            self.said.append(str(killed))
            node.restart()
            return self.random.random() < 0.5 and self.request(f"{what} again", node, act)
        except (ProductError, HostError) as error:
            self.target.steps.restart()
            self.said.append(f"refused: {error}")
            return False
        self.target.steps.restart()
        return True

    def create(self, node: Node) -> None:
        volume = self.random.choice(VOLUMES)
        fresh = volume not in self.target.groups
        kind = self.random.choice(KINDS)
        self.request(f"create {volume}", node, lambda: node.driver.create(volume, {"fs": kind} if fresh else {}))

    def remove(self, node: Node) -> None:
        volume = self.random.choice(VOLUMES)
        self.request(f"remove {volume}", node, lambda: node.driver.remove(volume))
        if volume not in self.target.groups:
            self.data.pop(volume, None)

    def mount(self, node: Node) -> None:
        volume = self.random.choice(VOLUMES)
        self.ids += 1
        each = f"id-{self.ids}"
        if self.request(f"mount {volume} {each}", node, lambda: node.driver.mount(volume, each)):
            self.look(node, volume)
            self.data[volume] = each.encode()
            node.write(volume, "file", each.encode())

    def unmount(self, node: Node) -> None:
        held = [(volume, each) for volume in VOLUMES for each in sorted(node.ids(volume))]
        if held:
            volume, each = self.random.choice(held)
            self.request(f"unmount {volume} {each}", node, lambda: node.driver.unmount(volume, each))

    def check(self, node: Node) -> None:
        self.request("check", node, lambda: node.later(11))

    # --- events ----------------------------------------------------------------------------------------------------

    def lose_power(self, node: Node) -> None:
        self.said.append(f"power cut on {node.iqn[-6:]}")
        self.target.die(node.iqn)
        node.host.reboot()
        if self.random.random() < 0.5:  # while it is off
            other = next(each for each in self.nodes if each is not node)
            self.mount(other)
        node.host.start_dockerd()
        node.restart()

    def cut_off(self, node: Node) -> None:
        """Its connections break and come back; meanwhile the other one may take over."""
        self.said.append(f"{node.iqn[-6:]} is cut off")
        node.host.cut()
        self.target.die(node.iqn)
        self.mount(next(each for each in self.nodes if each is not node))
        for group in self.target.groups.values():
            if node.iqn in group.held:
                group.held[node.iqn].alive = True
        node.host.reconnect()

    def target_away(self, node: Node) -> None:
        self.said.append("the target is away")
        self.target.reachable = False
        for each in self.nodes:
            each.host.cut()
        self.random.choice((self.mount, self.unmount, self.check, self.create))(node)
        self.target.reachable = True
        for each in self.nodes:
            each.host.reconnect()

    def lose_book(self, node: Node) -> None:
        self.said.append(f"{node.iqn[-6:]} loses its book")
        node.host.files.pop(f"{STATE}/state.json", None)
        node.restart()

    # --- what holds ------------------------------------------------------------------------------------------------

    def look(self, node: Node, volume: str) -> None:
        if volume in self.data:
            assert node.read(volume, "file") == self.data[volume]

    def converge(self) -> None:
        for node in self.nodes:
            for _ in range(3):
                node.later(11)
        for node in self.nodes:
            self.has_what_its_ids_say(node)

    def has_what_its_ids_say(self, node: Node) -> None:
        wanted = {volume for volume in VOLUMES if node.ids(volume)}
        assert set(node.plugin.volumes.book.all()) == wanted
        assert {mount.folder.rpartition("/")[2] for mount in node.host.mounts} == wanted
        assert sorted(session.group.name for session in node.host.sessions) == sorted(wanted)
        assert {each.group for each in node.attachments()} == wanted
        for volume in wanted:
            self.look(node, volume)

    def end(self) -> None:
        for node in self.nodes:
            for volume in VOLUMES:
                for each in node.ids(volume):
                    node.driver.unmount(volume, each)
            node.later()
            node.nothing_is_left()


@pytest.mark.slow
def test_whatever_dies_in_whatever_order_nothing_is_left_and_no_data_is_lost() -> None:
    for number in range(scaled(3)):
        seed = SEED + number
        yard = Yard(random.Random(seed))
        usual = (yard.create, yard.mount, yard.mount, yard.mount, yard.unmount, yard.unmount, yard.check, yard.remove)
        rare = (yard.lose_power, yard.cut_off, yard.target_away, yard.lose_book)
        try:
            for _ in range(EVENTS):
                event = yard.random.choice(rare if yard.random.random() < 0.15 else usual)
                event(yard.random.choice(yard.nodes))
                yard.converge()
            yard.end()
        except Exception as error:
            raise AssertionError(f"seed {seed}, the last events: {yard.said[-12:]}") from error
