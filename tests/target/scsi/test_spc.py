"""INQUIRY, REPORT LUNS, REQUEST SENSE, REPORT SUPPORTED OPERATION CODES."""

from __future__ import annotations

from uuid import UUID

import pytest

from pdus.scsi import cdb, parameters, vpd
from pdus.scsi.inquiry import StandardInquiryData
from pdus.scsi.lun import decode_lun
from pdus.scsi.sense import DescriptorFormat, FixedFormat, SenseKey
from target.scsi import sense
from target.scsi.commands import TABLE
from target.scsi.vpd import naa
from tests.target.scsi.support import SIZE, Yard, data, ending, pointed_field


def page(yard: Yard, code: int, lun: int = 0) -> bytes:
    return data(yard.send(cdb.Inquiry(evpd=True, page_code=code, allocation_length=255), lun=lun))


def test_inquiry_names_a_connected_disk(yard: Yard) -> None:
    answer = data(yard.send(cdb.Inquiry(allocation_length=255)))
    found = StandardInquiryData.decode(answer)
    assert len(answer) == StandardInquiryData.SIZE
    assert (found.peripheral_qualifier, found.peripheral_device_type) == (0, 0)
    assert (found.t10_vendor_identification, found.product_identification) == (b"BLKYARD ", b"Volume          ")
    assert found.version == 6
    assert found.cmdque


def test_inquiry_is_cut_at_the_allocation_length(yard: Yard) -> None:
    assert len(data(yard.send(cdb.Inquiry(allocation_length=5)))) == 5


def test_inquiry_without_evpd_takes_no_page_code(yard: Yard) -> None:
    result = yard.send(cdb.Inquiry(page_code=0x83, allocation_length=255))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB
    assert pointed_field(result) == cdb.Inquiry.field_pointer("page_code")


def test_an_unknown_vpd_page_is_an_invalid_field(yard: Yard) -> None:
    result = yard.send(cdb.Inquiry(evpd=True, page_code=0xFE, allocation_length=255))
    assert ending(result) is sense.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize(("lun", "first_byte"), [(0, 0x3F), (3, 0x7F), (-1, 0x7F)])
def test_inquiry_says_what_is_not_there(lun: int, first_byte: int) -> None:
    assert data(Yard().send(cdb.Inquiry(allocation_length=96), lun=lun))[0] == first_byte


def test_every_supported_vpd_page_has_its_code_and_length(yard: Yard) -> None:
    codes = page(yard, 0)[vpd.VpdHeader.SIZE :]
    assert list(codes) == [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2]
    for code in codes:
        found = page(yard, code)
        header = vpd.VpdHeader.decode(found)
        assert (header.page_code, header.page_length) == (code, len(found) - vpd.VpdHeader.SIZE)


@pytest.mark.parametrize("code", [0x86, 0xB0, 0xB1])
def test_pages_of_sbc_3_have_60_bytes(yard: Yard, code: int) -> None:
    assert vpd.VpdHeader.decode(page(yard, code)).page_length == 0x3C


def test_designators_come_from_the_volumes_uuid(yard: Yard) -> None:
    uuid = yard.group.volumes[0].uuid
    found = page(yard, 0x83)
    assert naa(uuid) in found
    assert b"BLKYARD " + uuid.hex.encode() in found
    assert page(yard, 0x80)[4:] == uuid.hex.encode()


def test_an_naa_never_changes_and_differs_between_volumes() -> None:
    uuid = UUID("12345678-9abc-4def-8123-456789abcdef")
    assert naa(uuid).hex() == "602594d" + uuid.hex[-25:]
    assert naa(uuid) == naa(UUID(str(uuid)))
    assert naa(uuid) != naa(UUID("12345678-9abc-4def-8123-456789abcdee"))


def test_limits_are_multiples_of_the_physical_block(yard: Yard) -> None:
    limits = vpd.BlockLimits.decode(page(yard, 0xB0), vpd.VpdHeader.SIZE)
    for value in (limits.maximum_transfer_length, limits.optimal_transfer_length, limits.maximum_unmap_lba_count):
        assert value
        assert value % limits.optimal_transfer_length_granularity == 0


def test_volumes_are_thin_and_read_zeros_when_unmapped(yard: Yard) -> None:
    found = vpd.LogicalBlockProvisioning.decode(page(yard, 0xB2), vpd.VpdHeader.SIZE)
    assert (found.lbpu, found.lbpws, found.lbpws10, found.lbprz) == (True, True, True, 1)
    assert not found.anc_sup
    assert found.provisioning_type == vpd.THIN_PROVISIONED


def luns(answer: bytes) -> list[int]:
    length = parameters.ReportLunsHeader.decode(answer).lun_list_length
    return [decode_lun(answer[8 + at : 16 + at]) for at in range(0, length, 8)]


@pytest.mark.parametrize(("select_report", "expected"), [(0, [0, 1]), (1, []), (2, [0, 1])])
def test_report_luns_lists_what_was_selected(select_report: int, expected: list[int]) -> None:
    yard = Yard(SIZE, SIZE)
    answer = data(yard.send(cdb.ReportLuns(select_report=select_report, allocation_length=4096)))
    assert luns(answer) == expected


def test_report_luns_keeps_its_length_when_it_is_cut() -> None:
    answer = data(Yard(SIZE, SIZE).send(cdb.ReportLuns(allocation_length=16)))
    assert len(answer) == 16
    assert parameters.ReportLunsHeader.decode(answer).lun_list_length == 16


def test_report_luns_refuses_other_selections(yard: Yard) -> None:
    assert ending(yard.send(cdb.ReportLuns(select_report=0x10, allocation_length=16))) is sense.INVALID_FIELD_IN_CDB


def test_lun_0_reports_luns_even_with_no_volume_there() -> None:
    yard = Yard(SIZE, SIZE)
    yard.set_units({1: yard.group.volumes[1]})
    assert luns(data(yard.send(cdb.ReportLuns(allocation_length=64), lun=0))) == [1]


def test_request_sense_says_nothing_when_there_is_nothing(yard: Yard) -> None:
    found = FixedFormat.decode(data(yard.send(cdb.RequestSense(allocation_length=252))))
    assert found.sense_key == SenseKey.NO_SENSE


def test_request_sense_speaks_the_descriptor_format_on_request(yard: Yard) -> None:
    yard.server.capacity_changed(0)
    found = DescriptorFormat.decode(data(yard.send(cdb.RequestSense(desc=True, allocation_length=252))))
    assert (found.additional_sense_code, found.additional_sense_code_qualifier) == (0x2A, 0x09)


def test_request_sense_where_no_unit_is_says_so(yard: Yard) -> None:
    found = FixedFormat.decode(data(yard.send(cdb.RequestSense(allocation_length=252), lun=5)))
    assert (found.sense_key, found.additional_sense_code) == (SenseKey.ILLEGAL_REQUEST, 0x25)


def opcodes(option: int, opcode: int = 0, action: int = 0, rctd: bool = False) -> cdb.ReportSupportedOperationCodes:
    return cdb.ReportSupportedOperationCodes(
        rctd=rctd,
        reporting_options=option,
        requested_operation_code=opcode,
        requested_service_action=action,
        allocation_length=65535,
    )


@pytest.mark.parametrize(("rctd", "size"), [(False, 8), (True, 20)])
def test_all_commands_of_the_table_are_reported(yard: Yard, rctd: bool, size: int) -> None:
    answer = data(yard.send(opcodes(0, rctd=rctd)))
    assert parameters.AllCommandsHeader.decode(answer).command_data_length == len(answer) - 4 == size * len(TABLE)
    found = [parameters.CommandDescriptor.decode(answer, at) for at in range(4, len(answer), size)]
    assert [(one.operation_code, one.service_action, one.cdb_length) for one in found] == [
        (row.opcode, row.service_action or 0, row.size) for row in TABLE
    ]
    assert all(one.ctdp is rctd for one in found)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_one_command_is_reported_with_its_usage_data(yard: Yard, row: object) -> None:
    for known in [known for known in TABLE if known is row]:
        option = 1 if known.service_action is None else 2
        answer = data(yard.send(opcodes(option, known.opcode, known.service_action or 0)))
        header = parameters.OneCommandHeader.decode(answer)
        assert (header.support, header.cdb_size) == (parameters.SUPPORTED, known.size)
        assert answer[4] == known.opcode
        wrong = opcodes(3 - option, known.opcode, known.service_action or 0)
        assert ending(yard.send(wrong)) is sense.INVALID_FIELD_IN_CDB
        assert data(yard.send(opcodes(3, known.opcode, known.service_action or 0))) == answer


def test_usage_data_shows_fua_but_not_protection(yard: Yard) -> None:
    usage = data(yard.send(opcodes(1, 0x28)))[4:]
    assert usage.hex() == "2818ffffffff1fffff00"


def test_usage_data_holds_the_service_action_itself(yard: Yard) -> None:
    assert data(yard.send(opcodes(2, 0x9E, 0x10)))[4:6].hex() == "9e10"


@pytest.mark.parametrize(("option", "opcode", "action"), [(1, 0xC0, 0), (2, 0x9E, 0x13), (3, 0x28, 1), (3, 0x9E, 0x13)])
def test_what_is_not_in_the_table_is_reported_as_not_supported(
    yard: Yard, option: int, opcode: int, action: int
) -> None:
    answer = data(yard.send(opcodes(option, opcode, action)))
    assert parameters.OneCommandHeader.decode(answer).support == parameters.NOT_SUPPORTED


def test_reporting_options_beyond_3_are_refused(yard: Yard) -> None:
    assert ending(yard.send(opcodes(4))) is sense.INVALID_FIELD_IN_CDB


def test_timeouts_come_with_one_command_on_request(yard: Yard) -> None:
    answer = data(yard.send(opcodes(1, 0x28, rctd=True)))
    assert parameters.OneCommandHeader.decode(answer).ctdp
    assert parameters.CommandTimeoutsDescriptor.decode(answer, 14)
