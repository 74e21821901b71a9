"""Sending and receiving snapshots between two pools: round trips, cuts, damage, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from blockstore.api import AlreadyExists, Closed, Corrupt, InUse, Invalid, MediumError, NewVolume, NotFound
from blockstore.export_diff import RBD_BANNER
from blockstore.layout import UNIT
from blockstore.receive import Receiver, abort_receive
from blockstore.send import Sender
from blockstore.staging import find_staged
from blockstore.stream import Position, StreamDecoder, pack_token
from tests.blockstore.streaming import block_of, content, fill, fingerprint, receive, send
from tests.blockstore.support import GRAIN, MIB, Driver, Store, pattern


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """Where streams go."""
    store = Store(tmp_path / "other")
    yield store
    store.prove_whole()


def source(store: Store, *, volumes: int = 1) -> Driver:
    """Group ``db`` with snapshot ``a``, and ``b`` in which something was written and something unmapped."""
    driver = store.open()
    group = driver.group(count=volumes)
    for lun in range(volumes):
        fill(driver, group, {0: 1 + lun, 7: 2, 9: 3, 600: 4, 4095: 5}, lun)
    driver.write(group.volumes[0], 2 * MIB, b"".join(pattern(100 + i) for i in range(700)))
    driver.wait(group.snapshot("a"))
    fill(driver, group, {7: 0, 9: 8, 10: 9, 1000: 0})
    driver.wait(group.snapshot("b"))
    return driver


def test_a_full_stream_makes_the_group_with_the_same_content_and_fingerprint(store: Store, other: Store) -> None:
    here, there = source(store, volumes=2), other.open()

    record = receive(there, "copy", send(here, "db", "b"))

    assert content(there, "copy") == content(here, "db")
    assert content(there, "copy", 1) == content(here, "db", 1)
    origin = here.pool.groups["db"].snapshots["b"]
    assert (record.name, record.origin, record.created) == ("b", origin.uuid, origin.created)
    assert fingerprint(there, "copy", "b").sha256 == fingerprint(here, "db", "b").sha256
    assert [volume.name for volume in there.pool.groups["copy"].record.volumes] == ["vol0", "vol1"]


def test_an_incremental_stream_continues_the_group(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    receive(there, "copy", send(here, "db", "a"))
    identity = there.pool.groups["copy"].record.volumes[0].uuid
    whole = sum(map(len, send(here, "db", "b")))

    stream = send(here, "db", "b", base="a")
    receive(there, "copy", stream)

    assert sum(map(len, stream)) < whole
    assert content(there, "copy") == content(here, "db")
    assert list(there.pool.groups["copy"].snapshots) == ["a", "b"]
    assert there.pool.groups["copy"].record.volumes[0].uuid == identity
    for name in ("a", "b"):
        assert fingerprint(there, "copy", name).sha256 == fingerprint(here, "db", name).sha256


def test_what_was_received_is_there_after_a_restart_and_can_be_sent_on(
    store: Store, other: Store, tmp_path: Path
) -> None:
    here, there = source(store), other.open()
    receive(there, "copy", send(here, "db", "a"))
    there = other.reopen()
    third = Store(tmp_path / "third")
    last = third.open()

    receive(last, "third", send(there, "copy", "a"))
    receive(last, "third", send(here, "db", "b", base="a"))  # the base is known by its identity, wherever it came from

    assert content(last, "third") == content(here, "db")
    third.prove_whole()


def test_a_snapshot_of_a_clone_is_sent_as_any_other(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    clone = here.wait(here.pool.clone_group("db", "a", "clone", iqn="iqn.2026-01.test:clone", clients=()))
    fill(here, clone, {3: 77, 9: 0})
    here.wait(clone.snapshot("c"))

    receive(there, "copy", send(here, "clone", "c"))

    assert content(there, "copy") == content(here, "clone")


def test_volumes_that_grew_came_and_went_follow(store: Store, other: Store) -> None:
    here, there = store.open(), other.open()
    group = here.group(count=2)
    fill(here, group, {1: 1}, 1)
    here.wait(group.snapshot("a"))
    receive(there, "copy", send(here, "db", "a"))
    here.wait(group.resize(0, 32 * MIB))
    here.wait(group.remove_volume(1))
    here.wait(group.add_volume(NewVolume(4 * MIB, "logs")))
    fill(here, group, {8191: 9})
    fill(here, group, {5: 5}, 2)
    here.wait(group.snapshot("b"))

    receive(there, "copy", send(here, "db", "b", base="a"))

    volumes = there.pool.groups["copy"].record.volumes
    assert [(volume.lun, volume.name, volume.size) for volume in volumes] == [
        (0, "vol0", 32 * MIB),
        (2, "logs", 4 * MIB),
    ]
    assert content(there, "copy") == content(here, "db")
    assert content(there, "copy", 2) == content(here, "db", 2)
    assert there.pool.groups["copy"].record.next_lun == 3


def test_a_stream_cut_after_any_envelope_is_resumed_and_shows_nothing_before_its_end(
    store: Store, other: Store
) -> None:
    here, there = source(store, volumes=2), other.open()
    whole = send(here, "db", "a")
    for cut in range(1, len(whole)):
        name = f"copy{cut}"
        with pytest.raises(Corrupt, match="cut at LUN"):
            receive(there, name, whole[:cut])
        assert name not in there.pool.groups
        if cut % 3 == 0:
            there = other.reopen()

        staged = find_staged(there.engine.catalog, name)
        assert staged is not None
        receive(there, name, send(here, "db", "a", resume=staged.token))

        assert fingerprint(there, name, "a").sha256 == fingerprint(here, "db", "a").sha256
        assert find_staged(there.engine.catalog, name) is None


def test_an_incremental_stream_cut_after_any_envelope_leaves_the_group_as_it_was(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    whole = send(here, "db", "b", base="a")
    receive(there, "copy", send(here, "db", "a"))
    before = content(there, "copy")
    for cut in range(1, len(whole)):
        with pytest.raises(Corrupt, match="cut at"):
            receive(there, "copy", whole[:cut])
        assert content(there, "copy") == before
        assert list(there.pool.groups["copy"].snapshots) == ["a"]
        if cut == len(whole) // 2:
            there = other.reopen()
        staged = find_staged(there.engine.catalog, "copy")
        assert staged is not None
        if cut < len(whole) - 1:
            there.wait(abort_receive(there.engine, "copy"))
    receive(there, "copy", send(here, "db", "b", base="a", resume=staged.token))
    assert content(there, "copy") == content(here, "db")


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 30])
def test_it_does_not_matter_how_a_stream_is_cut_into_buffers(store: Store, other: Store, piece: int) -> None:
    here, there = store.open(), other.open()
    group = here.group(size=MIB)
    fill(here, group, {0: 1, 3: 2})
    here.wait(group.snapshot("a"))
    stream = b"".join(send(here, "db", "a"))

    receive(there, "copy", [stream[at : at + piece] for at in range(0, len(stream), piece)])

    assert content(there, "copy") == content(here, "db")


def test_a_flipped_bit_anywhere_is_refused_and_the_group_is_not_made(store: Store, other: Store) -> None:
    here, there = store.open(), other.open()
    group = here.group(size=MIB)
    fill(here, group, {0: 1, 3: 2, 4: 0})
    here.wait(group.snapshot("a"))
    stream = b"".join(send(here, "db", "a"))
    for at in range(0, len(stream), 9):
        damaged = bytearray(stream)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Corrupt, match="stream: "):
            receive(there, "copy", [bytes(damaged)])
        assert "copy" not in there.pool.groups
        if find_staged(there.engine.catalog, "copy") is not None:
            there.wait(abort_receive(there.engine, "copy"))


@pytest.mark.parametrize("change", ["lost", "doubled", "swapped", "more"])
def test_envelopes_that_are_lost_doubled_or_out_of_order_are_refused(store: Store, other: Store, change: str) -> None:
    here, there = source(store), other.open()
    parts = send(here, "db", "a")
    changed = {
        "lost": parts[:2] + parts[3:],
        "doubled": [*parts[:3], parts[2], *parts[3:]],
        "swapped": [*parts[:2], parts[3], parts[2], *parts[4:]],
        "more": [*parts, parts[1]],
    }[change]

    with pytest.raises(Corrupt):
        receive(there, "copy", changed)

    assert "copy" not in there.pool.groups


def test_a_kill_in_the_commit_leaves_the_snapshot_whole_or_still_to_be_committed(store: Store, other: Store) -> None:
    here = source(store)
    stream = b"".join(send(here, "db", "b"))
    expected = fingerprint(here, "db", "b").sha256
    for ticks in range(4):
        name, there = f"copy{ticks}", other.open()
        receiver = Receiver(there.engine, name, iqn=f"iqn.2026-01.test:{name}")
        there.wait(receiver.feed(stream))
        if ticks:
            there.wait(receiver.end())
            receiver.commit()
        for _ in range(ticks):
            there.runner.tick()
        there = other.reopen()
        if name not in there.pool.groups:
            staged = find_staged(there.engine.catalog, name)
            assert staged is not None
            receive(there, name, send(here, "db", "b", resume=staged.token))
        assert fingerprint(there, name, "b").sha256 == expected
        assert find_staged(there.engine.catalog, name) is None
        other.kill()


def test_a_group_that_was_written_since_its_base_is_not_overwritten(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    receive(there, "copy", send(here, "db", "a"))
    fill(there, there.pool.groups["copy"], {2000: 6})

    with pytest.raises(InUse, match="was written since its snapshot a"):
        receive(there, "copy", send(here, "db", "b", base="a"))

    there.wait(there.pool.groups["copy"].rollback("a"))
    receive(there, "copy", send(here, "db", "b", base="a"))
    assert content(there, "copy") == content(here, "db")


def test_a_group_that_is_written_while_a_stream_comes_in_is_not_overwritten(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    receive(there, "copy", send(here, "db", "a"))
    receiver = Receiver(there.engine, "copy", iqn="iqn.2026-01.test:copy")
    there.wait(receiver.feed(b"".join(send(here, "db", "b", base="a"))))
    fill(there, there.pool.groups["copy"], {2000: 6})
    before = content(there, "copy")

    with pytest.raises(InUse, match="was written since"):
        there.wait(receiver.commit())

    receiver.close()
    assert content(there, "copy") == before
    assert list(there.pool.groups["copy"].snapshots) == ["a"]


def test_streams_that_do_not_fit_the_group_are_refused(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    there.group("db", size=MIB)

    with pytest.raises(AlreadyExists, match="group db exists"):
        receive(there, "db", send(here, "db", "a"))
    with pytest.raises(NotFound, match="no group 'copy'"):
        receive(there, "copy", send(here, "db", "b", base="a"))
    with pytest.raises(NotFound, match="identity of the stream's base a"):
        receive(there, "db", send(here, "db", "b", base="a"))
    receive(there, "copy", send(here, "db", "b"))
    with pytest.raises(Invalid, match="its beginning was never received"):
        receive(there, "third", send(here, "db", "b", resume=_token_behind(here)))


def _token_behind(driver: Driver) -> str:
    return pack_token(driver.pool.groups["db"].snapshots["b"].identity, Position(0, 4 * MIB))


def test_two_receives_for_one_group_do_not_mix(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    receiver = Receiver(there.engine, "copy", iqn="iqn.2026-01.test:copy")
    there.wait(receiver.feed(send(here, "db", "a")[0]))

    with pytest.raises(InUse, match="another stream"):
        Receiver(there.engine, "copy", iqn="iqn.2026-01.test:copy")
    with pytest.raises(InUse, match="end that first"):
        there.wait(abort_receive(there.engine, "copy"))
    receiver.close()
    with pytest.raises(InUse, match="a is half received"):
        receive(there, "copy", send(here, "db", "b"))
    there.wait(abort_receive(there.engine, "copy"))
    receive(there, "copy", send(here, "db", "b"))


def test_a_snapshot_cannot_be_deleted_while_it_is_sent(store: Store) -> None:
    driver = source(store)
    group = driver.pool.groups["db"]
    sender = Sender(driver.engine, "db", "b", base="a")
    driver.wait(sender.next())

    for name in ("a", "b"):
        with pytest.raises(InUse, match=f"snapshot {name} is being read"):
            driver.wait(group.delete_snapshot(name))
    with pytest.raises(InUse):
        driver.wait(driver.pool.delete_group("db"))
    sender.close()
    with pytest.raises(Closed):
        driver.wait(sender.next())
    driver.wait(group.delete_snapshot("a"))
    driver.wait(driver.pool.delete_group("db"))


def test_blocks_of_a_snapshot_that_is_sent_are_not_reused_by_writes_and_sweeps(store: Store, other: Store) -> None:
    here, there = source(store), other.open()
    expected = content(here, "db")
    group = here.pool.groups["db"]
    sender = Sender(here.engine, "db", "b")
    parts = []
    while data := here.wait(sender.next()):
        parts.append(data)
        for grain in range(0, 4096, 64):
            here.write(group.volumes[0], grain * GRAIN, pattern(5000 + grain + len(parts)))
        here.wait(here.pool.sweep())
    sender.close()

    receive(there, "copy", parts)

    assert content(there, "copy") == expected


def test_a_damaged_block_ends_the_stream_and_names_its_place(store: Store, other: Store) -> None:
    store.expect_findings = True
    here, there = source(store), other.open()
    here.wait(here.pool.checkpoint())
    here.engine.data.write(block_of(here, "db", 600) * UNIT, [b"\xff"])

    with pytest.raises(MediumError, match="group db, snapshot a, LUN 0, LBA 4800") as caught:
        send(here, "db", "a")
    assert caught.value.offset == 600 * GRAIN
    here.wait(here.pool.groups["db"].delete_snapshot("a"))
    assert not there.pool.groups


def test_a_smaller_volume_is_not_sent_as_a_difference(store: Store) -> None:
    driver = store.open()
    group = driver.group()
    driver.wait(group.snapshot("small"))
    driver.wait(group.resize(0, 32 * MIB))
    driver.wait(group.snapshot("large"))

    with pytest.raises(Invalid, match="can only be sent in full"):
        Sender(driver.engine, "db", "small", base="large")
    driver.wait(group.delete_snapshot("large"))


def test_without_its_envelopes_a_stream_is_plain_export_diff(store: Store) -> None:
    driver = store.open()
    group = driver.group(size=MIB)
    fill(driver, group, {2: 1, 5: 2})
    driver.wait(group.snapshot("a"))
    fill(driver, group, {2: 0, 3: 7})
    driver.wait(group.snapshot("b"))

    plain = b""
    decompressor = zstandard.ZstdDecompressor()
    with decompressor.stream_reader(b"".join(send(driver, "db", "b", base="a")), read_across_frames=True) as reader:
        plain = reader.read()

    expected = RBD_BANNER + b"f\1\0\0\0a" + b"t\1\0\0\0b" + b"s" + MIB.to_bytes(8, "little")
    expected += b"z" + (2 * GRAIN).to_bytes(8, "little") + GRAIN.to_bytes(8, "little")
    expected += b"w" + (3 * GRAIN).to_bytes(8, "little") + GRAIN.to_bytes(8, "little") + pattern(7)
    assert plain == expected + b"e"


def test_garbage_is_refused_as_corrupt() -> None:
    for garbage in (b"\0" * 100, b"PK\3\4" * 10, bytes(range(256))):
        decoder = StreamDecoder()
        decoder.feed(garbage)
        with pytest.raises(Corrupt, match="no envelope"):
            decoder.next()
