"""``python -m blockyard.daemon CONFIG``: what ``blockyard serve`` becomes. CONFIG is ``config.ServeConfig`` as JSON."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from blockyard.config import ServeConfig
from blockyard.daemon.store import StoreDirectory
from blockyard.daemon.yard import Yard
from blockyard.errors import Invalid, ProductError, explain
from blockyard.rpc.log import set_up_log


async def serve(config: ServeConfig) -> None:
    store = StoreDirectory(config.store)
    try:
        await Yard(config, store, asyncio.get_running_loop()).run()
    finally:
        store.close()


def main(text: str) -> int:
    set_up_log("daemon")
    try:
        asyncio.run(serve(_parse(text)))
    except ProductError as error:
        print(f"blockyard: {error}", file=sys.stderr)
        return error.answer.exit_code
    return 0


def _parse(text: str) -> ServeConfig:
    try:
        return ServeConfig.model_validate_json(text)
    except ValidationError as error:
        raise Invalid(explain(error.errors())) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
