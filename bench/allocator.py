"""``python -m bench.allocator``: millions of single blocks are freed, joined, and handed out to large writes.

What matters is the longest time that the loop is held: by a slice of frees, by beginning and ending a join, by a large
request while a join runs and after it. The join itself runs in a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from blockstore.allocator import Allocator

BLOCKS = 4 << 20  # freed one by one: 16 GiB
SLICE = 4096  # runs freed in one go, as blockstore/space.py does
LARGE = 256  # blocks of a large write: 1 MiB


class Watch:
    """Durations of the loop's steps by name: the longest, and the sum."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}

    def run(self, name: str, step: Callable[[], object]) -> None:
        began = time.perf_counter()
        step()
        self.steps.setdefault(name, []).append(time.perf_counter() - began)

    def print(self) -> None:
        for name, seconds in self.steps.items():
            print(
                f"{name:48} {len(seconds):8} x  longest {1e3 * max(seconds):8.2f} ms  mean "
                f"{1e6 * sum(seconds) / len(seconds):9.1f} us"
            )


def free_all(allocator: Allocator, watch: Watch, blocks: list[int]) -> None:
    def some(at: int) -> None:
        for block in blocks[at : at + SLICE]:
            allocator.release(block, 1)

    for at in range(0, len(blocks), SLICE):
        watch.run(f"free {SLICE} single blocks", lambda at=at: some(at))  # type: ignore[misc]


def join(allocator: Allocator, watch: Watch, meanwhile: Callable[[], None]) -> None:
    landed: list[Callable[[], None]] = []

    def in_thread(work: Callable[[], object], then: Callable[[BaseException | None], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        landed.append(thread.join)
        landed.append(lambda: then(None))

    watch.run("begin a join", lambda: allocator.coalesce(in_thread))
    meanwhile()
    if landed:
        began = time.perf_counter()
        landed[0]()
        print(f"the join ran on for {time.perf_counter() - began:.2f} s in its thread")
        watch.run("end a join", landed[1])


def measure(title: str, blocks: list[int], *, abandon: bool = False) -> None:
    print(f"--- {title}")
    watch, allocator = Watch(), Allocator(1, 1)
    if not abandon:
        allocator.grow(1 << 20)
    free_all(allocator, watch, blocks)
    pieces: list[int] = []

    def write() -> None:
        pieces.append(len(allocator.allocate(LARGE)))

    def meanwhile() -> None:
        for _ in range(100):
            watch.run("large write while joining", write)

    join(allocator, watch, meanwhile)
    while allocator.free >= LARGE:
        watch.run("large write afterwards", write)
    watch.print()
    print(f"{'pieces of a large write':48} {sum(pieces) / len(pieces):.2f}")


def main() -> None:
    order = np.random.default_rng(1)
    measure("every block, in any order", (order.permutation(BLOCKS) + (1 << 20)).tolist())
    measure("every second block: nothing joins", (order.permutation(BLOCKS) * 2 + (1 << 20)).tolist())
    few = (order.permutation(BLOCKS)[: 1 << 13] + (1 << 20)).tolist()
    measure("few enough to be joined at once", few)
    measure("nothing else is free: the join is abandoned", (order.permutation(BLOCKS) + 1).tolist(), abandon=True)


if __name__ == "__main__":
    main()
