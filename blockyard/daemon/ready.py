"""The block that ``serve`` prints when it is ready: what is served, where, and what to do next. Text only."""

from __future__ import annotations

from collections.abc import Sequence

from blockyard import __version__
from blockyard.config import Portal, ServeConfig
from blockyard.daemon.pool_worker import PoolWorker
from blockyard.model.names import DEFAULT_API


def ready_block(
    config: ServeConfig,
    portals: Sequence[Portal],
    pools: Sequence[PoolWorker],
    groups: int,
    api_over_tls: Portal | None = None,
) -> str:
    api = f"unix:{config.api}"
    serving = sum(pool.serving for pool in pools)
    lines = [
        f"Blockyard {__version__} is " + ("ready" if serving else "up, but serves nothing yet"),
        f"  store    {config.store} ({serving} of {len(pools)} pool(s) serving, {groups} group(s))",
        *(f"  portal   {portal}" for portal in portals),
        *([f"  known as {config.advertise}"] if config.advertise else []),
        f"  API      {api}",
        *([f"  API      https://{api_over_tls} (with tokens: blockyard token create)"] if api_over_tls else []),
        *(f"  FAILED   {pool.name}: {pool.reason}" for pool in pools if not pool.serving),
    ]
    if api != DEFAULT_API:
        lines.append(f"  next     export BLOCKYARD_API={api}")
    verb = "blockyard group ls" if groups else "blockyard group create demo --size 1G --client any"
    lines.append(f"  {'next' if api == DEFAULT_API else '    '}     {verb}")
    return "\n".join(lines)
