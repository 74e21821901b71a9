"""MODE SENSE (6) and (10): the mode pages, and how a parameter list is put together (SPC-4, SBC-3).

Nothing can be changed (there is no MODE SELECT yet), so changeable masks are zero, defaults are the current values
and nothing is saved. A page's values are read from who owns them: WCE from the volume's cache policy.
"""

from __future__ import annotations

from collections.abc import Callable

from blockstore.api import LOGICAL_BLOCK
from pdus.codec import FixedLayout
from pdus.scsi import mode
from pdus.scsi.cdb import ModeSense6, ModeSense10
from pdus.scsi.mode import ModePage, PageControl
from target.scsi import sense
from target.scsi.logical_unit import LogicalUnit
from target.scsi.result import Result, check_condition, data_in, invalid_field_in_cdb
from target.scsi.task import Finish, Task

_UNRESTRICTED_REORDERING = 1


def _caching(unit: LogicalUnit) -> FixedLayout:
    return mode.CachingPage(wce=not unit.volume.write_through)


def _control(unit: LogicalUnit) -> FixedLayout:
    return mode.ControlPage(queue_algorithm_modifier=_UNRESTRICTED_REORDERING)


_PAGES: dict[int, Callable[[LogicalUnit], FixedLayout]] = {
    ModePage.READ_WRITE_ERROR_RECOVERY: lambda unit: mode.ReadWriteErrorRecoveryPage(),
    ModePage.CACHING: _caching,
    ModePage.CONTROL: _control,
    # Nothing is reported by itself: no warnings are raised, and thin provisioning thresholds are not set.
    ModePage.INFORMATIONAL_EXCEPTIONS_CONTROL: lambda unit: mode.InformationalExceptionsControlPage(dexcpt=True),
}


def mode_sense_6(unit: LogicalUnit, cdb: ModeSense6, task: Task, finish: Finish) -> Result:
    pages = _pages(unit, cdb)
    if isinstance(pages, Result):
        return pages
    descriptor = b"" if cdb.dbd else _short_block_descriptor(unit)
    body = descriptor + pages
    header = mode.ModeParameterHeader6(
        mode_data_length=mode.ModeParameterHeader6.SIZE - 1 + len(body),
        wp=task.nexus.read_only,
        dpofua=True,
        block_descriptor_length=len(descriptor),
    )
    return data_in(header.encode() + body, cdb.allocation_length)


def mode_sense_10(unit: LogicalUnit, cdb: ModeSense10, task: Task, finish: Finish) -> Result:
    pages = _pages(unit, cdb)
    if isinstance(pages, Result):
        return pages
    long = cdb.llbaa and not cdb.dbd
    descriptor = b"" if cdb.dbd else _long_block_descriptor(unit) if long else _short_block_descriptor(unit)
    body = descriptor + pages
    header = mode.ModeParameterHeader10(
        mode_data_length=mode.ModeParameterHeader10.SIZE - 2 + len(body),
        wp=task.nexus.read_only,
        dpofua=True,
        longlba=long,
        block_descriptor_length=len(descriptor),
    )
    return data_in(header.encode() + body, cdb.allocation_length)


def _short_block_descriptor(unit: LogicalUnit) -> bytes:
    blocks = min(unit.blocks, 0xFFFFFFFF)
    return mode.ShortBlockDescriptor(number_of_logical_blocks=blocks, logical_block_length=LOGICAL_BLOCK).encode()


def _long_block_descriptor(unit: LogicalUnit) -> bytes:
    return mode.LongBlockDescriptor(number_of_logical_blocks=unit.blocks, logical_block_length=LOGICAL_BLOCK).encode()


def _pages(unit: LogicalUnit, cdb: ModeSense6 | ModeSense10) -> bytes | Result:
    """The pages asked for, joined, or the refusal. No page has subpages: "all subpages" is the page itself."""
    if cdb.page_control == PageControl.SAVED:
        return check_condition(sense.SAVING_PARAMETERS_NOT_SUPPORTED)
    if cdb.page_code != ModePage.ALL and cdb.page_code not in _PAGES:
        return invalid_field_in_cdb(type(cdb), "page_code")
    if cdb.subpage_code not in (0, mode.ALL_SUBPAGES):
        return invalid_field_in_cdb(type(cdb), "subpage_code")
    codes = sorted(_PAGES) if cdb.page_code == ModePage.ALL else [cdb.page_code]
    return b"".join(_page(unit, code, cdb.page_control) for code in codes)


def _page(unit: LogicalUnit, code: int, page_control: int) -> bytes:
    page = _PAGES[code](unit)
    return (type(page)() if page_control == PageControl.CHANGEABLE else page).encode()
