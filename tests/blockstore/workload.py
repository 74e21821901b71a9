"""A random mixed workload on a recorded disk, the model of what it did, and the judge of what a crash left of it.

The oracle is the pool's whole state (groups, policies, sizes, every grain of every volume and snapshot) after each
single operation. What is recovered must equal the state after some operation that is not older than the last one known
to be durable at the cut, and not younger than the last one begun. That says at once: flushed writes are there, in
write-through acknowledged ones too; every block is old or new, in one order for all volumes; snapshots hold what they
held when taken; group verbs are atomic over their volumes.

Everything is done and seen through the contract (``api``) and ``check``: nothing here knows how the engine works.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crc32c import crc32c

from blockstore.api import CachePolicy, ClientRecord, Group, NewVolume, StoreError
from blockstore.check import check_directory
from blockstore.pool import Tuning
from tests.blockstore.powercut import TUNING, Cutter, FakeDisk, open_disk
from tests.blockstore.support import GRAIN, KIB, MIB, PERMIT, Driver

SECTOR = 512
ZEROS = bytes(GRAIN)
VOLUME = 2 * MIB + 256 * KIB  # a leaf and a bit
WINDOW = 128 * KIB
WINDOWS = (0, 2 * MIB - WINDOW // 2, VOLUME - WINDOW)
"""Where I/O goes: the begin, across the border of two leaves, and the end. Small, so that grains are hit again."""
MOST_GROUPS, MOST_SNAPSHOTS, MOST_VOLUMES = 3, 3, 3
NEEDED = 128  # blocks free before an operation: the model's order knows no write that waits for space. Half a step of
# growing, below which the file grows by itself.

Content = dict[int, int]
"""Grain -> crc32c of what is there; zeros are absent."""
Frozen = tuple[tuple[int, int], ...]
Attributes = tuple[CachePolicy, tuple[ClientRecord, ...]]
State = tuple[frozenset[tuple[str, Attributes]], frozenset[tuple[str, int, int, Frozen]]]
"""Attributes by group; (group or group@snapshot, LUN, size, content)."""


@dataclass(frozen=True)
class Variant:
    """One way to configure the pool that the crash tests and the state machine run over."""

    name: str
    tuning: Tuning
    size_limit: int | None = None
    one_at_a_time: bool = False
    """Each write is waited for: the engine may commit what joins in another order than it came in."""

    def open(self, disk: FakeDisk) -> Driver:
        return open_disk(disk, tuning=self.tuning, size_limit=self.size_limit)

    def __str__(self) -> str:
        return self.name


VARIANTS = [
    Variant("roomy", TUNING),
    Variant("tight", TUNING, size_limit=1536 * KIB),  # blocks are used again soon
    Variant(
        "forgetful", replace(TUNING, map_memory=4 * KIB), 1536 * KIB, one_at_a_time=True
    ),  # no node stays in memory
    Variant("sweeping", replace(TUNING, private_frees=False), size_limit=1536 * KIB),  # only sweeps free blocks
]


class Disk:
    """One volume's bytes, and the checksum of each grain that is not zero."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.content: Content = {}

    def copy(self) -> Disk:
        other = Disk(0)
        other.bytes, other.content = bytearray(self.bytes), dict(self.content)
        return other

    def put(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data
        for grain in range(offset // GRAIN, -(-(offset + len(data)) // GRAIN)):
            now = bytes(self.bytes[grain * GRAIN : (grain + 1) * GRAIN])
            self.content.pop(grain, None)
            if now != ZEROS:
                self.content[grain] = crc32c(now)

    def grow(self, size: int) -> None:
        self.bytes.extend(bytes(size - len(self.bytes)))

    def frozen(self) -> Frozen:
        return tuple(sorted(self.content.items()))


Volumes = dict[int, Disk]


def copied(volumes: Volumes) -> Volumes:
    return {lun: disk.copy() for lun, disk in volumes.items()}


class Floor:
    """Which operation a crash at an event must not go back behind."""

    def __init__(self) -> None:
        self._rises = [(0, 0)]  # (events in the trace, operation); both rise

    def rise(self, at: int, number: int) -> None:
        """From event ``at`` on, operation ``number`` and all before it must survive."""
        if number > self._rises[-1][1]:
            self._rises.append((at, number))

    def at(self, cut: int) -> int:
        return self._rises[bisect_right(self._rises, cut, key=lambda item: item[0]) - 1][1]


class Model:
    """Groups and snapshots as plain dicts, and the history of all of them."""

    def __init__(self) -> None:
        self.groups: dict[str, Volumes] = {}
        self.attributes: dict[str, Attributes] = {}
        self.snapshots: dict[str, dict[str, Volumes]] = {}
        self.history: list[State] = []
        self.began: list[int] = []
        """Events in the trace when the operation of that number began. Never falls."""
        self.durable = Floor()
        """Of what survives a power cut."""
        self.acknowledged = Floor()
        """Of what survives the process."""

    def record(self, began: int) -> int:
        """Note the state after an operation; its number."""
        places = [(name, volumes) for name, volumes in self.groups.items()]
        places += [(f"{group}@{name}", each) for group, of in self.snapshots.items() for name, each in of.items()]
        rows = (
            (place, lun, len(disk.bytes), disk.frozen()) for place, volumes in places for lun, disk in volumes.items()
        )
        self.history.append((frozenset(self.attributes.items()), frozenset(rows)))
        self.began.append(began)
        return len(self.history) - 1

    def flushed(self, at: int, number: int) -> None:
        self.durable.rise(at, number)
        self.acknowledged.rise(at, number)

    def allowed(self, cut: int, floor: Floor) -> list[State]:
        return self.history[floor.at(cut) : bisect_right(self.began, cut)]


def observe(driver: Driver, *, forget: bool = False) -> State:
    """The pool's state as its users see it. Makes clones to look into snapshots, and deletes them to ``forget``."""
    pool = driver.pool
    groups = dict(pool.groups)
    looks: dict[str, Future[Group]] = {}
    for name, group in groups.items():
        for snapshot in group.snapshots:
            look = f"look-{len(looks)}"
            looks[f"{name}@{snapshot}"] = pool.clone_group(name, snapshot, look, iqn=look, clients=[])
    places = dict(groups) | {place: driver.wait(future) for place, future in looks.items()}
    rows = {
        (place, lun, volume.size, _content(driver, group, lun))
        for place, group in places.items()
        for lun, volume in group.volumes.items()
    }
    for place in looks if forget else ():
        driver.wait(pool.delete_group(places[place].record.name))
    attributes = {name: (group.record.cache, group.record.clients) for name, group in groups.items()}
    return frozenset(attributes.items()), frozenset(rows)


def _content(driver: Driver, group: Group, lun: int) -> Frozen:
    volume = group.volumes[lun]
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < volume.size:
        while (run_of := volume.unmapped_run(offset)) is None:
            driver.finish(partial(volume.load_map, offset))
        mapped, length = run_of
        if mapped:
            run = bytearray(length)
            if not volume.read_now(offset, memoryview(run)):
                run = bytearray(driver.read(volume, offset, length))
            grains = ((at, bytes(run[at : at + GRAIN])) for at in range(0, length, GRAIN))
            found += [((offset + at) // GRAIN, crc32c(grain)) for at, grain in grains if grain != ZEROS]
        offset += length
    return tuple(found)


def _copy_of(driver: Driver, group: Group) -> Volumes:
    """The group's volumes, read."""
    volumes = {lun: Disk(volume.size) for lun, volume in group.volumes.items()}
    for lun, disk in volumes.items():
        disk.put(0, driver.read(group.volumes[lun], 0, len(disk.bytes)))
    return volumes


# ------------------------------------------------------------------------------------------------- the workload

_DECK = (
    ["write"] * 40
    + ["ragged"] * 12
    + ["zeros"] * 6
    + ["discard"] * 8
    + ["ragged discard"] * 3
    + ["flush"] * 6
    + ["checkpoint"] * 3
    + ["sweep"] * 3
    + ["idle"] * 3
    + ["close", "kill"]
    + ["snapshot"] * 4
    + ["clone"] * 2
    + ["rollback"] * 2
    + ["delete snapshot"] * 2
    + ["delete group"]
    + ["resize", "add volume", "remove volume", "clients", "cache", "cache"]
)
"""What one run does, in a random order."""


class Workload:
    """The deck's operations in the order of ``seed``, each noted in the model. ``runs`` decks behind each other."""

    def __init__(self, cache: CachePolicy, seed: int, variant: Variant) -> None:
        self.rng = random.Random(seed)
        self.cache = cache
        self.variant = variant
        self.disk = FakeDisk()
        self.disk.log_pages = 30  # SQLite begins its log anew every few checkpoints
        self.driver = self.open_pool()
        self.born_at = self.events
        """Events in the trace until the pool was made: before that there is none, or one without groups."""
        self.driver.runner.settle()
        self.model = Model()
        self.model.record(0)
        self.names = 0
        self.done = dict.fromkeys(_DECK, 0)
        """How often each verb was really done."""
        self._control(
            lambda: self.driver.pool.create_group(
                "db", iqn="iqn.db", volumes=[NewVolume(VOLUME), NewVolume(VOLUME)], cache=cache
            ),
            lambda group: self._born("db", {0: Disk(VOLUME), 1: Disk(VOLUME)}, cache, ()),
        )

    @property
    def events(self) -> int:
        return len(self.disk.trace)

    def open_pool(self) -> Driver:
        return self.variant.open(self.disk)

    def data_bytes(self) -> int:
        """Length of the data file."""
        return self.disk.files["data"].size()

    def run(self, decks: int = 1, *, most: int | None = None) -> None:
        """``most``: so many operations of each deck are enough."""
        for _ in range(decks):
            deck = list(_DECK)
            self.rng.shuffle(deck)
            for verb in deck[:most]:
                self.do(verb)
        self.driver.runner.settle()

    def do(self, verb: str) -> None:
        """One operation if it is possible now, and a little of what goes on in the background."""
        if getattr(self, f"_{verb.replace(' ', '_')}")() is not False:
            self.done[verb] += 1
        self._turn()

    def do_together(self, verbs: list[str]) -> None:
        """What joins one tick."""
        for verb in verbs:
            getattr(self, f"_{verb.replace(' ', '_')}")()
            self.done[verb] += 1
        self._turn()

    def go_on_with(self, disk: FakeDisk) -> None:
        """After a crash: the model is what was recovered, which the caller has judged; history begins anew."""
        disk.log_pages = self.disk.log_pages
        self.disk = disk
        self.driver = self.open_pool()
        self.model = Model()
        for name, group in self.driver.pool.groups.items():
            volumes = _copy_of(self.driver, group)
            self._born(name, volumes, group.record.cache, group.record.clients)
            for snapshot in group.snapshots:
                look = self.driver.wait(self.driver.pool.clone_group(name, snapshot, "look", iqn="look", clients=[]))
                self.model.snapshots[name][snapshot] = _copy_of(self.driver, look)
                self.driver.wait(self.driver.pool.delete_group("look"))
        self.model.flushed(self.events, self.model.record(0))

    # ------------------------------------------------------------------------------------------------ I/O

    def _write(self) -> None:
        length = GRAIN * self.rng.choice([1, 1, 1, 1, 2, 4, 16])
        self._put(GRAIN, length, self.rng.randbytes(length))

    def _ragged(self) -> None:
        length = SECTOR * self.rng.randint(1, 20)
        self._put(SECTOR, length, self.rng.randbytes(length))

    def _zeros(self) -> None:
        length = self.rng.choice([SECTOR, GRAIN, 4 * GRAIN])
        self._put(min(length, GRAIN), length, bytes(length))

    def _discard(self) -> None:
        self._put(GRAIN, GRAIN * self.rng.randint(1, 8), None)

    def _ragged_discard(self) -> None:
        self._put(SECTOR, SECTOR * self.rng.randint(1, 40), None)

    def _put(self, align: int, length: int, data: bytes | None) -> None:
        """A write, or with None a discard, somewhere."""
        name = self._pick(self.model.groups)
        volumes = self.model.groups[name]
        lun = self.rng.choice(sorted(volumes))
        offset = self.rng.choice(WINDOWS) + align * self.rng.randrange((WINDOW - length) // align + 1)
        sync = self.rng.random() < 0.1
        volume = self.driver.pool.groups[name].volumes[lun]
        durable = sync or volume.write_through  # the policy at the time of joining decides
        if not self.variant.one_at_a_time:  # what waits for its part of the map is overtaken by what need not
            self.driver.finish(partial(volume.load_map, 0))
        began = self.events
        volumes[lun].put(offset, bytes(length) if data is None else data)
        number = self.model.record(began)
        answers: list[bool] = []

        def done(error: StoreError | None) -> None:
            assert error is None, error
            answers.append(True)
            self.model.acknowledged.rise(self.events, number)
            if durable:
                self.model.durable.rise(self.events, number)

        if data is None:
            volume.discard(offset, length, PERMIT, done, sync=sync)
        else:
            volume.write(offset, data, PERMIT, done, sync=sync)
        while self.variant.one_at_a_time and not answers:
            self.driver.runner.advance(0.01)

    def _flush(self) -> None:
        number = len(self.model.history) - 1
        group = self.driver.pool.groups[self._pick(self.model.groups)]
        next(iter(group.volumes.values())).flush(lambda error: self.model.flushed(self.events, number))

    # ------------------------------------------------------------------------------------------------ verbs

    def _control(self, begin: Callable[[], Future[Any]], follow: Callable[[Any], None]) -> None:
        """One group verb, waited for; ``follow`` does to the model what it did. Writes may be under way."""
        began = self.events
        result = self.driver.wait(begin())
        follow(result)
        self.model.flushed(self.events, self.model.record(began))

    def _born(self, name: str, volumes: Volumes, cache: CachePolicy, clients: tuple[ClientRecord, ...]) -> None:
        self.model.groups[name], self.model.snapshots[name] = volumes, {}
        self.model.attributes[name] = (cache, clients)

    def _snapshot(self) -> bool:
        name = self._pick(self.model.groups)
        taken, group = self.model.snapshots[name], self.driver.pool.groups[name]
        if len(taken) >= MOST_SNAPSHOTS:
            return False
        new = self._new_name("s")
        self._control(lambda: group.snapshot(new), lambda record: taken.update({new: copied(self.model.groups[name])}))
        return True

    def _clone(self) -> bool:
        found = self._some_snapshot()
        if found is None or len(self.model.groups) >= MOST_GROUPS:
            return False
        (name, snapshot), new = found, self._new_name("g")
        client = ClientRecord(f"iqn.host:{new}")
        content, cache = self.model.snapshots[name][snapshot], self.model.attributes[name][0]
        self._control(
            lambda: self.driver.pool.clone_group(name, snapshot, new, iqn=new, clients=[client]),
            lambda group: self._born(new, copied(content), cache, (client,)),
        )
        return True

    def _rollback(self) -> bool:
        found = self._some_snapshot()
        if found is None:
            return False
        name, snapshot = found
        taken, group = self.model.snapshots[name], self.driver.pool.groups[name]

        def follow(record: Any) -> None:
            taken[record.name] = self.model.groups[name]
            self.model.groups[name] = copied(taken[snapshot])

        self._control(lambda: group.rollback(snapshot), follow)
        return True

    def _delete_snapshot(self) -> bool:
        found = self._some_snapshot()
        if found is None:
            return False
        name, snapshot = found
        group = self.driver.pool.groups[name]

        def follow(_: None) -> None:
            del self.model.snapshots[name][snapshot]

        self._control(lambda: group.delete_snapshot(snapshot), follow)
        return True

    def _delete_group(self) -> bool:
        if len(self.model.groups) < 2:
            return False
        name = self._pick(self.model.groups)

        def follow(_: None) -> None:
            del self.model.groups[name], self.model.snapshots[name], self.model.attributes[name]

        self._control(lambda: self.driver.pool.delete_group(name), follow)
        return True

    def _resize(self) -> None:
        name = self._pick(self.model.groups)
        group = self.driver.pool.groups[name]
        lun = self.rng.choice(sorted(group.volumes))
        size = group.volumes[lun].size + GRAIN * self.rng.randint(1, 32)
        self._control(lambda: group.resize(lun, size), lambda record: self.model.groups[name][lun].grow(size))

    def _add_volume(self) -> bool:
        name = self._pick(self.model.groups)
        group = self.driver.pool.groups[name]
        if len(group.volumes) >= MOST_VOLUMES:
            return False
        self._control(
            lambda: group.add_volume(NewVolume(VOLUME)),
            lambda record: self.model.groups[name].update({record.lun: Disk(VOLUME)}),
        )
        return True

    def _remove_volume(self) -> bool:
        name = self._pick(self.model.groups)
        group = self.driver.pool.groups[name]
        if len(group.volumes) < 2:
            return False
        lun = self.rng.choice(sorted(group.volumes))

        def follow(_: None) -> None:
            del self.model.groups[name][lun]

        self._control(lambda: group.remove_volume(lun), follow)
        return True

    def _clients(self) -> None:
        name = self._pick(self.model.groups)
        group, clients = self.driver.pool.groups[name], (ClientRecord(f"iqn.host:{self._new_name('h')}"),)
        cache = self.model.attributes[name][0]
        self._control(
            lambda: group.update(clients=clients), lambda _: self.model.attributes.update({name: (cache, clients)})
        )

    def _cache(self) -> None:
        name = self._pick(self.model.groups)
        group, (now, clients) = self.driver.pool.groups[name], self.model.attributes[name]
        other = next(policy for policy in CachePolicy if policy is not now)
        self._control(
            lambda: group.update(cache=other), lambda _: self.model.attributes.update({name: (other, clients)})
        )

    # ------------------------------------------------------------------------------------------------ background

    def _checkpoint(self) -> None:
        self.driver.pool.checkpoint()

    def _sweep(self) -> None:
        self.driver.pool.sweep()

    def _idle(self) -> None:
        self.driver.runner.advance(self.rng.choice([0.1, 1.2]))

    def _close(self) -> None:
        """And open again."""
        self.driver.runner.advance(0.5)
        self.driver.wait(self.driver.pool.close())
        self._open()

    def _kill(self) -> None:
        """The process dies with nothing under way, and the next one recovers."""
        self.driver.runner.advance(0.5)
        self._open()

    def _open(self) -> None:
        self.driver = self.open_pool()
        self.model.flushed(self.events, len(self.model.history) - 1)

    def _turn(self) -> None:
        """Let the loop, its timers and the helpers go on a little, in a random order; more if space is short."""
        runner = self.driver.runner
        steps: list[Callable[[], object]] = [
            runner.tick,
            runner.tick,
            runner.run_thread_work,
            lambda: runner.elapse(0.004),
        ]
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice(steps)()
        while self._free_blocks() < NEEDED:
            self.driver.wait(self.driver.pool.sweep())
            runner.advance(0.01)
            if self._free_blocks() < NEEDED:
                self._delete_something()

    def _free_blocks(self) -> int:
        """What a write finds without waiting for the file to grow."""
        held = self.data_bytes() // GRAIN - 1
        return held - self.driver.pool.statistics().used // GRAIN

    def _delete_something(self) -> None:
        if not (self._delete_group() or self._delete_snapshot()):
            raise AssertionError("no space came back")

    def _pick(self, names: dict[str, Volumes]) -> str:
        return self.rng.choice(sorted(names))

    def _some_snapshot(self) -> tuple[str, str] | None:
        found = sorted((group, name) for group, of in self.model.snapshots.items() for name in of)
        return self.rng.choice(found) if found else None

    def _new_name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"


# ------------------------------------------------------------------------------------------------- the judge


class Judge:
    """Opens what a cut left and compares it with the model. ``states`` counts how often."""

    def __init__(self, work: Workload) -> None:
        self.model = work.model
        self.born_at = work.born_at
        self.variant = work.variant
        self.states = 0

    def judge(self, cut: int, disk: FakeDisk, what: str, *, killed: bool = False) -> None:
        """``killed``: only the process died."""
        if cut >= self.born_at:
            report = check_directory(disk.copy(), deep=True, map_leaves=self.variant.tuning.map_leaves)
            assert not report.findings, f"cut {cut}, {what}: {report.findings}"
        state = observe(self.variant.open(disk))
        disk.new_process()
        floor = self.model.acknowledged if killed else self.model.durable
        allowed = self.model.allowed(cut, floor)
        if state not in allowed:
            raise AssertionError(f"cut {cut}, {what}: {self._explain(state, floor.at(cut), allowed)}")
        self.states += 1

    def judge_after_crashes_in_recovery(self, cut: int, disk: FakeDisk, rng: random.Random) -> None:
        """Cut the power again inside recovery and the first moments of serving, perhaps more than once."""
        for _ in range(rng.randint(1, 3)):
            before = len(disk.trace)
            cutter = Cutter([], disk.boot)
            cutter.start_from(disk)
            driver = self.variant.open(disk)
            driver.runner.advance(0.1)
            cutter.follow(disk.trace[before:])
            for _ in range(rng.randrange(len(disk.trace) - before + 1)):
                cutter.step()
            disk = cutter.some_landed(rng)
        self.judge(cut, disk, "cut again during recovery")

    def _explain(self, state: State, floor: int, allowed: list[State]) -> str:
        if state in self.model.history:
            number = self.model.history.index(state)
            return f"the state after operation {number}; allowed are {floor} to {floor + len(allowed) - 1}"
        nearest = min(allowed, key=lambda other: len(state[1] ^ other[1]))
        rows = sorted((place, lun, size) for place, lun, size, _ in state[1] ^ nearest[1])
        return f"not the state after any operation; the nearest allowed one differs in {rows}"
