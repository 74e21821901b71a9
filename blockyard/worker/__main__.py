"""``python -m blockyard.worker``: started by the daemon, with its end of the channel as an inherited descriptor."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

import uvloop

from blockyard.rpc.log import set_up_log
from blockyard.worker.process import Worker
from target.iscsi.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="blockyard.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="SOCK_SEQPACKET channel to the daemon")
    parser.add_argument("--pool", required=True, help="name of the pool")
    parser.add_argument("--path", type=Path, required=True, help="directory of the pool")
    parser.add_argument("--pool-size", type=int, default=None, help="bytes that the pool may grow to")
    parser.add_argument("--advertise", default=None, help="HOST:PORT that initiators are told to come to")
    parser.add_argument("--ping-interval", type=float, default=Settings().ping_interval, help="of silence, in seconds")
    parser.add_argument("--ping-timeout", type=float, default=Settings().ping_timeout, help="of no answer, in seconds")
    options = parser.parse_args()
    set_up_log(options.pool)
    channel = socket.socket(fileno=options.fd)
    channel.set_inheritable(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        settings = Settings(ping_interval=options.ping_interval, ping_timeout=options.ping_timeout)
        worker = Worker(options.pool, options.path, options.pool_size, advertise=options.advertise, settings=settings)
        return runner.run(worker.run(channel))


if __name__ == "__main__":
    sys.exit(main())
