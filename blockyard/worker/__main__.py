"""``python -m blockyard.worker``: started by the daemon, with its end of the channel as an inherited descriptor."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

import uvloop

from blockyard.rpc.log import set_up_log
from blockyard.worker.process import Worker, open_or_create_store, open_store


def main() -> int:
    parser = argparse.ArgumentParser(prog="blockyard.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="SOCK_SEQPACKET channel to the daemon")
    parser.add_argument("--pool", required=True, help="name of the pool")
    parser.add_argument("--path", type=Path, required=True, help="directory of the pool")
    parser.add_argument("--create", action="store_true", help="make the pool if there is none")
    parser.add_argument("--pool-size", type=int, default=None, help="bytes that the pool may grow to")
    parser.add_argument("--advertise", default=None, help="HOST:PORT that initiators are told to come to")
    options = parser.parse_args()
    set_up_log(options.pool)
    channel = socket.socket(fileno=options.fd)
    channel.set_inheritable(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        opener = open_or_create_store if options.create else open_store
        worker = Worker(options.pool, options.path, options.pool_size, opener, advertise=options.advertise)
        return runner.run(worker.run(channel))


if __name__ == "__main__":
    sys.exit(main())
