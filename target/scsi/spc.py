"""Commands that every device type has (SPC-4): handlers of the command table."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pdus.scsi.cdb import Inquiry, ReportLuns, RequestSense, TestUnitReady
from pdus.scsi.inquiry import StandardInquiryData, VersionDescriptor
from pdus.scsi.lun import encode_lun
from pdus.scsi.parameters import ReportLunsHeader
from target.scsi import sense, vpd
from target.scsi.logical_unit import LogicalUnit, Unit
from target.scsi.result import GOOD, Result, data_in, invalid_field_in_cdb
from target.scsi.task import Finish, Task

_WELL_KNOWN_ONLY = 1
_SELECT_REPORTS = (0, _WELL_KNOWN_ONLY, 2)  # SPC-4, SELECT REPORT field; 10h and up are for administrative units


def _revision() -> bytes:
    """PRODUCT REVISION LEVEL: the first four characters of the package's version."""
    try:
        found = version("blockyard")
    except PackageNotFoundError:  # run from a source tree that was never installed
        found = ""
    return found.encode("ascii")[:4].ljust(4)


_REVISION = _revision()


def test_unit_ready(unit: LogicalUnit, cdb: TestUnitReady, task: Task, finish: Finish) -> Result:
    return GOOD


def inquiry(unit: Unit, cdb: Inquiry, task: Task, finish: Finish) -> Result:
    if cdb.evpd:
        page = vpd.page(unit, cdb.page_code)
        return invalid_field_in_cdb(Inquiry, "page_code") if page is None else data_in(page, cdb.allocation_length)
    if cdb.page_code:
        return invalid_field_in_cdb(Inquiry, "page_code")
    return data_in(_standard_inquiry_data(unit), cdb.allocation_length)


def _standard_inquiry_data(unit: Unit) -> bytes:
    return StandardInquiryData(
        peripheral_qualifier=unit.peripheral_qualifier,
        peripheral_device_type=unit.peripheral_device_type,
        hisup=True,
        cmdque=True,
        t10_vendor_identification=vpd.VENDOR,
        product_identification=vpd.PRODUCT,
        product_revision_level=_REVISION,
        version_descriptor_1=VersionDescriptor.SAM_5,
        version_descriptor_2=VersionDescriptor.ISCSI,
        version_descriptor_3=VersionDescriptor.SPC_4,
        version_descriptor_4=VersionDescriptor.SBC_3,
    ).encode()


def report_luns(unit: Unit, cdb: ReportLuns, task: Task, finish: Finish) -> Result:
    if cdb.select_report not in _SELECT_REPORTS:
        return invalid_field_in_cdb(ReportLuns, "select_report")
    luns = [] if cdb.select_report == _WELL_KNOWN_ONLY else sorted(unit.siblings)
    # SPC-4, REPORTED LUNS DATA HAS CHANGED: learning the list clears it, for every logical unit of the nexus.
    for sibling in unit.siblings.values():
        sibling.attentions.clear(task.nexus, sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    entries = b"".join(encode_lun(lun) for lun in luns)
    return data_in(ReportLunsHeader(lun_list_length=len(entries)).encode() + entries, cdb.allocation_length)


def request_sense(unit: Unit, cdb: RequestSense, task: Task, finish: Finish) -> Result:
    """A pending unit attention is reported, and so cleared; where no unit is, that is what is said (SPC-4)."""
    if isinstance(unit, LogicalUnit):
        condition = unit.attentions.take(task.nexus) or sense.NO_ADDITIONAL_SENSE_INFORMATION
    else:
        condition = sense.LOGICAL_UNIT_NOT_SUPPORTED
    return data_in(condition.descriptor() if cdb.desc else condition.fixed(), cdb.allocation_length)
