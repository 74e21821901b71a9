"""Vital product data: one function per page, and the table of them (SPC-4 and SBC-3, VPD parameters).

A logical unit's designators come from its volume's UUID and never change.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from pdus.scsi import vpd
from pdus.scsi.vpd import Association, CodeSet, DesignatorType, VpdPage
from target.scsi import limits
from target.scsi.logical_unit import LogicalUnit, Unit

VENDOR = b"BLKYARD "
PRODUCT = b"Volume".ljust(16)

_COMPANY_ID = 0x02594D
"""Not assigned by the IEEE: its first byte is marked "locally administered", so it is nobody else's either."""
_RELATIVE_TARGET_PORT = 1  # one portal group, hence one target port (RFC 7143 4.2.7.2)
_TARGET_PORT_GROUP = 1


def naa(uuid: UUID) -> bytes:
    """The 16-byte NAA identifier of a volume. 100 bits of the UUID fit; they are its last ones, all but two random."""
    return vpd.NaaRegisteredExtended(
        ieee_company_id=_COMPANY_ID,
        vendor_specific_identifier=uuid.int >> 64 & (1 << 36) - 1,
        vendor_specific_identifier_extension=uuid.int & (1 << 64) - 1,
    ).encode()


def page(unit: Unit, code: int) -> bytes | None:
    """The whole page, or None if the unit does not have it."""
    body = _body(unit, code)
    if body is None:
        return None
    header = vpd.VpdHeader(
        peripheral_qualifier=unit.peripheral_qualifier,
        peripheral_device_type=unit.peripheral_device_type,
        page_code=code,
        page_length=len(body),
    )
    return header.encode() + body


def _body(unit: Unit, code: int) -> bytes | None:
    if not isinstance(unit, LogicalUnit):
        return bytes([VpdPage.SUPPORTED_PAGES]) if code == VpdPage.SUPPORTED_PAGES else None
    make = _PAGES.get(code)
    return None if make is None else make(unit)


def _supported_pages(unit: LogicalUnit) -> bytes:
    return bytes(sorted(_PAGES))


def _serial(unit: LogicalUnit) -> bytes:
    return unit.volume.uuid.hex.encode("ascii")


def _device_identification(unit: LogicalUnit) -> bytes:
    return b"".join(
        (
            _designator(DesignatorType.NAA, naa(unit.volume.uuid)),
            _designator(DesignatorType.T10_VENDOR_ID, VENDOR + _serial(unit), code_set=CodeSet.ASCII),
            _port_designator(DesignatorType.RELATIVE_TARGET_PORT, _RELATIVE_TARGET_PORT),
            _port_designator(DesignatorType.TARGET_PORT_GROUP, _TARGET_PORT_GROUP),
        )
    )


def _designator(kind: DesignatorType, designator: bytes, *, code_set: CodeSet = CodeSet.BINARY) -> bytes:
    header = vpd.DesignationHeader(code_set=code_set, designator_type=kind, designator_length=len(designator))
    return header.encode() + designator


def _port_designator(kind: DesignatorType, number: int) -> bytes:
    designator = vpd.PortDesignator(number=number).encode()
    header = vpd.DesignationHeader(
        protocol_identifier=vpd.ISCSI_PROTOCOL_IDENTIFIER,
        piv=True,
        association=Association.TARGET_PORT,
        designator_type=kind,
        designator_length=len(designator),
    )
    return header.encode() + designator


def _extended_inquiry_data(unit: LogicalUnit) -> bytes:
    # V_SUP: WCE says whether there is a volatile cache, and SYNCHRONIZE CACHE empties it.
    return vpd.ExtendedInquiryData(headsup=True, ordsup=True, simpsup=True, v_sup=True, luiclr=True).encode()


def _block_limits(unit: LogicalUnit) -> bytes:
    return vpd.BlockLimits(
        optimal_transfer_length_granularity=limits.LOGICAL_PER_PHYSICAL,
        maximum_transfer_length=limits.MAX_TRANSFER_LENGTH,
        optimal_transfer_length=limits.OPTIMAL_TRANSFER_LENGTH,
        maximum_unmap_lba_count=limits.MAX_UNMAP_BLOCKS,
        maximum_unmap_block_descriptor_count=limits.MAX_UNMAP_DESCRIPTORS,
        optimal_unmap_granularity=limits.LOGICAL_PER_PHYSICAL,
        ugavalid=True,
        maximum_write_same_length=limits.MAX_WRITE_SAME_LENGTH,
    ).encode()


def _block_device_characteristics(unit: LogicalUnit) -> bytes:
    return vpd.BlockDeviceCharacteristics(medium_rotation_rate=vpd.NON_ROTATING_MEDIUM).encode()


def _logical_block_provisioning(unit: LogicalUnit) -> bytes:
    return vpd.LogicalBlockProvisioning(
        lbpu=True, lbpws=True, lbpws10=True, lbprz=1, provisioning_type=vpd.THIN_PROVISIONED
    ).encode()


_PAGES: dict[int, Callable[[LogicalUnit], bytes]] = {
    VpdPage.SUPPORTED_PAGES: _supported_pages,
    VpdPage.UNIT_SERIAL_NUMBER: _serial,
    VpdPage.DEVICE_IDENTIFICATION: _device_identification,
    VpdPage.EXTENDED_INQUIRY_DATA: _extended_inquiry_data,
    VpdPage.BLOCK_LIMITS: _block_limits,
    VpdPage.BLOCK_DEVICE_CHARACTERISTICS: _block_device_characteristics,
    VpdPage.LOGICAL_BLOCK_PROVISIONING: _logical_block_provisioning,
}
