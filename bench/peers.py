"""4 KiB random writes before and right after a snapshot, beside qcow2 and a plain file: ``make bench NAME=peers``.

Everything is measured in one run, in turns, so that all see the same machine: our store in process, our target over
iSCSI, qemu-nbd serving qcow2 with an internal snapshot, and pwrite into a plain file, which knows no snapshots and
shows the noise. The places are the same for all. Between two measurements everybody flushes, and gives back what its
last snapshot held; that time does not count.

What is compared across contenders is the *ratio* after/before: the rates themselves differ by what stands between the
generator and the store (nothing, iSCSI, NBD), and both clients are Python. qemu-img needs the image for itself, so
qemu-nbd is started afresh before each of the two measurements; its snapshot is ``qemu-img snapshot -c``. The CPU time
of who writes stands beside: it says what a snapshot costs even where other load on the machine hides it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.table import Table

from bench.goals import Goal, judge, print_table
from bench.load import Generator, Workload, cpu_seconds
from bench.loop import ClockedRunner
from bench.nbd import NbdClient
from blockstore.api import NewVolume, StandingPermit, StoreError
from blockstore.pool import Tuning, open_pool
from tests.initiator import Initiator, synchronize_cache
from tests.product import Product, free_port

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GRAIN = 4 * KIB
GOAL = 0.85
PERMIT = StandingPermit()
SERVER_SECONDS = 10.0  # for qemu-nbd to listen
TOOLS = {"qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils"}


class Contender(ABC):
    """Something that holds ``size`` bytes and can be written; times are what the writes alone took."""

    name: str

    @abstractmethod
    def write(self, slots: Sequence[int], data: bytes) -> float:
        """To each place (in units of ``data``); the seconds it took."""

    @abstractmethod
    def cpu(self) -> float:
        """Seconds of processor time so far, of whoever does the writing."""

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def prepare(self) -> None:
        """Just before each measurement."""

    @abstractmethod
    def snapshot(self) -> None: ...

    @abstractmethod
    def forget_snapshot(self) -> None:
        """Delete it, and give back what only it held."""


class PlainFile(Contender):
    name = "plain file (pwrite, depth 1)"

    def __init__(self, folder: Path, size: int) -> None:
        self._fd = os.open(folder / "plain", os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(self._fd, size)

    def write(self, slots: Sequence[int], data: bytes) -> float:
        began = time.perf_counter()
        for slot in slots:
            os.pwrite(self._fd, data, slot * len(data))
        return time.perf_counter() - began

    def cpu(self) -> float:
        return time.thread_time()

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def prepare(self) -> None: ...

    def snapshot(self) -> None: ...

    def forget_snapshot(self) -> None: ...


class InProcess(Contender):
    """The block store itself: no target, no socket; ``depth`` writes join one batch."""

    def __init__(self, folder: Path, size: int, depth: int) -> None:
        self.name = f"Blockyard's store (in process, {depth} a tick)"
        self._depth = depth
        self._runner = ClockedRunner()
        self._pool = open_pool(folder / "pool", self._runner, create=True, tuning=Tuning(keep_free=1 << 50))
        volumes = [NewVolume(size)]
        self._group = self._runner.wait(
            lambda: self._pool.create_group("peers", iqn="iqn.bench:peers", volumes=volumes)
        )
        self._volume = self._group.volumes[0]

    def write(self, slots: Sequence[int], data: bytes) -> float:
        began = time.perf_counter()
        answers: list[StoreError | None] = []
        for at in range(0, len(slots), self._depth):
            some = slots[at : at + self._depth]
            for slot in some:
                self._volume.write(slot * len(data), data, PERMIT, answers.append)
            self._runner.turn_until(partial(self._answered, answers, at + len(some)))
        took = time.perf_counter() - began
        for error in filter(None, answers):
            raise error
        return took

    @staticmethod
    def _answered(answers: list[StoreError | None], count: int) -> bool:
        return len(answers) == count

    def cpu(self) -> float:
        return time.thread_time()

    def flush(self) -> None:
        answers: list[StoreError | None] = []
        self._pool.flush(answers.append)
        self._runner.turn_until(lambda: bool(answers))

    def prepare(self) -> None: ...

    def snapshot(self) -> None:
        self._runner.wait(lambda: self._group.snapshot("s"))

    def forget_snapshot(self) -> None:
        self._runner.wait(lambda: self._group.delete_snapshot("s"))
        self._runner.wait(self._pool.sweep)


class OverIscsi(Contender):
    """The product as users run it, over TCP on loopback."""

    def __init__(self, product: Product, iqn: str, depth: int) -> None:
        self.name = f"Blockyard (iSCSI, depth {depth})"
        self._product = product
        self._iqn = iqn
        self._depth = depth

    def write(self, slots: Sequence[int], data: bytes) -> float:
        with self._session() as session:
            generator = Generator(session, Workload("peers", len(data), True, False, self._depth, 0))
            took = generator.write_slots(slots)
        if generator.errors:
            raise OSError(f"{generator.errors} of {len(slots)} writes failed")
        return took

    def cpu(self) -> float:
        return cpu_seconds(self._product.pids())

    def flush(self) -> None:
        with self._session() as session:
            session.good(synchronize_cache())

    @contextmanager
    def _session(self) -> Iterator[Initiator]:
        """One for each use: an idle one would have to answer the target's pings while others are measured."""
        with Initiator(self._product.address, self._iqn) as session:
            session.login()
            while session.run(bytes(6)).status:
                pass  # unit attentions of the new session
            yield session

    def prepare(self) -> None: ...

    def snapshot(self) -> None:
        self._product.cli("snapshot", "create", "peers", "s")

    def forget_snapshot(self) -> None:
        self._product.cli("snapshot", "rm", "peers", "s")
        self._product.cli("pool", "sweep", self._product.cli("pool", "ls")[0]["name"])


class Qcow2(Contender):
    """qemu-nbd with its own defaults (write-back cache, clusters of 64 KiB) over TCP on loopback."""

    def __init__(self, folder: Path, size: int, depth: int) -> None:
        self.name = f"qcow2 (qemu-nbd, depth {depth})"
        self._depth = depth
        self._image = folder / "image.qcow2"
        self._log = folder / "qemu-nbd.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._img("create", "-q", "-f", "qcow2", str(self._image), str(size))
        self._serve()

    def write(self, slots: Sequence[int], data: bytes) -> float:
        return self._client.write(slots, data, self._depth)

    def cpu(self) -> float:
        assert self._server is not None
        return cpu_seconds([self._server.pid])

    def flush(self) -> None:
        self._client.flush()

    def prepare(self) -> None:
        self.close()
        self._serve()

    def snapshot(self) -> None:
        self.close()
        self._img("snapshot", "-c", "s", str(self._image))
        self._serve()

    def forget_snapshot(self) -> None:
        self.close()
        self._img("snapshot", "-d", "s", str(self._image))
        self._serve()

    def close(self) -> None:
        """Only a server that has ended has written everything into the image."""
        if self._server is not None:
            self._client.close()
            self._server.terminate()
            self._server.wait(30)
            self._server = None

    def _serve(self) -> None:
        port = free_port()
        command = ["qemu-nbd", "--persistent", "--shared=2", "--format=qcow2", "--bind=127.0.0.1", f"--port={port}"]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen([*command, str(self._image)], stdout=log, stderr=log)
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                self._client = NbdClient(("127.0.0.1", port))
                return
            except ConnectionRefusedError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"qemu-nbd does not listen: {self._log.read_text()}") from None
                time.sleep(0.01)

    def _img(self, *words: str) -> None:
        subprocess.run(["qemu-img", *words], check=True)


@dataclass(slots=True)
class Rounds:
    """Writes a second, and CPU seconds a write; one of each a round."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    cpu_before: list[float] = field(default_factory=list)
    cpu_after: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [after / before for before, after in zip(self.before, self.after, strict=True)]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where is written: ``places`` of 4 KiB, ``stride`` bytes apart, in random order; ``writes`` of them a round."""

    name: str
    places: int
    stride: int
    writes: int

    @property
    def size(self) -> int:
        return self.places * self.stride

    def fill(self, contender: Contender) -> None:
        """So that every place is mapped before: the first write of a block is another matter."""
        if self.stride == GRAIN:
            contender.write(range(self.size // MIB), random.Random(0).randbytes(MIB))
        else:
            contender.write(range(0, self.size // GRAIN, self.stride // GRAIN), os.urandom(GRAIN))
        contender.flush()

    def slots(self, chance: random.Random) -> list[int]:
        step = self.stride // GRAIN
        if self.writes == self.places:
            return [place * step for place in chance.sample(range(self.places), self.places)]
        return [chance.randrange(self.places) * step for _ in range(self.writes)]


@contextmanager
def contenders(folder: Path, size: int, depth: int) -> Iterator[list[Contender]]:
    with ExitStack() as stack:
        (folder / "product").mkdir()
        product = stack.enter_context(Product(folder / "product"))
        iqn = product.create_group("peers", size)
        qcow2 = Qcow2(folder, size, depth)
        stack.callback(qcow2.close)
        yield [InProcess(folder, size, depth), OverIscsi(product, iqn, depth), qcow2, PlainFile(folder, size)]


def measure(contender: Contender, pattern: Pattern, chance: random.Random, rounds: Rounds) -> None:
    data = os.urandom(GRAIN)
    contender.prepare()
    _measured(contender, pattern.slots(chance), data, rounds.before, rounds.cpu_before)
    contender.flush()
    contender.snapshot()
    _measured(contender, pattern.slots(chance), data, rounds.after, rounds.cpu_after)
    contender.flush()
    contender.forget_snapshot()


def _measured(contender: Contender, slots: list[int], data: bytes, rates: list[float], cpus: list[float]) -> None:
    cpu = contender.cpu()
    rates.append(len(slots) / contender.write(slots, data))
    cpus.append((contender.cpu() - cpu) / len(slots))


def run(pattern: Pattern, store: Path | None, rounds: int, depth: int) -> dict[str, Rounds]:
    folder = Path(tempfile.mkdtemp(prefix="blockyard-peers-", dir=store))
    try:
        with contenders(folder, pattern.size, depth) as all_of_them:
            for each in all_of_them:
                pattern.fill(each)
            results = {each.name: Rounds() for each in all_of_them}
            for number in range(rounds):
                for each in all_of_them:
                    measure(each, pattern, random.Random(number), results[each.name])
            return results
    finally:
        shutil.rmtree(folder)


def show(pattern: Pattern, results: dict[str, Rounds]) -> None:
    made = Table(title=f"4 KiB writes a second, {pattern.name}; {pattern.writes:,} writes a measurement")
    made.add_column("")
    for column in ("before", "right after", "ratio (median)", "worst", "best", "CPU µs before", "after"):
        made.add_column(column, justify="right")
    for name, rounds in results.items():
        ratios = sorted(rounds.ratios)
        rates = (statistics.median(rounds.before), statistics.median(rounds.after))
        figures = (statistics.median(ratios), ratios[0], ratios[-1])
        cpus = (statistics.median(rounds.cpu_before), statistics.median(rounds.cpu_after))
        shown = [*(f"{rate:,.0f}" for rate in rates), *(f"{ratio:.2f}" for ratio in figures)]
        made.add_row(name, *shown, *(f"{cpu * 1e6:.1f}" for cpu in cpus))
    print_table(made)


def goals(results: dict[str, Rounds]) -> list[Goal]:
    found = []
    for name, rounds in results.items():
        if name.startswith("Blockyard"):
            ratio = statistics.median(rounds.ratios)
            found.append(Goal(f"{name}: after/before", f">= {GOAL}", f"{ratio:.2f}", ratio >= GOAL))
    return found


def require_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        sys.exit(f"bench.peers needs the Debian package {', '.join(missing)}: bench/debian-packages.txt")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench NAME=peers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="paired measurements of each (default 7)")
    parser.add_argument("--writes", type=int, default=20_000, help="writes of each measurement (default 20000)")
    parser.add_argument("--mib", type=int, default=1024, help="size of the written volume (default 1024)")
    parser.add_argument("--depth", type=int, default=32, help="writes in flight (default 32)")
    parser.add_argument("--store", type=Path, help="folder for all files (default: a new temporary one)")
    options = parser.parse_args()
    require_tools()
    usual = Pattern(f"random over {options.mib} MiB", options.mib * MIB // GRAIN, GRAIN, options.writes)
    leaves = min(options.writes, 8192)
    hardest = Pattern("each into 2 MiB of its own (what a snapshot makes dearest)", leaves, 2 * MIB, leaves)
    results = run(usual, options.store, options.rounds, options.depth)
    show(usual, results)
    show(hardest, run(hardest, options.store, options.rounds, options.depth))
    return judge("random writes right after a snapshot", goals(results))


if __name__ == "__main__":
    sys.exit(main())
