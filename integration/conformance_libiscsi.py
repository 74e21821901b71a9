"""libiscsi, an initiator in user space, against the target: its own suite, and what its sessions look like on the wire.

Runs on the host, without a guest. ``iscsi-test-cu`` ends with code 0 even when tests fail, and says [SKIPPED] while it
looks around before the first test: only what follows a ``Test:`` line counts, and CUnit's summary must agree.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from integration.capture import Capture
from integration.product import Group, Product

FAMILIES = [
    "ALL.Read10",
    "ALL.Write10",
    "ALL.Inquiry",
    "ALL.TestUnitReady",
    "ALL.ReadCapacity16",
    "ALL.Unmap",
    "ALL.iSCSIcmdsn",
    "ALL.iSCSIResiduals",
    "ALL.iSCSITMF",
]
FAMILY_LIMIT = 120  # seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one run of the suite says, test by test."""

    output: str
    tests: dict[str, str]
    """Name → everything that was printed from its ``Test:`` line to the next."""
    ran: int
    failed: int

    @property
    def bad(self) -> list[str]:
        return [name for name, text in self.tests.items() if "[FAILED]" in text or "passed" not in text]

    @property
    def skipped(self) -> list[str]:
        """One line for each test that skipped (a part of) itself."""
        reasons = {name: re.findall(r"\[SKIPPED\]\s*(.*)", text) for name, text in self.tests.items()}
        return [f"{name}: {'; '.join(found)}" for name, found in reasons.items() if found]


def judge(output: str) -> Verdict:
    """Read the suite's verbose output."""
    body, found, summary = output.partition("Run Summary:")
    totals = re.search(r"tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", summary)
    assert found, f"the suite did not finish:\n{output}"
    assert totals, f"the suite's summary is not understood:\n{output}"
    # Of a passed test only what stands before "passed": behind the last one the suite tidies up, and may skip in that.
    parts = re.split(r"^\s*Test: (\S+) \.\.\.", body, flags=re.MULTILINE)[1:]
    texts = [re.sub(r"(?s)(passed).*", r"\1", text) for text in parts[1::2]]
    tests = dict(zip(parts[::2], texts, strict=True))
    _, ran, _, failed = (int(number) for number in totals.groups())
    return Verdict(output, tests, ran, failed)


@pytest.fixture(scope="module")
def product(serve: Callable[..., Product]) -> Product:
    """A target that answers discovery with the address it was asked at, as host tools need it."""
    return serve(advertise=None)


@pytest.fixture
def group(product: Product) -> Group:
    return product.create_group(size="256M")


def _url(product: Product, group: Group) -> str:
    return f"iscsi://127.0.0.1:{product.port}/{group.iqn}/0"


def _suite(product: Product, group: Group, family: str) -> Verdict:
    command = ["iscsi-test-cu", "-d", "-t", family, _url(product, group)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FAMILY_LIMIT, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"iscsi-test-cu ended with code {done.returncode}:\n{output}"
    return judge(output)


@pytest.mark.parametrize("family", FAMILIES)
def test_libiscsis_suite_passes(product: Product, group: Group, family: str, remark: Callable[[str], None]) -> None:
    verdict = _suite(product, group, family)
    for line in verdict.skipped:
        remark(f"{family} skips {line}")
    assert not verdict.bad, f"failed: {verdict.bad}\n{verdict.output}"
    assert (verdict.ran, verdict.failed) == (len(verdict.tests), 0), verdict.output
    assert verdict.ran > len(verdict.skipped), f"every test skipped itself:\n{verdict.output}"


def test_iscsi_ls_shows_the_lun_and_its_size(product: Product, group: Group) -> None:
    command = ["iscsi-ls", "-s", f"iscsi://127.0.0.1:{product.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shown = done.stdout.partition(f"Target:{group.iqn} Portal:127.0.0.1:{product.port},")[2].splitlines()
    assert re.match(r"Lun:0\s+Type:DIRECT_ACCESS \(Size:25[56]M\)", shown[1]), done.stdout


def test_a_captured_libiscsi_session_holds_nothing_malformed(product: Product, group: Group) -> None:
    with Capture(product.port, product.folder / "libiscsi.pcap") as capture:
        for test in ("ALL.Write10.Simple", "ALL.Read10.Simple"):
            assert not _suite(product, group, test).bad
        capture.wait_for("iscsi.opcode == 0x26")
    assert capture.count("iscsi.opcode == 0x25") > 0
    assert capture.complaints() == []
