"""``make bench``: serve a fresh store on a free port, load it, print a table.

4 KiB random reads and writes at queue depth 1, 32 and 128, then 1 MiB sequential, through TCP on loopback.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.load import Figures, Workload, measure
from tests.product import Product

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

TABLE_WIDTH = 132

WORKLOADS = [
    Workload(f"4 KiB random {'write' if write else 'read'}, depth {depth}", 4 * KIB, write, False, depth, GIB)
    for write in (True, False)
    for depth in (1, 32, 128)
] + [
    Workload("1 MiB sequential write, depth 8", MIB, True, True, 8, GIB),
    Workload("1 MiB sequential read, depth 8", MIB, False, True, 8, GIB),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="measured time per workload (default 3)")
    parser.add_argument("--warm", type=float, default=0.5, help="time before it that does not count (default 0.5)")
    parser.add_argument("--store", type=Path, help="folder for the store (default: a new temporary one)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="blockyard-bench-", dir=options.store) as folder,
        Product(Path(folder)) as product,
    ):
        run(product, options)


def run(product: Product, options: argparse.Namespace) -> None:
    iqn = product.create_group("bench", GIB)
    fill = Workload("fill", MIB, True, True, 8, GIB)
    measure(product.address, iqn, fill, [], 2.5, 0)  # reads of unmapped blocks would flatter us
    results = []
    for workload in WORKLOADS:
        figures = measure(product.address, iqn, workload, product.pids(), options.seconds, options.warm)
        results.append((workload, figures))
        if options.json:
            print(json.dumps({"workload": workload.name, **vars(figures)}), flush=True)
    if not options.json:
        Console(width=max(Console().width, TABLE_WIDTH)).print(table(results))


def table(results: list[tuple[Workload, Figures]]) -> Table:
    made = Table(title="Blockyard on this machine: TCP on loopback, one session, write-back cache")
    made.add_column("workload")
    for column in ("IOPS", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "target CPU", "generator CPU", "errors"):
        made.add_column(column, justify="right")
    for workload, f in results:
        made.add_row(
            workload.name,
            f"{f.iops:,.0f}",
            f"{f.bytes_per_second / 1e6:,.0f}",
            *(f"{value:,.0f}" for value in (f.p50, f.p99, f.p999)),
            f"{f.target_cpu:.2f}",
            f"{f.generator_cpu:.2f}",
            str(f.errors),
        )
    return made


if __name__ == "__main__":
    main()
