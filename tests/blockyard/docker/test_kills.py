"""The plugin is killed before, in the middle of and after each step of each operation, and the next one converges.

Every step is a command, a write to a file, or a verb of the target. Docker either repeats the request, as it does for
30 s, or gives it up. In the end the host has exactly what the ids say: no session, mount, folder, node record or
attachment more, and no byte of data less.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from blockyard.errors import ProductError
from blockyard.hosts.errors import HostError
from tests.blockyard.docker.world import A, B, Node
from tests.blockyard.hosts.simulated_target import SimulatedTarget
from tests.blockyard.hosts.steps import Killed, Moment

MOST_STEPS = 60  # more than any operation has; a test of the test below


class World:
    """Volume ``db`` with a file, mounted nowhere; host B, which plays the other one."""

    def __init__(self, kind: str) -> None:
        self.target = SimulatedTarget()
        self.node = Node(self.target, A)
        self.other = Node(self.target, B)
        self.node.driver.create("db", {"fs": kind, "size": "1G"})
        self.raw = kind == "raw"
        self.other.driver.mount("db", "x")
        if not self.raw:
            self.other.write("db", "file", b"kept")
        self.other.driver.unmount("db", "x")
        self.target.create_snapshot("db", "monday")
        self.node.plugin.catalogue.refresh()

    def fence(self) -> None:
        self.target.die(A)
        self.other.driver.mount("db", "x")

    def lose_power(self) -> None:
        self.node.host.reboot()
        self.node.restart()

    def lose_book(self) -> None:
        del self.node.host.files["/var/lib/blockyard-docker/state.json"]


@dataclass(frozen=True)
class Operation:
    name: str
    act: Callable[[World], object]
    before: tuple[Callable[[World], object], ...] = ()
    kinds: tuple[str, ...] = ("ext4",)


def mount(each: str, volume: str = "db") -> Callable[[World], object]:
    return lambda world: world.node.driver.mount(volume, each)


def unmount(each: str) -> Callable[[World], object]:
    return lambda world: world.node.driver.unmount("db", each)


def create(volume: str, **options: str) -> Callable[[World], object]:
    given = {key.rstrip("_").replace("_", "-"): value for key, value in options.items()}
    return lambda world: world.node.driver.create(volume, given)


def check(world: World) -> None:
    world.node.plugin.upkeep.check()


def start(world: World) -> None:
    world.node.restart_only()
    check(world)


OPERATIONS = (
    Operation("create", create("new", size="1G", fs="xfs")),
    Operation("clone", create("copy", from_="db@monday", size="2G")),
    Operation("remove", lambda world: world.node.driver.remove("db")),
    Operation("first mount ever", mount("1", "new"), (create("new", size="1G"),)),
    Operation("first mount of xfs", mount("1", "new"), (create("new", size="1G", fs="xfs"),)),
    Operation("mount", mount("1"), (), ("ext4", "xfs", "raw")),
    Operation("mount of a clone that is larger", mount("1", "copy"), (create("copy", from_="db@monday", size="2G"),)),
    Operation("second mount", mount("2"), (mount("1"),)),
    Operation("first unmount of two", unmount("1"), (mount("1"), mount("2"))),
    Operation("last unmount", unmount("1"), (mount("1"),), ("ext4", "xfs", "raw")),
    Operation("take-over", mount("1"), (lambda w: w.other.driver.mount("db", "x"), lambda w: w.target.die(B))),
    Operation("clean up after being fenced", check, (mount("1"), World.fence)),
    Operation(
        "mount after being fenced", mount("2"), (mount("1"), World.fence, lambda w: w.other.driver.unmount("db", "x"))
    ),
    Operation("start after a power cut", start, (mount("1"), lambda w: w.node.host.reboot())),
    Operation("start without the book", start, (mount("1"), World.lose_book)),
)
CASES = [(operation, kind) for operation in OPERATIONS for kind in operation.kinds]
IDS = [f"{operation.name}, {kind}" for operation, kind in CASES]


def prepared(operation: Operation, kind: str) -> World:
    world = World(kind)
    for step in operation.before:
        step(world)
    return world


def steps_of(operation: Operation, kind: str) -> list[str]:
    world = prepared(operation, kind)
    world.target.steps.restart()
    operation.act(world)
    return world.target.steps.names


def killed_at(operation: Operation, kind: str, step: int, moment: Moment) -> World:
    world = prepared(operation, kind)
    world.target.steps.plan(step, moment)
    with pytest.raises(Killed):
        operation.act(world)
    world.node.restart()
    return world


def converge(world: World) -> None:
    for _ in range(2):
        world.node.later(11)


def has_what_the_ids_say(world: World) -> None:
    node, book = world.node, world.node.plugin.volumes.book.all()
    mounted = {mount.folder.split("/")[5] for mount in node.host.mounts}
    assert mounted == set(book) == {volume for volume in book if node.ids(volume)}
    assert {session.group.labels["docker.name"] for session in node.host.sessions} == mounted
    assert len(node.host.sessions) == len(mounted)
    assert {world.target.groups[each.group].labels["docker.name"] for each in node.attachments()} == mounted


def data_is_kept(world: World) -> None:
    if "db" in world.target.groups and not world.raw:
        assert world.target.groups["db"].content.files == {"/file": b"kept"}


def end(world: World) -> None:
    """All containers end."""
    for volume in world.node.plugin.volumes.book.all():
        for each in world.node.ids(volume):
            world.node.driver.unmount(volume, each)
    world.node.nothing_is_left()


def give_up(world: World) -> None:
    """Docker repeats nothing, and has no container: what is left of ids is forgotten."""
    world.node.later()
    world.node.nothing_is_left()


@pytest.mark.parametrize(("operation", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("moment", list(Moment))
def test_nothing_is_left_when_docker_gives_up(operation: Operation, kind: str, moment: Moment) -> None:
    names = steps_of(operation, kind)
    assert 0 < len(names) < MOST_STEPS
    for step in range(1, len(names) + 1):
        world = killed_at(operation, kind, step, moment)
        converge(world)
        has_what_the_ids_say(world)
        data_is_kept(world)
        give_up(world)
        data_is_kept(world)


@pytest.mark.parametrize(("operation", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("upkept", [True, False], ids=["after upkeep", "at once"])
def test_a_repeated_request_ends_as_if_nothing_had_happened(operation: Operation, kind: str, upkept: bool) -> None:
    for step in range(1, len(steps_of(operation, kind)) + 1):
        world = killed_at(operation, kind, step, Moment.AFTER)
        if upkept:
            converge(world)
        expected = prepared(operation, kind)
        operation.act(expected)
        operation.act(world)
        converge(world)
        converge(expected)
        has_what_the_ids_say(world)
        data_is_kept(world)
        assert set(world.target.groups) == set(expected.target.groups)
        if operation.name.startswith(("mount", "first mount", "second", "take-over", "last", "first un")):
            assert world.node.ids("db") == expected.node.ids("db")
        for name, group in world.target.groups.items():
            other = expected.target.groups[name]
            assert (group.size, group.content.kind) == (other.size, other.content.kind)
        end(world)
        data_is_kept(world)


@pytest.mark.slow
def test_a_kill_while_a_kill_is_cleaned_up_converges_too() -> None:
    """Twice in a row: at each step of a mount, and then at each step of the start after it."""
    operation = next(each for each in OPERATIONS if each.name == "mount")
    for first in range(1, len(steps_of(operation, "ext4")) + 1):
        second = 0
        while True:
            second += 1
            world = prepared(operation, "ext4")
            world.target.steps.plan(first, Moment.AFTER)
            with pytest.raises(Killed):
                operation.act(world)
            world.target.steps.plan(second, Moment.AFTER)
            try:
                start(world)
                break  # that start has fewer steps
            except Killed:
                world.node.restart()
            converge(world)
            has_what_the_ids_say(world)
            give_up(world)
            data_is_kept(world)


@pytest.mark.slow
def test_a_target_that_goes_away_at_each_step_leaves_nothing_once_it_is_back() -> None:
    for operation, kind in CASES:
        if operation.name.startswith("start"):
            continue
        for step in range(1, len(steps_of(operation, kind)) + 1):
            world = prepared(operation, kind)
            world.target.steps.restart()
            _go_away_at(world, step)
            with suppress(ProductError, HostError):
                operation.act(world)
            world.target.reachable = True
            world.node.host.reconnect()
            world.other.host.reconnect()
            converge(world)
            has_what_the_ids_say(world)
            data_is_kept(world)


def _go_away_at(world: World, step: int) -> None:
    do = world.target.steps.do

    def counted(name, effect, halfway=None):  # type: ignore[no-untyped-def]
        if world.target.steps.count + 1 == step:
            world.target.reachable = False
            world.node.host.cut()
        return do(name, effect, halfway)

    world.target.steps.do = counted  # type: ignore[method-assign]
