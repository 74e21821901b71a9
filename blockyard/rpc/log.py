"""How daemon and workers log: one line an event on stderr, the time and the process's role in front."""

from __future__ import annotations

import logging
import time


def set_up_log(role: str) -> None:
    """``role`` is ``daemon`` or the pool's name."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s.%(msecs)03dZ %(levelname)s {role} %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # One line for each request of the API would drown the events that an operator cares about.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
