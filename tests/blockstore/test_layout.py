"""Formats: what is packed is parsed, and garbage is refused with FormatError and nothing else."""

from __future__ import annotations

import contextlib
from uuid import UUID

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockstore import layout
from blockstore.layout import FormatError
from blockstore.records import (
    CloneMap,
    CreateMap,
    Delete,
    DeleteMap,
    Edit,
    Put,
    ResizeMap,
    RollbackMap,
    SnapMap,
    Trim,
    Write,
)

POOL = UUID(int=0x1234567890ABCDEF1234567890ABCDEF)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
edits: st.SearchStrategy[Edit] = st.one_of(
    st.builds(CreateMap, u32, u64),
    st.builds(ResizeMap, u32, u64),
    st.builds(SnapMap, u32, u32),
    st.builds(CloneMap, u32, u32),
    st.builds(RollbackMap, u32, u32),
    st.builds(DeleteMap, u32),
    st.builds(Put, st.text(max_size=20), st.text(max_size=40), st.binary(max_size=300)),
    st.builds(Delete, st.text(max_size=20), st.text(max_size=40)),
)


@given(st.lists(edits, max_size=8))
def test_edits_are_parsed_as_they_were_packed(sequence: list[Edit]) -> None:
    body = b"".join(map(layout.pack_edit, sequence))
    assert list(layout.parse_records(memoryview(body))) == sequence


@given(u32, u64, u64, st.lists(u32, min_size=1, max_size=20))
def test_writes_and_trims_are_parsed_as_they_were_packed(number: int, grain: int, entry: int, crcs: list[int]) -> None:
    array = np.array(crcs, np.uint32)
    body = layout.pack_write(number, grain, entry, array) + layout.pack_trim(number, grain, entry)
    write, trim = layout.parse_records(memoryview(body))
    assert isinstance(write, Write)
    assert (write.map, write.grain, write.entry, write.crcs.tolist()) == (number, grain, entry, crcs)
    assert trim == Trim(number, grain, entry)


def test_the_record_of_one_grain_is_that_of_a_run_of_one() -> None:
    one = layout.pack_one_write(layout.WRITE_KIND, 7, 1, 99, 1234, 0xDEADBEEF)
    assert one == layout.pack_write(7, 99, 1234, np.array([0xDEADBEEF], np.uint32))


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_no_record(body: bytes) -> None:
    with contextlib.suppress(FormatError):
        list(layout.parse_records(memoryview(body)))


@given(st.lists(edits, max_size=4), u64, u64, u64, u32)
def test_a_batch_is_parsed_as_it_was_packed(sequence: list[Edit], epoch: int, seq: int, synced: int, prev: int) -> None:
    records = list(map(layout.pack_edit, sequence))
    batch, crc = layout.pack_batch(
        records, epoch=epoch, seq=seq, synced_seq=synced, tag=layout.pool_tag(POOL), prev_crc=prev
    )
    assert len(batch) % layout.SECTOR == 0
    header = layout.parse_batch(memoryview(batch), 0, layout.pool_tag(POOL))
    assert header == layout.BatchHeader(crc, epoch, layout.HEADER_BYTES + sum(map(len, records)), seq, synced, prev)


@given(st.data())
def test_a_batch_with_one_flipped_bit_is_none(data: st.DataObject) -> None:
    records = [layout.pack_trim(1, 2, 3)] * 20
    batch, _ = layout.pack_batch(records, epoch=1, seq=1, synced_seq=0, tag=layout.pool_tag(POOL), prev_crc=0)
    length = layout.HEADER_BYTES + 20 * len(records[0])
    damaged = bytearray(batch)
    damaged[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert layout.parse_batch(memoryview(damaged), 0, layout.pool_tag(POOL)) is None


@pytest.mark.parametrize("keep", [0, 512, 1024])
def test_a_torn_batch_is_none(keep: int) -> None:
    records = [layout.pack_trim(1, 2, 3)] * 50
    batch, _ = layout.pack_batch(records, epoch=1, seq=1, synced_seq=0, tag=layout.pool_tag(POOL), prev_crc=0)
    torn = batch[:keep] + bytes(len(batch) - keep)
    assert layout.parse_batch(memoryview(torn), 0, layout.pool_tag(POOL)) is None


def test_a_batch_of_another_pool_is_none() -> None:
    batch, _ = layout.pack_batch([], epoch=1, seq=1, synced_seq=0, tag=layout.pool_tag(POOL), prev_crc=0)
    assert layout.parse_batch(memoryview(batch), 0, layout.pool_tag(UUID(int=5))) is None


def test_the_data_header_says_whose_it_is() -> None:
    block = layout.pack_data_header(POOL, 0)
    assert len(block) == layout.UNIT
    assert layout.parse_data_header(block) == (POOL, 0)
    with pytest.raises(FormatError):
        layout.parse_data_header(block[:20] + b"\xff" + block[21:])
    with pytest.raises(FormatError):
        layout.parse_data_header(bytes(layout.UNIT))


def test_a_node_that_rots_is_refused() -> None:
    blob = layout.pack_node(b"body" * 10)
    assert layout.parse_node(blob, 40) == b"body" * 10
    with pytest.raises(FormatError):
        layout.parse_node(blob[:-1] + b"x", 40)
    with pytest.raises(FormatError):
        layout.parse_node(blob, 44)


def test_a_grains_checksum_is_the_one_iscsi_calls_crc32c() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 7143, appendix A.4: 32 bytes of zeros
