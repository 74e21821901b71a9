"""Steps that the tests of diff, send, receive and scrub share."""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.api import Group, SnapshotRecord, StoreError
from blockstore.diff import SnapshotDiff
from blockstore.fingerprint import Fingerprint, Verifier
from blockstore.receive import Receiver
from blockstore.scrub import Scrub, ScrubReport
from blockstore.send import Sender
from tests.blockstore.support import GRAIN, Driver, pattern


def fill(driver: Driver, group: Group, seeds: dict[int, int], lun: int = 0) -> None:
    """Grain → seed of its pattern; seed 0 unmaps it."""
    volume = group.volumes[lun]
    for grain, seed in seeds.items():
        if seed:
            driver.write(volume, grain * GRAIN, pattern(seed))
        else:
            driver.discard(volume, grain * GRAIN, GRAIN)


def content(driver: Driver, group: str, lun: int = 0) -> bytes:
    volume = driver.pool.groups[group].volumes[lun]
    return driver.read(volume, 0, volume.size)


def diff(driver: Driver, group: str, old: str, new: str | None, lun: int = 0) -> dict[int, str]:
    """Grain → ``changed`` or ``zero``."""
    comparison = SnapshotDiff(driver.engine, group, old, new)
    ranges = driver.wait(comparison.all_ranges(lun))
    comparison.close()
    found = {}
    for offset, length, zero in zip(ranges.offsets, ranges.lengths, ranges.zero, strict=True):
        for grain in range(offset // GRAIN, (offset + length) // GRAIN):
            found[grain] = "zero" if zero else "changed"
    return found


def send(
    driver: Driver, group: str, snapshot: str, *, base: str | None = None, resume: str | None = None
) -> list[bytes]:
    """The stream, one element an envelope (with its frame)."""
    sender = Sender(driver.engine, group, snapshot, base=base, resume=resume)
    parts = []
    while data := driver.wait(sender.next()):
        parts.append(data)
    sender.close()
    return parts


def receive(driver: Driver, name: str, parts: Iterable[bytes]) -> SnapshotRecord:
    """Raises what the receiver raises; what came is kept, as the worker does it."""
    receiver = Receiver(driver.engine, name, iqn=f"iqn.2026-01.test:{name}")
    try:
        for part in parts:
            driver.wait(receiver.feed(part))
        driver.wait(receiver.end())
        return driver.wait(receiver.commit())
    except StoreError:
        driver.wait(receiver.save())
        raise
    finally:
        receiver.close()


def fingerprint(driver: Driver, group: str, snapshot: str) -> Fingerprint:
    verifier = Verifier(driver.engine, group, snapshot, lambda done, total: None)
    try:
        return driver.wait(verifier.verify())
    finally:
        verifier.close()


def scrub(driver: Driver, rate: int | None = None) -> ScrubReport:
    run = Scrub(driver.engine, rate=rate, progress=lambda done, errors: None)
    try:
        return driver.wait(run.scrub(), patience=1000)
    finally:
        run.close()


def block_of(driver: Driver, group: str, grain: int, lun: int = 0) -> int:
    entry = driver.engine.catalog.groups[group]
    return driver.engine.blockmap.entry(driver.engine.blockmap.maps[entry.maps[lun]], grain)[0]
