"""blockyard check: proves a store whole that no daemon serves. The one verb that opens the store itself.

It takes each pool's lock, as a worker does, so it never sees a pool in motion. Exit code: 0 whole, 1 findings, else
that of the error which kept a pool from being checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockyard.cli.output import Json, print_json, say, warn
from blockyard.errors import BY_CODE, EXIT_FINDINGS, Damaged, Invalid, Locked, ProductError
from blockyard.model import CheckReport, PoolCheck, names

if TYPE_CHECKING:
    from blockstore.check import CheckReport as StoreReport


def check(
    store: Annotated[Path, typer.Option(metavar="DIR", help="The directory that `serve --store` was given.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also read and verify every stored block.")] = False,
    json: Json = False,
) -> None:
    """Prove a store whole while no daemon serves it. Exit code: 0 whole, 1 damage found, 10 in use, 12 unreadable."""
    pools = _pools_of(store)
    report = CheckReport(store=str(store), deep=deep, pools=tuple(_check_pool(path, deep) for path in pools))
    if json:
        print_json(report)
    else:
        for pool in report.pools:
            _print_pool(pool)
    raise typer.Exit(exit_code(report))


def exit_code(report: CheckReport) -> int:
    """Damage that was proved goes before what could not be looked at."""
    if any(pool.findings for pool in report.pools):
        return EXIT_FINDINGS
    codes = [pool.error_code for pool in report.pools if pool.error_code is not None]
    return BY_CODE[codes[0]]("").answer.exit_code if codes else 0


def _pools_of(store: Path) -> list[Path]:
    """Of every pool there is, or was: one that is missing must not be passed over."""
    from blockyard.daemon.store import known_pools

    folder = store / "pools"
    try:
        return sorted(
            {entry for entry in folder.iterdir() if names.may_be_pool(entry)}.union(
                folder / name for name in known_pools(store)
            )
        )
    except OSError as error:
        raise Invalid(f"{store} is no store: {error.strerror or error} ({store / 'pools'})") from None


def _check_pool(path: Path, deep: bool) -> PoolCheck:
    # Imported here: numpy and the store would slow every other verb down.
    from blockstore.api import Locked as PoolLocked
    from blockstore.check import check_pool

    try:
        report = check_pool(path, deep=deep)
    except PoolLocked as error:
        return _unchecked(path, Locked(f"{error}: stop the daemon that serves it, then check"))
    except OSError as error:
        return _unchecked(path, Damaged(f"cannot be read: {error}"))
    return _checked(path, report)


def _unchecked(path: Path, error: ProductError) -> PoolCheck:
    return PoolCheck(pool=path.name, path=str(path), clean=False, error=str(error), error_code=error.answer.code)


def _checked(path: Path, report: StoreReport) -> PoolCheck:
    return PoolCheck(
        pool=path.name,
        path=str(path),
        clean=report.ok,
        findings=tuple(f"rule {finding.rule}: {' '.join(finding.message.split())}" for finding in report.findings),
        figures={
            "volumes": report.volumes,
            "snapshots": report.snapshots,
            "mapped_blocks": report.mapped_blocks,
            "replayed_batches": report.replayed_batches,
            "dropped_batches": report.dropped_batches,
            "verified_blocks": report.verified_blocks,
        },
    )


def _print_pool(pool: PoolCheck) -> None:
    if pool.error is not None:
        warn(f"{pool.pool} was not checked: {pool.error}")
        return
    figures = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in pool.figures.items())
    say(f"{pool.pool} is {'whole' if pool.clean else 'DAMAGED'}: {figures}")
    for finding in pool.findings:
        say(f"  {finding}")
