"""Verified files: each one's contents follow from its number alone, so they can be proved without a list.

``write FOLDER`` fsyncs one file after another and says its number only then, until SIGTERM; an error of the file
system ends it at once. ``check FOLDER COUNT`` proves the files 0 to COUNT - 1; what comes later may be torn.
"""

from __future__ import annotations

import os
import random
import signal
import sys

LENGTH_MAX = 96 * 1024  # bytes; odd lengths below, so that files share no alignment


def contents(number: int) -> bytes:
    source = random.Random(number)
    return source.randbytes(source.randrange(1, LENGTH_MAX))


def path_of(folder: str, number: int) -> str:
    return f"{folder}/file-{number:06d}"


def write(folder: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    directory = os.open(folder, os.O_RDONLY)
    number = 0
    while not stopping:
        with open(path_of(folder, number), "wb") as file:
            file.write(contents(number))
            file.flush()
            os.fsync(file.fileno())
        os.fsync(directory)
        number += 1
        print(number, flush=True)


def check(folder: str, count: int) -> None:
    wrong = []
    for number in range(count):
        try:
            with open(path_of(folder, number), "rb") as file:
                intact = file.read() == contents(number)
        except OSError as error:
            wrong.append(f"file {number}: {error}")
            continue
        if not intact:
            wrong.append(f"file {number}: other contents")
    if wrong:
        raise SystemExit("\n".join([f"{len(wrong)} of {count} fsynced files are damaged", *wrong[:20]]))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    else:
        check(sys.argv[2], int(sys.argv[3]))
