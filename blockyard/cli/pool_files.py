"""blockyard pool: create, forget. They work on the store directory itself; the daemon knows nothing of it until its
next start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockyard.cli.output import Json, print_json, say
from blockyard.errors import Invalid
from blockyard.model import MadePool, names

StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The directory that `serve` is given.")]


def create(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Name of the new pool.")],
    store: StoreOption,
    device: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Block device or partition for the data. [default: a file in the store]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if the device carries something; that is lost.")] = False,
    json: Json = False,
) -> None:
    """Make a pool that the daemon serves from its next start; with --device, its data takes a whole block device.

    Journals and metadata stay in the store: best on another, faster device."""
    # Imported here: numpy and the store would slow every other verb down.
    from blockstore.api import InUse, StoreError
    from blockstore.creation import create_pool
    from blockyard.daemon.store import begin_store
    from blockyard.worker.records import STORE_ERRORS

    path = store.absolute() / "pools" / _checked(pool)
    try:
        begin_store(store.absolute())
        uuid = create_pool(path, pool, device=device, force=force)
    except StoreError as error:
        how = " (--force)" if isinstance(error, InUse) else ""
        raise STORE_ERRORS[type(error)](f"{error}{how}") from error
    except OSError as error:
        raise Invalid(f"pool {pool} cannot be made: {error.strerror or error}") from error
    data = path / "data"
    made = MadePool(name=pool, uuid=uuid, path=str(path), device=str(data.readlink()) if data.is_symlink() else None)
    if json:
        print_json(made)
        return
    where = f"its data on {made.device}, the rest in {path}" if made.device else f"in {path}"
    say(f"Pool {pool} is made, {where}. The daemon serves it from its next start.")


def forget(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool that is gone.")],
    store: StoreOption,
    json: Json = False,
) -> None:
    """Miss a pool no longer whose directory was taken out of the store for good; while no daemon serves it."""
    from blockyard.daemon.store import StoreDirectory

    directory = StoreDirectory(store)
    try:
        directory.forget(pool)
    finally:
        directory.close()
    if json:
        print_json({"forgotten": pool})
    else:
        say(f"Pool {pool} is forgotten.")


def _checked(pool: str) -> str:
    try:
        return names.pool_name(pool)
    except ValueError as error:
        raise Invalid(str(error)) from None
