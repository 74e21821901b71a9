"""The driver's verbs, over a simulated host and target."""

from __future__ import annotations

import errno
import signal

import pytest

from blockyard.docker import snapshot
from blockyard.docker.config import DockerConfig
from blockyard.docker.upkeep import STEP_SECONDS
from blockyard.errors import AlreadyExists, InUse, Invalid, NotFound, ProductError, Unreachable
from blockyard.hosts.errors import CommandTimeout, NotBlank, StillMounted
from tests.blockyard.docker.world import LONG, STATE, A, B, Node
from tests.blockyard.hosts.simulated_target import SimulatedTarget

GIB = 1 << 30


@pytest.fixture
def target() -> SimulatedTarget:
    return SimulatedTarget()


@pytest.fixture
def node(target: SimulatedTarget) -> Node:
    return Node(target, A)


@pytest.fixture
def other(target: SimulatedTarget) -> Node:
    return Node(target, B)


# --- create and remove ---------------------------------------------------------------------------------------------


def test_create_makes_a_group_that_says_what_it_is(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("shop_data", {"size": "2G", "fs": "xfs", "cache": "writethrough"})
    (group,) = target.groups.values()
    assert (group.size, group.cache) == (2 * GIB, "writethrough")
    assert group.labels["docker.name"] == "shop_data"
    assert group.labels["docker.fs"] == "xfs"
    assert [volume["Name"] for volume in node.driver.list()] == ["shop_data"]


def test_create_again_with_the_same_options_or_without_any_changes_nothing(node: Node, other: Node) -> None:
    node.driver.create("db", {"size": "2G", "fs": "xfs", "mkfs-opts": "-i size=512"})
    node.driver.create("db", {"size": "2G", "fs": "xfs", "mkfs-opts": "-i size=512"})
    other.driver.create("db", {})
    assert len(node.target.groups) == 1


@pytest.mark.parametrize(
    ("options", "difference"),
    [({"size": "3G"}, "size"), ({"fs": "ext4"}, "fs"), ({"cache": "writethrough"}, "cache"), ({"group": "x"}, "group")],
)
def test_create_again_with_other_options_names_the_difference(
    node: Node, options: dict[str, str], difference: str
) -> None:
    node.driver.create("db", {"size": "2G", "fs": "xfs"})
    with pytest.raises(AlreadyExists) as refused:
        node.driver.create("db", options)
    assert f"{difference}=" in str(refused.value)


def test_a_volume_that_has_grown_is_still_the_one_that_was_asked_for(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {"size": "2G"})
    target.groups["db"].size = 3 * GIB
    node.driver.create("db", {"size": "2G"})
    node.driver.create("db", {"size": "3G"})


def test_create_from_a_snapshot_makes_a_larger_clone_with_the_data(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("my_db", {"size": "1G", "fs": "xfs", "group": "db"})
    node.driver.mount("my_db", "1")
    node.write("my_db", "file", b"kept")
    target.create_snapshot("db", "monday")
    node.driver.create("copy", {"from": "my_db@monday", "size": "2G"})
    node.driver.create("copy", {"from": "db@monday", "size": "2G"})
    node.driver.mount("copy", "2")
    assert node.read("copy", "file") == b"kept"
    assert target.groups["copy"].content.filesystem_size == 2 * GIB
    with pytest.raises(Invalid, match="less than what db has"):
        node.driver.create("small", {"from": "db@monday", "size": "512M"})
    with pytest.raises(NotFound):
        node.driver.create("none", {"from": "db@tuesday"})


def test_a_group_that_docker_did_not_make_is_a_volume_but_is_not_removed(node: Node, target: SimulatedTarget) -> None:
    target.make("db", GIB)
    node.driver.mount("db", "1")
    node.driver.unmount("db", "1")
    with pytest.raises(Invalid, match="blockyard group delete db"):
        node.driver.remove("db")
    assert "db" in target.groups


def test_remove_takes_the_group_away_and_can_be_repeated(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.remove("db")
    node.driver.remove("db")
    assert target.groups == {}
    assert node.driver.list() == []


def test_remove_refuses_what_is_mounted_here_or_elsewhere(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    with pytest.raises(InUse, match="on this host"):
        node.driver.remove("db")
    with pytest.raises(InUse, match="host-a"):
        other.driver.remove("db")
    node.driver.unmount("db", "1")
    other.driver.remove("db")


# --- mount and unmount ---------------------------------------------------------------------------------------------


def test_mounts_are_counted_by_id_over_a_restart_of_the_plugin(node: Node) -> None:
    node.driver.create("db", {})
    assert node.driver.path("db") == ""
    folder = node.driver.mount("db", "1")
    assert node.driver.mount("db", "2") == folder == node.driver.path("db") == f"{STATE}/volumes/db"
    node.driver.mount("db", "2")  # repeated: counted once
    node.write("db", "file", b"kept")
    node.restart()
    node.driver.unmount("db", "1")
    assert node.read("db", "file") == b"kept"
    node.driver.unmount("db", "unknown")
    assert node.ids("db") == {"2"}
    node.driver.unmount("db", "2")
    node.driver.unmount("db", "2")
    node.nothing_is_left()
    assert node.driver.path("db") == ""


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_data_is_there_on_another_host_after_an_unmount(node: Node, other: Node, kind: str) -> None:
    node.driver.create("db", {"fs": kind})
    node.driver.mount("db", "1")
    node.write("db", "file", b"kept")
    node.driver.unmount("db", "1")
    other.driver.mount("db", "2")
    assert other.read("db", "file") == b"kept"


def test_a_raw_volume_is_mounted_as_a_device(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {"fs": "raw"})
    node.driver.mount("db", "1")
    assert node.host.mounts[0].folder == f"{STATE}/volumes/db/disk"
    assert target.groups["db"].content.kind is None
    node.driver.unmount("db", "1")
    node.nothing_is_left()


def test_a_volume_in_use_elsewhere_names_its_holder_and_leaves_nothing(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")

    def answer(seconds: float, sleep: object = other.host.sleep) -> None:
        other.host.clock += seconds
        for held in node.target.groups["db"].held.values():
            held.seen = 2000.0 + 5 * other.host.clock

    other.host.sleep = answer  # type: ignore[method-assign]
    began = other.host.clock
    with pytest.raises(InUse, match="host-a, which answers"):
        other.driver.mount("db", "2")
    assert other.host.clock - began < 5
    other.nothing_is_left()
    node.write("db", "file", b"unharmed")


def test_a_silent_holder_is_waited_for_and_fenced_once_it_is_dead(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.write("db", "file", b"kept")
    began = other.host.clock

    def sleep(seconds: float) -> None:
        other.host.clock += seconds
        if other.host.clock - began > 10:
            node.target.die(A)

    other.host.sleep = sleep  # type: ignore[method-assign]
    other.driver.mount("db", "2")
    assert 10 < other.host.clock - began < 15
    assert other.read("db", "file") == b"kept"
    with pytest.raises(OSError, match="Input/output"):
        node.write("db", "file", b"late")


def test_a_holder_whose_last_answer_is_only_reckoned_anew_is_silent(node: Node, other: Node) -> None:
    """The target reckons it from two clocks, so it is never twice quite the same."""
    node.driver.create("db", {})
    node.driver.mount("db", "1")

    def sleep(seconds: float) -> None:
        other.host.clock += seconds
        held = node.target.groups["db"].held[A]
        held.seen = (held.seen or 0.0) + 0.001
        held.alive = other.host.clock - began < 10

    began = other.host.clock
    other.host.sleep = sleep  # type: ignore[method-assign]
    other.driver.mount("db", "2")
    assert other.host.clock - began < 15


def test_a_holder_that_stays_undecided_is_not_fenced(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    with pytest.raises(InUse, match="not been declared dead"):
        other.driver.mount("db", "2")
    node.write("db", "file", b"unharmed")


def test_an_initiator_that_uses_a_group_without_an_attachment_is_not_fenced(
    node: Node, target: SimulatedTarget
) -> None:
    group = target.make("db", GIB)
    group.client = "iqn.2004-10.com.example:hypervisor"
    with pytest.raises(InUse, match=r"open session.* of its client.*hypervisor"):
        node.driver.mount("db", "1")
    assert group.client is not None
    node.nothing_is_left()
    group.client = None
    node.driver.mount("db", "2")


def test_a_volume_with_other_content_is_not_overwritten(node: Node, target: SimulatedTarget) -> None:
    group = target.make("db", GIB)
    group.content.kind = "junk"
    with pytest.raises(NotBlank):
        node.driver.mount("db", "1")
    assert group.content.kind == "junk"
    node.nothing_is_left()


def test_a_mount_while_the_target_is_away_fails_and_the_next_one_works(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    target.reachable = False
    with pytest.raises(Unreachable):
        node.driver.mount("db", "1")
    target.reachable = True
    node.driver.mount("db", "1")


def test_a_second_container_needs_no_target(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    target.reachable = False
    node.driver.mount("db", "2")
    node.driver.unmount("db", "1")
    node.driver.unmount("db", "2")  # the target will hear of it later
    assert node.host.left() == []
    assert len(node.plugin.volumes.book.all()) == 1
    target.reachable = True
    node.later()
    node.nothing_is_left()


def test_a_half_login_is_cleaned_up_and_tried_again(node: Node) -> None:
    node.driver.create("db", {})
    node.host.half_logins = 1
    with pytest.raises(Exception, match="connection timed out"):
        node.driver.mount("db", "1")
    node.nothing_is_left()
    node.driver.mount("db", "1")


def test_a_volume_that_is_busy_stays_until_it_can_be_unmounted(node: Node) -> None:
    node.driver.create("db", {})
    folder = node.driver.mount("db", "1")
    node.host.busy.add(folder)
    with pytest.raises(StillMounted):
        node.driver.unmount("db", "1")
    node.host.busy.clear()
    node.later()
    node.nothing_is_left()


@pytest.mark.parametrize("code", [1, 2, -9])  # umount(8): permissions, out of memory; and killed
def test_an_unmount_that_fails_in_whatever_way_is_reported_and_tried_again(node: Node, code: int) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.umount_fails = code
    with pytest.raises(StillMounted, match="ended with code"):
        node.driver.unmount("db", "1")
    node.host.umount_fails = None
    node.later(20)
    node.nothing_is_left()


def test_a_snapshot_clone_can_be_read_by_many_hosts(node: Node, other: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.write("db", "file", b"kept")
    target.create_snapshot("db", "monday")
    node.driver.create("copy", {"from": "db@monday", "access": "read-only-many"})
    for each in (node, other):
        each.driver.mount("copy", "2")
        assert each.read("copy", "file") == b"kept"
        assert [m.read_only for m in each.host.mounts if m.folder.endswith("copy")] == [True]
        each.later()
        assert each.ids("copy") == {"2"}


def test_a_snapshot_is_taken_while_the_file_system_stands_still(node: Node, target: SimulatedTarget) -> None:
    config = DockerConfig()
    node.driver.create("my_db", {})
    with pytest.raises(NotFound, match="no file system mounted on this host"):
        snapshot.take(node.host, target, config, "my_db", "monday")
    folder = node.driver.mount("my_db", "1")
    node.host.frozen.add(folder)  # left by one that was killed
    snapshot.take(node.host, target, config, "my_db", "monday")
    group = next(iter(target.groups.values()))
    assert list(group.snapshots) == ["monday"]
    words = [command[:2] for command in node.host.commands if command[0] == "fsfreeze"]
    assert [word for _, word in words] == ["--unfreeze", "--freeze", "--unfreeze"]
    assert node.host.frozen == set()


def test_a_freeze_that_takes_too_long_is_undone(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.freeze_is_slow = True
    with pytest.raises(CommandTimeout):
        snapshot.take(node.host, target, DockerConfig(), "db", "monday")
    assert node.host.frozen == set()
    assert target.groups["db"].snapshots == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_snapshot_that_is_ended_by_a_signal_leaves_no_frozen_file_system(
    node: Node, target: SimulatedTarget, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    monkeypatch.setattr(target, "create_snapshot", lambda group, name: signal.raise_signal(number))
    before = signal.getsignal(number)
    snapshot.end_in_order()
    try:
        with pytest.raises(SystemExit):
            snapshot.take(node.host, target, DockerConfig(), "db", "monday")
    finally:
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, before)
    assert node.host.frozen == set()


# --- from memory ---------------------------------------------------------------------------------------------------


def test_lists_and_known_volumes_never_wait_for_the_target(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.later()
    asked = target.asked
    target.reachable = False
    for _ in range(3):
        assert [volume["Name"] for volume in node.driver.list()] == ["db"]
        assert node.driver.get("db")["Name"] == "db"
    assert target.asked == asked


def test_a_plugin_that_starts_while_the_target_is_away_knows_its_volumes(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.later()
    target.reachable = False
    node.restart()
    assert [volume["Name"] for volume in node.driver.list()] == ["db"]
    assert "no daemon answers" in node.driver.get("db")["Status"]["health"]


def test_an_unknown_volume_is_asked_for_once_the_target_answers(
    node: Node, other: Node, target: SimulatedTarget
) -> None:
    with pytest.raises(NotFound, match="no such volume"):
        other.driver.get("db")
    node.driver.create("db", {})
    assert other.driver.get("db")["Name"] == "db"
    target.reachable = False
    other.plugin.catalogue.refresh()
    asked = target.asked
    with pytest.raises(NotFound, match="no daemon answers"):
        other.driver.get("unknown")
    assert target.asked == asked


def test_a_full_disk_of_the_host_keeps_the_plugin_from_nothing_but_its_memory(
    node: Node, other: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.driver.create("db", {})

    def full(path: str, content: bytes, *, by_way_of: str | None = None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(node.host, "replace", full)
        node.restart()
        assert [volume["Name"] for volume in node.driver.list()] == ["db"]
        node.driver.remove("db")
    assert node.driver.list() == []


def test_a_failed_pool_hides_neither_its_volumes_nor_the_news_of_others(
    node: Node, other: Node, target: SimulatedTarget
) -> None:
    node.driver.create("lost", {})
    target.failed = {"lost"}
    other.driver.create("new", {})
    node.plugin.catalogue.refresh()
    assert [volume["Name"] for volume in node.driver.list()] == ["lost", "new"]
    assert "pool-1 is failed" in node.driver.get("new")["Status"]["health"]
    node.driver.mount("new", "1")
    target.failed = set()
    del target.groups["lost"]
    node.plugin.catalogue.refresh()
    assert [volume["Name"] for volume in node.driver.list()] == ["new"]


def test_get_shows_snapshots_attachment_and_health(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {"size": "1G"})
    target.create_snapshot("db", "monday")
    node.driver.mount("db", "1")
    node.later(0)
    shown = node.driver.get("db")
    assert shown["CreatedAt"].startswith("1970-01-01T00:16")
    status = shown["Status"]
    assert status["snapshots"] == ["monday"]
    assert status["attachments"] == [{"host": A, "mode": "single-writer", "generation": 1, "alive": True}]
    assert (status["size"], status["mounts_here"], status["health"]) == (GIB, 1, "serving")


# --- between requests ----------------------------------------------------------------------------------------------


def test_a_fenced_host_cleans_up_and_hears_who_has_the_volume(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.start_container(42, f"{STATE}/volumes/db")
    node.target.die(A)
    other.driver.mount("db", "2")
    node.later(0)
    node.nothing_is_left()
    assert "fenced" in node.driver.get("db")["Status"]["health"]
    node.host.end_container(42)
    node.driver.unmount("db", "1")
    with pytest.raises(InUse, match="host-b"):
        node.driver.mount("db", "3")
    other.driver.unmount("db", "2")
    node.driver.mount("db", "3")
    assert node.driver.get("db")["Status"]["health"] == "serving"


def test_a_fenced_host_that_mounts_before_upkeep_does_not_use_what_is_left(node: Node, other: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.target.die(A)
    other.driver.mount("db", "2")
    other.write("db", "file", b"newer")
    other.driver.unmount("db", "2")
    node.driver.mount("db", "3")
    assert node.read("db", "file") == b"newer"
    assert node.ids("db") == {"3"}


def test_a_target_that_restarts_disturbs_no_mount(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.cut()
    target.reachable = False
    node.later(30)
    target.reachable = True
    node.later(30)
    node.host.reconnect()
    node.later(0)
    assert node.ids("db") == {"1"}
    node.write("db", "file", b"kept")


def test_a_file_system_that_gave_up_is_taken_away(node: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.mounts[0].read_only = True  # ext4 after an error of its journal
    node.later(0)
    node.nothing_is_left()
    assert "failed" in node.driver.get("db")["Status"]["health"]
    node.driver.mount("db", "2")


def test_a_volume_that_was_resized_grows_under_its_mount(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {"size": "1G"})
    node.driver.mount("db", "1")
    target.resize_volume("db", 0, 2 * GIB)
    node.later(0)
    assert target.groups["db"].content.filesystem_size == 2 * GIB


def test_after_a_power_cut_nothing_is_held_and_the_data_is_there(node: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.write("db", "file", b"kept")
    node.host.reboot()
    node.restart()
    node.plugin.upkeep.check()
    node.nothing_is_left()
    node.driver.mount("db", "1")  # Docker repeats the id that it has written down
    assert node.read("db", "file") == b"kept"


def test_a_lost_book_is_found_again_in_the_kernel(node: Node) -> None:
    for volume in ("used", "unused"):
        node.driver.create(volume, {})
        node.driver.mount(volume, "1")
    node.host.start_container(42, f"{STATE}/volumes/used")
    del node.host.files[f"{STATE}/state.json"]
    node.restart()
    node.plugin.upkeep.check()
    assert [mount.folder for mount in node.host.mounts] == [f"{STATE}/volumes/used"]
    node.write("used", "file", b"goes on")
    node.driver.unmount("used", "1")  # not known any more: nothing happens
    node.later()
    assert len(node.host.mounts) == 1
    node.host.end_container(42)
    node.later()
    node.nothing_is_left()


def test_an_id_that_docker_has_lost_is_forgotten_only_when_no_container_has_the_volume(node: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.start_container(42, f"{STATE}/volumes/db")
    node.later()
    assert node.ids("db") == {"1"}  # no restart, no doubt
    node.host.start_dockerd(901)
    node.later()
    assert node.ids("db") == {"1"}  # live restore: its container runs on
    node.host.end_container(42)
    node.later()
    node.nothing_is_left()


def test_an_id_that_docker_repeats_after_its_restart_is_not_forgotten(node: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    node.host.start_dockerd(901)
    node.host.clock += 1
    node.driver.mount("db", "1")
    node.later()
    assert node.ids("db") == {"1"}


def test_ids_are_kept_while_docker_does_not_run(node: Node) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    del node.host.files["/run/docker.pid"]
    node.restart()
    node.later()
    assert node.ids("db") == {"1"}


def test_sessions_and_freezes_that_a_kill_left_are_ended_at_the_start(node: Node) -> None:
    node.driver.create("db", {})
    folder = node.driver.mount("db", "1")
    node.host.frozen.add(folder)
    attached = node.target.groups["db"]
    other = node.target.make("stray", GIB)
    node.host._new_session(other.iqn, "blockyard", other, "")
    node.host._new_session(attached.iqn, "default", attached, "")  # an administrator's own
    node.restart()
    assert [(s.target, s.interface) for s in node.host.sessions] == [
        (attached.iqn, "blockyard"),
        (attached.iqn, "default"),
    ]
    assert node.host.frozen == set()


def test_a_group_that_was_deleted_under_a_mount_is_cleaned_up(node: Node, target: SimulatedTarget) -> None:
    node.driver.create("db", {})
    node.driver.mount("db", "1")
    target._drop(target.groups["db"], A)
    del target.groups["db"]
    node.later(LONG)
    assert node.host.left() == []
    with pytest.raises(ProductError):
        node.driver.mount("db", "2")


def test_upkeep_of_many_volumes_that_each_take_their_time_is_no_reason_to_end_the_plugin(
    node: Node, target: SimulatedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    turning = []

    def slow(group: str, host: str) -> None:
        node.host.clock += 60  # the target is away, and says nothing
        turning.append(node.plugin.upkeep.turning)
        raise Unreachable("no daemon answers")

    for number in range(20):
        node.driver.create(f"v{number}", {})
        node.driver.mount(f"v{number}", "1")
    monkeypatch.setattr(target, "release", slow)
    for number in range(20):
        node.plugin.volumes.book.put(f"v{number}", node.plugin.volumes.book.all()[f"v{number}"].without("1"))
    node.plugin.upkeep.check()
    assert turning == [True] * 20
    node.host.clock += STEP_SECONDS
    assert not node.plugin.upkeep.turning
