"""A real kernel keeps the contract of ``blockyard.hosts`` that the simulated one of the unit tests keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import docker_host, image
from integration.conftest import IQN
from integration.guest import Guest
from integration.product import Product
from tests.blockyard.hosts import contract

VOLUMES = 16  # more than the contract's cases take
SIZE = "320M"  # mkfs.xfs refuses less than 300 MB
GROW = re.compile(rb"^grow (\S+) (\d+)$", re.MULTILINE)

pytestmark = pytest.mark.timeout(900)


def test_a_linux_host_keeps_the_contract(
    serve: Callable[..., Product], tmp_path: Path, remark: Callable[[str], None]
) -> None:
    target = serve()
    guest = Guest(image.get(), "hosts", IQN.format("hosts"), tmp_path, disks=(docker_host.installation(tmp_path),))
    try:
        guest.power_on()
        guest.wait_until_ready()
        guest.run("tar -C / -xf /dev/vdb", timeout=120)
        guest.push(_tests(tmp_path), "/tmp")
        attached = [_attached(target, f"volume-{number}", guest.initiator) for number in range(VOLUMES)]
        guest.put("/tmp/attached.json", json.dumps(attached))
        words = (
            "cd /tmp/code && exec /opt/blockyard/bin/python3 -u -m tests.blockyard.hosts.contract /tmp/attached.json"
        )
        running = guest.start(words)
        grown = 0
        while running.running and b"kept: " + contract.CASES[-1].__name__.encode() not in running.output:
            asked = GROW.findall(running.output)
            for group, size in asked[grown:]:
                target.cli("volume", "resize", group.decode(), "0", size.decode())
                guest.run(f"touch /tmp/grown-{group.decode()}")
            grown = len(asked)
            guest.run("sleep 0.5")
        kept = running.wait(120).text
    finally:
        guest.power_off_hard()
    for case in contract.CASES:
        assert f"kept: {case.__name__}" in kept
    remark("; ".join(line.removeprefix("kept: ") for line in kept.splitlines() if line.startswith("kept")))


def _attached(target: Product, name: str, host: str) -> object:
    target.cli("group", "create", name, "--size", SIZE)
    return target.cli("attachment", "create", name, "--host", host)


def _tests(folder: Path) -> Path:
    """Of the tests what the contract needs."""
    top = Path(contract.__file__).parents[3]
    code = folder / "code"
    for path in ("tests/__init__.py", "tests/blockyard/__init__.py", "tests/blockyard/hosts"):
        source = top / path
        for file in sorted(source.glob("*.py")) if source.is_dir() else [source]:
            place = code / file.relative_to(top)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return code
