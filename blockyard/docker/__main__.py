"""``python -m blockyard.docker FILE``: what ``blockyard docker-plugin`` becomes."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from blockyard.docker.config import load
from blockyard.docker.service import serve
from blockyard.errors import ProductError


def main(path: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request of each refresh
    try:
        asyncio.run(serve(load(Path(path))))
    except ProductError as error:
        print(f"blockyard: {error}", file=sys.stderr)
        return error.answer.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
