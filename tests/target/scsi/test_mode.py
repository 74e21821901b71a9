"""MODE SENSE (6) and (10)."""

from __future__ import annotations

import pytest

from pdus.scsi import cdb, mode
from pdus.scsi.mode import ModePage, PageControl
from target.scsi import sense
from tests.target.scsi.support import BLOCK, BLOCKS, Yard, data, ending, pointed_field

ALL_PAGES = [0x01, 0x08, 0x0A, 0x1C]


def sense_6(**fields: int) -> cdb.ModeSense6:
    return cdb.ModeSense6(**{"dbd": True, "allocation_length": 255, **fields})  # type: ignore[arg-type]


def pages(answer: bytes, offset: int) -> list[int]:
    found = []
    while offset < len(answer):
        found.append(answer[offset] & 0x3F)
        offset += 2 + answer[offset + 1]
    return found


@pytest.mark.parametrize("subpage_code", [0, mode.ALL_SUBPAGES])
def test_page_3f_returns_every_page_in_ascending_order(yard: Yard, subpage_code: int) -> None:
    answer = data(yard.send(sense_6(page_code=ModePage.ALL, subpage_code=subpage_code)))
    assert pages(answer, mode.ModeParameterHeader6.SIZE) == ALL_PAGES


def test_the_mode_data_length_counts_what_follows_it(yard: Yard) -> None:
    answer = data(yard.send(sense_6(page_code=ModePage.ALL)))
    assert mode.ModeParameterHeader6.decode(answer).mode_data_length == len(answer) - 1
    answer = data(yard.send(cdb.ModeSense10(page_code=ModePage.ALL, allocation_length=4096)))
    assert mode.ModeParameterHeader10.decode(answer).mode_data_length == len(answer) - 2


@pytest.mark.parametrize("write_through", [False, True])
def test_wce_is_the_opposite_of_write_through(yard: Yard, write_through: bool) -> None:
    yard.group.volumes[0].set_write_through(write_through)  # type: ignore[attr-defined]
    answer = data(yard.send(sense_6(page_code=ModePage.CACHING)))
    assert mode.CachingPage.decode(answer, 4).wce is not write_through


def test_fua_is_announced_and_the_unit_is_writable(yard: Yard) -> None:
    header = mode.ModeParameterHeader6.decode(data(yard.send(sense_6(page_code=ModePage.CACHING))))
    assert header.dpofua
    assert not header.wp


def test_one_task_set_with_unrestricted_reordering_and_fixed_sense(yard: Yard) -> None:
    page = mode.ControlPage.decode(data(yard.send(sense_6(page_code=ModePage.CONTROL))), 4)
    assert (page.tst, page.queue_algorithm_modifier, page.d_sense) == (0, 1, False)


def test_nothing_is_changeable(yard: Yard) -> None:
    answer = data(yard.send(sense_6(page_code=ModePage.CACHING, page_control=PageControl.CHANGEABLE)))
    assert answer[4:] == bytes([0x08, 0x12]) + bytes(18)


def test_defaults_are_the_current_values(yard: Yard) -> None:
    current = data(yard.send(sense_6(page_code=ModePage.ALL)))
    assert data(yard.send(sense_6(page_code=ModePage.ALL, page_control=PageControl.DEFAULT))) == current


def test_nothing_is_saved(yard: Yard) -> None:
    result = yard.send(sense_6(page_code=ModePage.ALL, page_control=PageControl.SAVED))
    assert ending(result) is sense.SAVING_PARAMETERS_NOT_SUPPORTED


def test_an_unknown_page_is_an_invalid_field(yard: Yard) -> None:
    result = yard.send(sense_6(page_code=0x02))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == cdb.ModeSense6.field_pointer("page_code")


@pytest.mark.parametrize("page_code", [ModePage.CONTROL, ModePage.ALL])
def test_an_unknown_subpage_is_an_invalid_field(yard: Yard, page_code: int) -> None:
    result = yard.send(sense_6(page_code=page_code, subpage_code=1))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == cdb.ModeSense6.field_pointer("subpage_code")


def test_the_block_descriptor_comes_unless_dbd(yard: Yard) -> None:
    answer = data(yard.send(cdb.ModeSense6(page_code=ModePage.CACHING, allocation_length=255)))
    assert mode.ModeParameterHeader6.decode(answer).block_descriptor_length == mode.ShortBlockDescriptor.SIZE
    descriptor = mode.ShortBlockDescriptor.decode(answer, 4)
    assert (descriptor.number_of_logical_blocks, descriptor.logical_block_length) == (BLOCKS, BLOCK)


def test_a_big_volume_overflows_the_short_block_descriptor() -> None:
    answer = data(Yard(4 << 40).send(cdb.ModeSense6(page_code=ModePage.CACHING, allocation_length=255)))
    assert mode.ShortBlockDescriptor.decode(answer, 4).number_of_logical_blocks == 0xFFFFFFFF


def test_llbaa_brings_the_long_block_descriptor() -> None:
    answer = data(Yard(4 << 40).send(cdb.ModeSense10(llbaa=True, page_code=0x08, allocation_length=255)))
    header = mode.ModeParameterHeader10.decode(answer)
    assert (header.longlba, header.block_descriptor_length) == (True, mode.LongBlockDescriptor.SIZE)
    assert mode.LongBlockDescriptor.decode(answer, 8).number_of_logical_blocks == (4 << 40) // BLOCK


def test_mode_sense_is_cut_at_the_allocation_length(yard: Yard) -> None:
    assert len(data(yard.send(sense_6(page_code=ModePage.ALL, allocation_length=4)))) == 4
