"""READ, WRITE, VERIFY, WRITE SAME, UNMAP, SYNCHRONIZE CACHE, READ CAPACITY, START STOP UNIT."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore import api
from pdus.scsi import cdb, parameters
from target.scsi import limits, sense
from target.scsi.result import UNANSWERED, Status
from tests.target.scsi.support import BLOCK, BLOCKS, Yard, data, ending, information, pointed_field

READS = [cdb.Read6, cdb.Read10, cdb.Read12, cdb.Read16]
WRITES = [cdb.Write6, cdb.Write10, cdb.Write12, cdb.Write16]
WRITE_SAMES = [cdb.WriteSame10, cdb.WriteSame16]
VERIFIES = [cdb.Verify10, cdb.Verify12, cdb.Verify16]
A, B = b"a" * BLOCK, b"b" * BLOCK


def content(yard: Yard, lba: int, blocks: int) -> bytes:
    return data(yard.send(cdb.Read10(lba=lba, transfer_length=blocks)))


def fill(yard: Yard, lba: int, content: bytes) -> None:
    result = yard.send(cdb.Write10(lba=lba, transfer_length=len(content) // BLOCK), content)
    assert ending(result) is Status.GOOD


class Deaf:
    """A volume that keeps or refuses what the wrapped one would do."""

    def __init__(self, volume: api.Volume, **answers: Any) -> None:
        self._volume = volume
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return self._answers.get(name) or getattr(self._volume, name)


def replace_volume(yard: Yard, **answers: Any) -> None:
    yard.server.units[0].volume = Deaf(yard.group.volumes[0], **answers)


def refuse(error: api.StoreError) -> Any:
    def operation(offset: int, length: Any, permit: Any, done: api.Done, *, sync: bool = False) -> None:
        done(error)

    return operation


# --- READ and WRITE


@pytest.mark.parametrize(("read", "write"), list(zip(READS, WRITES, strict=True)))
def test_what_is_written_is_read(yard: Yard, read: Any, write: Any) -> None:
    assert ending(yard.send(write(lba=3, transfer_length=2), A + B)) is Status.GOOD
    assert data(yard.send(read(lba=2, transfer_length=4))) == bytes(BLOCK) + A + B + bytes(BLOCK)


def test_a_six_byte_length_of_zero_is_256_blocks(yard: Yard) -> None:
    assert ending(yard.send(cdb.Write6(lba=1), A * 256)) is Status.GOOD
    assert data(yard.send(cdb.Read6(lba=1))) == A * 256
    assert content(yard, 256, 2) == A + bytes(BLOCK)


def test_a_write_6_of_zero_wants_256_blocks(yard: Yard) -> None:
    assert yard.server.admit(yard.task(cdb.Write6())) == 256 * BLOCK


@pytest.mark.parametrize("command", [*READS[1:], *WRITES[1:]])
def test_no_blocks_are_no_error(yard: Yard, command: Any) -> None:
    assert yard.server.admit(yard.task(command())) == 0
    assert data(yard.send(command())) == b""


@pytest.mark.parametrize("command", [*READS[1:], *WRITES[1:]])
def test_protection_information_is_refused(yard: Yard, command: Any) -> None:
    field = command.FIELDS[0]
    for value in range(1, 8):
        result = yard.send(command(transfer_length=1, **{field: value}))
        assert ending(result) is sense.INVALID_FIELD_IN_CDB
        assert pointed_field(result) == (1, 7)


@pytest.mark.parametrize("write", WRITES[1:])
def test_fua_makes_a_write_sync(yard: Yard, write: Any) -> None:
    seen = []

    def remember(offset: int, data: Any, permit: Any, done: api.Done, *, sync: bool = False) -> None:
        seen.append(sync)
        done(None)

    replace_volume(yard, write=remember)
    yard.send(write(fua=True, transfer_length=1), A)
    yard.send(write(dpo=True, transfer_length=1), A)
    assert seen == [True, False]


@pytest.mark.parametrize("read", READS[1:])
def test_fua_on_a_read_flushes_first(yard: Yard, read: Any) -> None:
    before = yard.group.volumes[0]._pool.counters["flush_rounds"]  # type: ignore[attr-defined]
    fill(yard, 0, A)
    assert data(yard.send(read(fua=True, transfer_length=1))) == A
    assert yard.group.volumes[0]._pool.counters["flush_rounds"] == before + 1  # type: ignore[attr-defined]


def test_a_read_that_would_block_ends_later_in_a_buffer_of_its_own(yard: Yard) -> None:
    fill(yard, 0, A)
    waiting: list[Any] = []
    replace_volume(yard, read_now=lambda offset, into: False, read=lambda *arguments: waiting.append(arguments))
    task = yard.task(cdb.Read10(transfer_length=1))
    assert yard.start(task) is None
    _offset, into, done = waiting[0]
    into[:] = B
    done(None)
    assert data(yard.result_of(task)) == B


def test_an_initiator_that_sends_less_gets_its_whole_blocks_written(yard: Yard) -> None:
    fill(yard, 0, B * 3)
    assert ending(yard.send(cdb.Write10(transfer_length=3), A + b"ragged")) is Status.GOOD
    assert content(yard, 0, 3) == A + B * 2


def test_an_initiator_that_sends_less_than_a_block_gets_nothing_written(yard: Yard) -> None:
    fill(yard, 0, B)
    assert ending(yard.send(cdb.Write10(transfer_length=1), b"ragged")) is Status.GOOD
    assert content(yard, 0, 1) == B


def test_a_write_carries_its_task_as_permit(yard: Yard) -> None:
    task = yard.task(cdb.Write10(transfer_length=1), A)
    assert yard.start(task) is None
    yard.server.abort(task)
    yard.runner.settle()
    assert yard.result_of(task) is UNANSWERED
    assert content(yard, 0, 1) == bytes(BLOCK)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (api.OutOfSpace("full"), sense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
        (api.Busy("counting"), Status.BUSY),
        (api.FailStopped("sync failed"), sense.WRITE_ERROR),
        (api.Closed("closing"), sense.LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY),
        (api.NotFound("removed"), sense.LOGICAL_UNIT_NOT_SUPPORTED),
        (api.OutOfRange("shrunk"), sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE),
        (api.Invalid("else"), sense.INTERNAL_TARGET_FAILURE),
    ],
)
def test_a_store_error_has_its_answer(yard: Yard, error: api.StoreError, expected: object) -> None:
    replace_volume(yard, write=refuse(error))
    assert ending(yard.send(cdb.Write10(transfer_length=1), A)) is expected


def test_an_undecided_write_is_not_answered(yard: Yard) -> None:
    replace_volume(yard, write=refuse(api.Undecided("append failed")))
    assert yard.send(cdb.Write10(transfer_length=1), A) is UNANSWERED


def test_a_medium_error_names_its_block(yard: Yard) -> None:
    def read_now(offset: int, into: memoryview) -> bool:
        raise api.MediumError("checksum", 5 * BLOCK)

    replace_volume(yard, read_now=read_now)
    result = yard.send(cdb.Read10(lba=4, transfer_length=4))
    assert ending(result) is sense.UNRECOVERED_READ_ERROR
    assert information(result) == 5


# --- SYNCHRONIZE CACHE, START STOP UNIT, READ CAPACITY


@pytest.mark.parametrize("command", [cdb.SynchronizeCache10, cdb.SynchronizeCache16])
def test_synchronize_cache_waits_for_the_flush(yard: Yard, command: Any) -> None:
    task = yard.task(command())
    assert yard.start(task) is None
    assert not yard.finished
    yard.runner.settle()
    assert ending(yard.result_of(task)) is Status.GOOD


def test_immediate_synchronize_cache_does_not_wait(yard: Yard) -> None:
    result = yard.start(yard.task(cdb.SynchronizeCache10(immed=True)))
    assert result is not None
    assert ending(result) is Status.GOOD


def test_a_failed_flush_is_told(yard: Yard) -> None:
    replace_volume(yard, flush=lambda done: done(api.FailStopped("sync failed")))
    assert ending(yard.send(cdb.SynchronizeCache10())) is sense.WRITE_ERROR


def test_stopping_is_refused(yard: Yard) -> None:
    result = yard.send(cdb.StartStopUnit(start=False))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == (4, 0)


def test_capacity_is_told_in_512_byte_blocks(yard: Yard) -> None:
    short = parameters.ReadCapacity10Data.decode(data(yard.send(cdb.ReadCapacity10())))
    assert (short.returned_lba, short.logical_block_length) == (BLOCKS - 1, BLOCK)
    long = parameters.ReadCapacity16Data.decode(data(yard.send(cdb.ReadCapacity16(allocation_length=32))))
    assert (long.returned_lba, long.logical_block_length) == (BLOCKS - 1, BLOCK)
    assert long.logical_blocks_per_physical_block_exponent == 3
    assert long.lbpme
    assert long.lbprz
    assert not long.prot_en


def test_a_capacity_over_32_bits_sends_the_initiator_to_read_capacity_16() -> None:
    yard = Yard(4 << 40)
    assert parameters.ReadCapacity10Data.decode(data(yard.send(cdb.ReadCapacity10()))).returned_lba == 0xFFFFFFFF
    long = parameters.ReadCapacity16Data.decode(data(yard.send(cdb.ReadCapacity16(allocation_length=32))))
    assert long.returned_lba == (4 << 40) // BLOCK - 1


@pytest.mark.parametrize("length", range(16))
def test_read_capacity_16_may_be_cut_anywhere(yard: Yard, length: int) -> None:
    assert len(data(yard.send(cdb.ReadCapacity16(allocation_length=length)))) == length


# --- WRITE SAME


@pytest.mark.parametrize("command", WRITE_SAMES)
def test_write_same_repeats_its_block(yard: Yard, command: Any) -> None:
    assert ending(yard.send(command(lba=1, number_of_logical_blocks=1000), A)) is Status.GOOD
    assert content(yard, 0, 1002) == bytes(BLOCK) + A * 1000 + bytes(BLOCK)


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("command", WRITE_SAMES)
def test_write_same_of_zeros_unmaps(yard: Yard, command: Any, unmap: bool) -> None:
    fill(yard, 0, A * 24)
    assert ending(yard.send(command(lba=4, number_of_logical_blocks=16, unmap=unmap), bytes(BLOCK))) is Status.GOOD
    assert content(yard, 0, 24) == A * 4 + bytes(16 * BLOCK) + A * 4
    assert yard.group.mapped_bytes(0) == 2 * api.GRAIN


def test_write_same_with_unmap_still_writes_its_pattern(yard: Yard) -> None:
    yard.send(cdb.WriteSame10(number_of_logical_blocks=8, unmap=True), A)
    assert content(yard, 0, 8) == A * 8


def test_write_same_16_with_ndob_wants_no_data_and_writes_zeros(yard: Yard) -> None:
    fill(yard, 0, A * 8)
    command = cdb.WriteSame16(ndob=True, number_of_logical_blocks=8)
    assert yard.server.admit(yard.task(command)) == 0
    assert ending(yard.send(command)) is Status.GOOD
    assert content(yard, 0, 8) == bytes(8 * BLOCK)


@pytest.mark.parametrize("command", WRITE_SAMES)
def test_write_same_of_no_blocks_goes_to_the_end(yard: Yard, command: Any) -> None:
    assert ending(yard.send(command(lba=BLOCKS - 5), A)) is Status.GOOD
    assert content(yard, BLOCKS - 6, 6) == bytes(BLOCK) + A * 5


def test_write_same_to_the_end_obeys_the_limit() -> None:
    yard = Yard((limits.MAX_WRITE_SAME_LENGTH + 8) * BLOCK)
    assert ending(yard.send(cdb.WriteSame10(lba=7), bytes(BLOCK))) is sense.INVALID_FIELD_IN_CDB
    assert ending(yard.send(cdb.WriteSame10(lba=8), bytes(BLOCK))) is Status.GOOD


@pytest.mark.parametrize("command", WRITE_SAMES)
@pytest.mark.parametrize("unmap", [False, True])
def test_anchored_blocks_are_refused(yard: Yard, command: Any, unmap: bool) -> None:
    result = yard.send(command(anchor=True, unmap=unmap, number_of_logical_blocks=1), A)
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == command.field_pointer("anchor")


def test_write_same_without_its_block_is_an_incorrect_amount_of_data(yard: Yard) -> None:
    assert ending(yard.send(cdb.WriteSame10(number_of_logical_blocks=1), A[:100])) is sense.INCORRECT_AMOUNT_OF_DATA


def test_an_aborted_write_same_stops_between_two_slices(yard: Yard) -> None:
    waiting: list[Any] = []
    replace_volume(yard, write=lambda offset, data, permit, done: waiting.append(done))
    task = yard.task(cdb.WriteSame10(), A)
    assert yard.start(task) is None
    waiting[0](None)
    yard.server.abort(task)
    waiting[1](None)
    assert len(waiting) == 2
    assert yard.result_of(task) is UNANSWERED


def test_an_error_in_the_middle_ends_write_same(yard: Yard) -> None:
    calls = []

    def write(offset: int, data: Any, permit: Any, done: api.Done, *, sync: bool = False) -> None:
        calls.append(offset)
        done(api.OutOfSpace("full") if len(calls) == 3 else None)

    replace_volume(yard, write=write)
    assert ending(yard.send(cdb.WriteSame10(), A)) is sense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT
    assert calls == [0, limits.PATTERN_SLICE, 2 * limits.PATTERN_SLICE]


# --- UNMAP


def parameter_list(*extents: tuple[int, int], described: int | None = None) -> bytes:
    descriptors = b"".join(
        parameters.UnmapBlockDescriptor(lba=lba, number_of_logical_blocks=blocks).encode() for lba, blocks in extents
    )
    length = len(descriptors) if described is None else described
    header = parameters.UnmapHeader(unmap_data_length=length + 6, unmap_block_descriptor_data_length=length)
    return header.encode() + descriptors


def unmap(yard: Yard, *extents: tuple[int, int], described: int | None = None) -> Any:
    parameter = parameter_list(*extents, described=described)
    return yard.send(cdb.Unmap(parameter_list_length=len(parameter)), parameter)


def test_unmapped_blocks_read_as_zeros_and_give_space_back(yard: Yard) -> None:
    fill(yard, 0, A * 32)
    assert ending(unmap(yard, (0, 8), (12, 8))) is Status.GOOD
    assert content(yard, 0, 32) == bytes(8 * BLOCK) + A * 4 + bytes(8 * BLOCK) + A * 12
    assert yard.group.mapped_bytes(0) == 3 * api.GRAIN


@pytest.mark.parametrize("extents", [(), ((0, 0),), ((BLOCKS, 0),)])
def test_unmap_of_nothing_is_no_error(yard: Yard, extents: tuple[tuple[int, int], ...]) -> None:
    assert ending(unmap(yard, *extents)) is Status.GOOD


def test_unmap_without_a_parameter_list_is_no_error(yard: Yard) -> None:
    assert ending(yard.send(cdb.Unmap())) is Status.GOOD


def test_an_unmap_list_shorter_than_its_header_is_refused_before_it_is_sent(yard: Yard) -> None:
    assert ending(yard.send(cdb.Unmap(parameter_list_length=7))) is sense.PARAMETER_LIST_LENGTH_ERROR


def test_unmap_beyond_the_end_unmaps_nothing_at_all(yard: Yard) -> None:
    fill(yard, 0, A)
    assert ending(unmap(yard, (0, 8), (BLOCKS - 1, 2))) is sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
    assert content(yard, 0, 1) == A


def test_unmap_takes_as_many_descriptors_as_it_promises(yard: Yard) -> None:
    most = limits.MAX_UNMAP_DESCRIPTORS
    assert ending(unmap(yard, *[(lba, 1) for lba in range(most)])) is Status.GOOD
    result = unmap(yard, *[(lba, 1) for lba in range(most + 1)])
    assert ending(result) is sense.INVALID_FIELD_IN_PARAMETER_LIST


def test_unmap_takes_as_many_blocks_as_it_promises() -> None:
    yard = Yard((limits.MAX_UNMAP_BLOCKS + 8) * BLOCK)
    assert ending(unmap(yard, (0, limits.MAX_UNMAP_BLOCKS))) is Status.GOOD
    assert ending(unmap(yard, (0, limits.MAX_UNMAP_BLOCKS), (0, 1))) is sense.INVALID_FIELD_IN_PARAMETER_LIST


def test_a_descriptor_that_is_cut_off_is_ignored(yard: Yard) -> None:
    fill(yard, 0, A * 16)
    assert ending(unmap(yard, (0, 8), (8, 8), described=31)) is Status.GOOD
    assert content(yard, 0, 16) == bytes(8 * BLOCK) + A * 8


def test_an_unmap_list_that_did_not_all_arrive_is_not_obeyed(yard: Yard) -> None:
    result = yard.send(cdb.Unmap(parameter_list_length=40), parameter_list((0, 8)))
    assert ending(result) is sense.INCORRECT_AMOUNT_OF_DATA


# --- VERIFY


@pytest.mark.parametrize("command", VERIFIES)
def test_verify_of_the_medium_wants_no_data(yard: Yard, command: Any) -> None:
    assert yard.server.admit(yard.task(command(verification_length=4))) == 0
    assert ending(yard.send(command(verification_length=4))) is Status.GOOD


@pytest.mark.parametrize("command", VERIFIES)
def test_verify_compares_with_data_out(yard: Yard, command: Any) -> None:
    fill(yard, 2, A + B)
    compare = command(lba=2, verification_length=2, bytchk=1)
    assert ending(yard.send(compare, A + B)) is Status.GOOD
    result = yard.send(compare, A + A)
    assert ending(result) is sense.MISCOMPARE_DURING_VERIFY_OPERATION
    assert information(result) == 3


@pytest.mark.parametrize("command", VERIFIES)
def test_verify_compares_every_block_with_one(yard: Yard, command: Any) -> None:
    fill(yard, 0, A * 3 + B)
    assert ending(yard.send(command(verification_length=3, bytchk=3), A)) is Status.GOOD
    result = yard.send(command(verification_length=4, bytchk=3), A)
    assert ending(result) is sense.MISCOMPARE_DURING_VERIFY_OPERATION
    assert information(result) == 3


@pytest.mark.parametrize("command", VERIFIES)
def test_the_reserved_bytchk_is_refused(yard: Yard, command: Any) -> None:
    result = yard.send(command(verification_length=1, bytchk=2))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == (1, 2)


def test_verify_finds_a_bad_block(yard: Yard) -> None:
    replace_volume(yard, read=lambda offset, into, done: done(api.MediumError("checksum", 2 * BLOCK)))
    result = yard.send(cdb.Verify10(verification_length=8))
    assert ending(result) is sense.UNRECOVERED_READ_ERROR
    assert information(result) == 2


def test_verify_of_no_blocks_is_no_error(yard: Yard) -> None:
    assert ending(yard.send(cdb.Verify10(bytchk=1))) is Status.GOOD
