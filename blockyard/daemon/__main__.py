"""``python -m blockyard.daemon CONFIG``: what ``blockyard serve`` becomes. CONFIG is ``config.ServeConfig`` as JSON."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from pydantic import ValidationError

from blockyard.config import ServeConfig
from blockyard.daemon.store import StoreDirectory
from blockyard.daemon.yard import Yard
from blockyard.errors import Invalid, ProductError, explain
from blockyard.rpc.log import set_up_log
from blockyard.service import take_sockets


async def serve(config: ServeConfig) -> None:
    store = StoreDirectory(config.store, create=config.create)
    try:
        await Yard(config, store, asyncio.get_running_loop(), take_sockets()).run()
    finally:
        store.close()


def main(text: str) -> int:
    set_up_log("daemon")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(_parse(text)))
    except ProductError as error:
        print(f"blockyard: {error}", file=sys.stderr)
        return error.answer.exit_code
    return 0


def _parse(text: str) -> ServeConfig:
    try:
        return ServeConfig.model_validate_json(text)
    except ValidationError as error:
        raise Invalid(explain([{**each, "loc": _option(each["loc"])} for each in error.errors()])) from None


def _option(place: tuple[int | str, ...]) -> tuple[str, ...]:
    """A field of the configuration, as the command line names it."""
    if not place:
        return ()
    return ("--" + str(place[0]).removesuffix("s" if place[0] == "portals" else "").replace("_", "-"),)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
