"""A group moves between two pools of a real daemon, under verified writes, and through the deaths of every process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockstore.device import HostDirectory
from blockstore.recovery import open_files, replay
from blockyard.client import BlockyardClient
from blockyard.errors import InUse, NotFound, OutOfSpace, ProductError, Unavailable
from blockyard.model import (
    ChapCredentials,
    ClientSpec,
    Group,
    MovePhase,
    MoveRequest,
    NewGroup,
    PoolState,
    VolumeSpec,
)
from blockyard.model.moves import MoveReport
from tests.initiator import Disconnected, Initiator, LoginRefused, read10, synchronize_cache, write10
from tests.product import BLOCKYARD, Product, wait_gone
from tests.scale import SEED, scaled
from tests.system.conftest import assert_whole
from tests.system.stepping import Steps
from tests.system.test_kill import BLOCKS, DEPTH, VerifiedLoad

pytestmark = pytest.mark.slow

MIB = 1 << 20
TRY_AGAIN = 0x0301
SECONDS = 30.0
CHAP = ("alice", b"correct horse 1234")


def log_in(product: Product, iqn: str) -> Initiator:
    """As open-iscsi does: whatever is refused but "try again" ends it for good."""
    deadline = time.monotonic() + SECONDS
    while True:
        session = None
        try:
            session = Initiator(product.address, iqn, chap=CHAP).login()
            while session.run(bytes(6)).status:
                pass
            return session
        except LoginRefused as error:
            if error.status != TRY_AGAIN:  # an initiator would give up for good
                raise
        except (Disconnected, OSError):
            pass
        if session is not None:
            session.close()
        assert time.monotonic() < deadline, "nobody serves the group"
        time.sleep(0.01)


class Load(VerifiedLoad):
    """Verified writes of one initiator, that reconnects whenever it loses its connection."""

    def __init__(self, product: Product, iqn: str) -> None:
        super().__init__(SEED)
        self._product = product
        self._iqn = iqn
        self._stopped = threading.Event()
        self.failure: BaseException | None = None
        self.connections = 0
        self._answered = 0.0
        self.longest = 0.0
        """Seconds between two answers."""

    def _burst(self, session: Initiator) -> None:
        began = time.monotonic()
        if self._stopped.is_set():
            raise Disconnected
        blocks = self.chance.sample(range(BLOCKS), DEPTH)
        flying = {}
        for block in blocks:
            self.number += 1
            self.attempted[block].add(self.number)
            flying[block] = session.start(write10(block * 8, 8), data_out=self.pattern(self.number)), self.number
        if self.chance.random() < 0.1:
            session.start(synchronize_cache())
        try:
            session.wait_all()
        finally:
            for block, (command, number) in flying.items():
                assert command.status in (0, None), f"an I/O error: {command.sense.hex()}"
                if command.status == 0:
                    self.acknowledged[block] = number
                    self.attempted[block] = {other for other in self.attempted[block] if other > number}
        self.longest = max(self.longest, time.monotonic() - self._answered)
        self._answered = time.monotonic()
        time.sleep(max(0.0, began + 0.002 - time.monotonic()))

    def run(self) -> None:
        self._answered = time.monotonic()
        try:
            while not self._stopped.is_set():
                with log_in(self._product, self._iqn) as session:
                    self.connections += 1
                    self.until_killed(session)
        except BaseException as error:
            self.failure = error

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, it writes; afterwards everything that was acknowledged must be there."""
        self._stopped.clear()
        self.longest = 0.0
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(SECONDS + 10)
        if self.failure is not None:
            raise self.failure
        with log_in(self._product, self._iqn) as session:
            self.verify(session)


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    """Two pools. Afterwards both are whole, and hold nothing that no group needs."""
    launcher = [sys.executable, "-m", "tests.system.stepping", str(tmp_path)]
    served = Product(tmp_path, "--workers", "2", launcher=launcher)
    with served:
        yield served
        with BlockyardClient(served.api) as client:
            for pool in client.list_pools():
                client.sweep_pool(pool.name)
            used = {pool.name: (pool.used or 0) - (pool.pending_free or 0) for pool in client.list_pools()}
    assert_whole(served.store)
    for name, size in used.items():
        assert size == needed(served.store / "pools" / name), f"{name} holds what nothing refers to"


def needed(path: Path) -> int:
    """Bytes that something in the pool refers to."""
    directory = HostDirectory(path)
    database, data = open_files(directory)
    try:
        state = replay(directory, database, data, 1 << 16, rescue=False, rows=True)
        blocks = set()
        for one in state.blockmap.maps.values():
            entries = (state.blockmap.entry(one, grain)[0] for grain in range(one.size >> 12))
            blocks |= {block for block in entries if block}
        return len(blocks) << 12
    finally:
        data.close()
        database.close()
        directory.close()


def copies(store: Path) -> dict[str, tuple[int, bool]]:
    """Pool → generation of its copy of ``db``, and whether that has left."""
    found = {}
    for path in sorted((store / "pools").iterdir()):
        directory = HostDirectory(path)
        database, data = open_files(directory)
        try:
            entry = replay(directory, database, data, 1 << 16, rescue=False).catalog.groups.get("db")
        finally:
            data.close()
            database.close()
            directory.close()
        if entry is not None:
            found[path.name] = entry.record.generation, entry.record.leaving is not None
    return found


@pytest.fixture
def client(product: Product) -> Iterator[BlockyardClient]:
    with BlockyardClient(product.api) as daemon:
        yield daemon


@pytest.fixture
def iqn(product: Product, client: BlockyardClient) -> str:
    """Group ``db`` with CHAP and snapshots ``a`` and ``b``."""
    host = ClientSpec(initiator="any", chap=ChapCredentials(user=CHAP[0], secret=CHAP[1].decode()))
    asked = NewGroup(name="db", volumes=(VolumeSpec(size=16 * MIB),), clients=(host,))
    iqn = client.create_group(asked).group.iqn
    for name, first in (("a", 10), ("b", 12)):
        with log_in(product, iqn) as session:
            for megabyte in range(first, first + 3):
                session.good(write10(megabyte * 2048, 2048), data_out=os.urandom(MIB))
        client.create_snapshot("db", name)
    return iqn


def move(client: BlockyardClient, to: str, **more: int) -> MoveReport:
    *_, last = client.move_group("db", MoveRequest.model_validate({"to": to, **more}))
    assert last.moved is not None
    return last.moved


def other_pool(client: BlockyardClient) -> str:
    return {"pool-0": "pool-1", "pool-1": "pool-0"}[client.show_group("db").pool]


def fingerprints(client: BlockyardClient) -> dict[str, str]:
    found = {}
    for snapshot in client.list_snapshots("db"):
        if not snapshot.name.startswith("moving-"):
            *_, last = client.verify_snapshot("db", snapshot.name)
            assert last.fingerprint is not None
            found[snapshot.name] = last.fingerprint.sha256
    return found


def identity(group: Group) -> dict[str, object]:
    """What never changes, wherever the group is."""
    shown = group.model_dump(include={"name", "uuid", "iqn", "created", "cache", "clients", "snapshots"})
    return shown | {"volumes": [(v.lun, v.uuid, v.name, v.size, v.created) for v in group.volumes]}


def wait_served(product: Product) -> Group:
    """Until one pool serves the group, and nothing is left to be done."""
    deadline = time.monotonic() + SECONDS
    with BlockyardClient(product.api) as client:
        while True:
            try:
                shown = client.list_groups()
                (group,) = [group for group in shown.groups if group.name == "db"]
                busy = group.move is not None and group.move.phase is not MovePhase.UNFINISHED
                pools = {pool.state for pool in client.list_pools()}
                if group.state is PoolState.SERVING and pools == {PoolState.SERVING} and not busy:
                    return group
                seen = f"{group.state}, {group.move}, {shown.unavailable}"
            except ProductError as error:
                seen = str(error)
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)


def test_a_group_moves_there_and_back_while_an_initiator_writes(
    product: Product, client: BlockyardClient, iqn: str
) -> None:
    before, prints = client.show_group("db"), fingerprints(client)
    product.cli("group", "clone", "db@a", "clone")
    load = Load(product, iqn)
    reports = []

    with load.running():
        for _ in range(2):
            reports.append(move(client, other_pool(client)))
            time.sleep(0.2)

    assert [(report.source, report.to, report.generation) for report in reports] == [
        (before.pool, {"pool-0": "pool-1", "pool-1": "pool-0"}[before.pool], 2),
        ({"pool-0": "pool-1", "pool-1": "pool-0"}[before.pool], before.pool, 3),
    ]
    after = client.show_group("db")
    assert identity(after) == identity(before)
    assert (after.pool, after.generation) == (before.pool, 3)
    assert fingerprints(client) == prints
    assert load.connections == 3
    assert load.number > 500
    assert load.longest < 10, "I/O stalled"
    assert client.show_group("clone").pool == before.pool
    print(f"stalled {[report.stalled for report in reports]}, the initiator saw {load.longest:.3f} s")


def test_moving_it_to_where_it_is_changes_nothing(product: Product, client: BlockyardClient, iqn: str) -> None:
    here = client.show_group("db")
    done = product.cli("group", "move", "db", "--to", here.pool)
    assert (done["moved"], done["generation"]) == (False, 1)
    assert move(client, other_pool(client)).moved
    assert not move(client, client.show_group("db").pool).moved


STEPS = ["beginning", "copying 1", "copying 3", "leaving", "left", "arrived", "committed", "done"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["daemon", "source", "destination"])
def test_whoever_dies_at_whatever_step_one_pool_serves_it_and_nothing_is_lost(
    product: Product, client: BlockyardClient, iqn: str, tmp_path: Path, victim: str
) -> None:
    prints, load, steps = fingerprints(client), Load(product, iqn), Steps(tmp_path)
    generation = 1
    for step in STEPS:
        source, to = client.show_group("db").pool, other_pool(client)
        with load.running():
            steps.stop_before(step)
            moving = threading.Thread(target=try_to_move, args=(product, to))
            moving.start()
            steps.wait_reached()
            kill(product, victim, {"source": source, "destination": to})
            steps.go_on()
            moving.join(SECONDS)
            if victim == "daemon":
                product.start()
            served = wait_served(product)
        arrived = step in ("committed", "done")
        undone = step in ("left", "arrived") and victim == "daemon"
        if victim == "daemon":
            assert served.pool == (to if arrived else source), step
            assert served.generation == generation + (1 if arrived else 2 if undone else 0), step
        generation = served.generation
        assert fingerprints(client) == prints
        if served.pool != to:  # said again, it goes on
            generation = move(client, to).generation
        settled(client, source)
        assert fingerprints(client) == prints
    product.stop()
    assert len(copies(product.store)) == 1
    product.start()


def try_to_move(product: Product, to: str) -> None:
    with BlockyardClient(product.api) as client:
        try:
            move(client, to)
        except ProductError:
            return


def settled(client: BlockyardClient, source: str) -> None:
    """Until the copy at the source is deleted."""
    deadline = time.monotonic() + SECONDS
    while any(pool.groups for pool in client.list_pools() if pool.name == source):
        assert time.monotonic() < deadline, "the copy at the source is still there"
        time.sleep(0.05)


def kill(product: Product, victim: str, pools: dict[str, str]) -> None:
    if victim == "daemon":
        product.kill()
        return
    with BlockyardClient(product.api) as client:
        worker = client.show_pool(pools[victim]).worker
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    wait_gone(worker, SECONDS)


@pytest.mark.timeout(1200)
def test_kills_at_any_moment_of_many_moves_lose_nothing(product: Product, client: BlockyardClient, iqn: str) -> None:
    prints, load = fingerprints(client), Load(product, iqn)
    chance = random.Random(SEED)
    for _ in range(scaled(8)):
        source, to = client.show_group("db").pool, other_pool(client)
        with load.running():
            moving = threading.Thread(target=try_to_move, args=(product, to))
            moving.start()
            time.sleep(chance.uniform(0, 0.6))
            victim = chance.choice(["daemon", "source", "destination"])
            kill(product, victim, {"source": source, "destination": to})
            moving.join(SECONDS)
            if victim == "daemon":
                product.start()
            wait_served(product)
        assert fingerprints(client) == prints
    if client.show_group("db").move is not None:
        product.cli("group", "move", "db", "--abort")
    assert [snapshot.name for snapshot in client.list_snapshots("db")] == ["a", "b"]


def test_ctrl_c_gives_it_up_and_frees_what_was_copied(product: Product, client: BlockyardClient, iqn: str) -> None:
    to = other_pool(client)
    command = [str(BLOCKYARD), "group", "move", "db", "--to", to, "--rate", "1M"]
    with subprocess.Popen(
        command, env={**os.environ, "BLOCKYARD_API": product.api}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as moving:
        wait_for(lambda: (shown := client.show_group("db").move) is not None and shown.copied > MIB)
        with pytest.raises(InUse, match=f"is being moved to {to}"):
            move(client, to)
        with pytest.raises(InUse, match="is being moved"):
            client.delete_group("db")
        moving.send_signal(signal.SIGINT)
        _, said = moving.communicate(timeout=SECONDS)

    assert (moving.returncode, said) == (130, b"blockyard: the move is given up: nothing has changed\n")
    wait_for(lambda: client.show_group("db").move is None)
    wait_for(lambda: [snapshot.name for snapshot in client.list_snapshots("db")] == ["a", "b"])
    client.sweep_pool(to)
    client.sweep_pool(to)
    shown = client.show_pool(to)
    assert (shown.used or 0) - (shown.pending_free or 0) == 0


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_interrupted_is_shown_goes_on_or_is_forgotten(
    product: Product, client: BlockyardClient, iqn: str, tmp_path: Path
) -> None:
    to, steps = other_pool(client), Steps(tmp_path)
    whole = 8 * MIB  # the two snapshots hold 6 MiB that does not compress
    for forget in (True, False):
        steps.stop_before("copying 3")
        moving = threading.Thread(target=try_to_move, args=(product, to))
        moving.start()
        steps.wait_reached()
        product.kill()
        steps.go_on()
        moving.join(SECONDS)
        product.start()
        shown = wait_served(product)
        assert shown.move is not None
        assert (shown.move.to, shown.move.phase) == (to, MovePhase.UNFINISHED)
        if forget:
            product.cli("group", "move", "db", "--abort")
            assert client.show_group("db").move is None
            assert [snapshot.name for snapshot in client.list_snapshots("db")] == ["a", "b"]
            with pytest.raises(NotFound, match="is not being moved"):
                client.abort_move("db")
    report = move(client, to)
    assert report.copied < whole // 4, "what was there was copied again"
    assert client.show_group("db").pool == to
    with log_in(product, iqn) as session:
        session.good(read10(0, 8), data_in=4096)


def test_snapshots_that_come_and_go_meanwhile_go_along(
    product: Product, client: BlockyardClient, iqn: str, tmp_path: Path
) -> None:
    to, steps = other_pool(client), Steps(tmp_path)
    for step, name in (("copying 2", "early"), ("leaving", "late")):
        steps.stop_before(step)
        moving = threading.Thread(target=try_to_move, args=(product, to))
        moving.start()
        steps.wait_reached()
        client.create_snapshot("db", name)
        client.delete_snapshot("db", "b" if name == "early" else "a")
        prints = fingerprints(client)
        steps.go_on()
        moving.join(SECONDS)
        assert client.show_group("db").pool == to
        assert fingerprints(client) == prints
        to = other_pool(client)
    assert [snapshot.name for snapshot in client.list_snapshots("db")] == ["early", "late"]


def test_what_cannot_move_is_refused_with_the_reason(product: Product, client: BlockyardClient, iqn: str) -> None:
    with pytest.raises(NotFound, match="no pool is named pool-7; there are: pool-0, pool-1"):
        move(client, "pool-7")
    with pytest.raises(NotFound, match="no group is named nope"):
        list(client.move_group("nope", MoveRequest(to="pool-1")))
    with pytest.raises(NotFound, match="is not being moved"):
        client.abort_move("db")


def test_a_pool_that_is_too_small_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with Product(tmp_path, "--workers", "2", "--pool-size", "16M") as product, BlockyardClient(product.api) as client:
        iqns = [product.create_group(name, 32 * MIB) for name in ("db", "other")]
        for iqn in iqns:
            with Initiator(product.address, iqn).login() as session:
                while session.run(bytes(6)).status:
                    pass
                for megabyte in range(10):
                    session.good(write10(megabyte * 2048, 2048), data_out=os.urandom(MIB))
        with pytest.raises(OutOfSpace, match=r"group db has \d+ bytes mapped, pool pool-1 \d+ bytes free"):
            move(client, other_pool(client))
        assert client.show_group("db").move is None
        assert [snapshot.name for snapshot in client.list_snapshots("db")] == []
    assert_whole(product.store)


def test_while_the_other_pool_does_not_report_a_group_that_left_is_not_served_and_the_others_are(
    product: Product, client: BlockyardClient, iqn: str, tmp_path: Path
) -> None:
    source, to, steps = client.show_group("db").pool, other_pool(client), Steps(tmp_path)
    free = product.cli("group", "clone", "db@a", "free")["iqn"]
    steps.stop_before("left")
    moving = threading.Thread(target=try_to_move, args=(product, to))
    moving.start()
    steps.wait_reached()
    product.kill()
    steps.go_on()
    moving.join(SECONDS)
    away, lost = product.store / "pools" / to / "data", tmp_path / "lost"
    away.rename(lost)
    product.start()

    assert client.show_group("db").state is PoolState.MOVING
    with pytest.raises(LoginRefused) as refused:
        Initiator(product.address, iqn, chap=CHAP).login()
    assert refused.value.status == TRY_AGAIN
    with pytest.raises(Unavailable, match=f"is moving from pool {source}"):
        client.create_snapshot("db", "x")
    with log_in(product, free):
        pass
    sentences = client.list_groups().unavailable
    assert any("it is served when the pool that it left for has reported" in sentence for sentence in sentences)
    product.stop()
    lost.rename(away)
    product.start()
    assert wait_served(product).pool == source
    with log_in(product, iqn):
        pass
    product.cli("group", "move", "db", "--abort")
