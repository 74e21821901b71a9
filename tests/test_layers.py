"""The rooms of the house and who may import whom (ARCHITECTURE.md). Each rule is a sentence, printed when broken."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ("pdus", "blockstore", "target", "blockyard")
IO = ("asyncio", "socket", "time", "random", "os", "uvloop", "selectors", "threading")


@dataclass(frozen=True)
class Room:
    sentence: str
    ours: tuple[str, ...]
    """Prefixes of our own modules that may be imported."""
    never: tuple[str, ...] = ()
    """Prefixes of other modules that may not."""
    theirs: tuple[str, ...] | None = None
    """Packages of others that may be imported; None: any."""


ROOMS = {
    "pdus": Room(
        "bytes know nothing of sessions: pdus imports construct, crc32c and the standard library",
        ("pdus",),
        IO,
        ("construct", "crc32c"),
    ),
    "blockstore": Room(
        "disks know nothing of SCSI: blockstore imports numpy, crc32c, zstandard and the standard library",
        ("blockstore",),
        ("asyncio", "socket"),
        ("numpy", "crc32c", "zstandard"),
    ),
    "target.iscsi": Room(
        "sessions know nothing of disks, sockets or clocks: target.iscsi imports pdus.iscsi and pdus.codec",
        ("target.iscsi", "pdus.iscsi", "pdus.codec", "pdus.errors"),
        IO,
        (),
    ),
    "target.scsi": Room(
        "the device server knows only the store's contract: target.scsi imports pdus.scsi and blockstore.api",
        ("target.scsi", "pdus.scsi", "pdus.codec", "pdus.errors", "blockstore.api"),
        IO,
        (),
    ),
    "target": Room(
        "the I/O edge knows the engines, not the product: target imports pdus, blockstore.api and asyncio",
        ("target", "pdus", "blockstore.api"),
        (),
        (),
    ),
    "blockyard.worker": Room(
        "the worker joins the libraries and speaks RPC; it knows neither REST nor CLI",
        ("blockyard.worker", "blockyard.rpc", "blockyard.model", "blockyard.errors", "blockstore", "target"),
    ),
    "blockyard.operations": Room(
        "the verbs know nouns and RPC, not the libraries under them nor the faces over them",
        ("blockyard.operations", "blockyard.moves", "blockyard.group_move", "blockyard.model", "blockyard.errors",
         "blockyard.rpc", "blockyard.names"),
    ),
    "blockyard.moves": Room(
        "a move is a verb: it knows nouns and RPC",
        ("blockyard.group_move", "blockyard.model", "blockyard.errors", "blockyard.rpc"),
    ),
    "blockyard.group_move": Room(
        "the steps of a move know nouns and RPC", ("blockyard.model", "blockyard.errors", "blockyard.rpc")
    ),
    "blockyard.api": Room(
        "REST is thin over the verbs",
        ("blockyard.api", "blockyard.operations", "blockyard.model", "blockyard.errors"),
    ),
    "blockyard.client": Room(
        "the client speaks only REST",
        ("blockyard.client", "blockyard.model", "blockyard.errors"),
    ),
    "blockyard.hosts": Room(
        "hosts know the API and their own machine, nothing of the target's inside",
        ("blockyard.hosts", "blockyard.model", "blockyard.errors"),
    ),
    "blockyard.docker": Room(
        "the plugin knows hosts and the API's client, nothing of the target's inside",
        ("blockyard.docker", "blockyard.hosts", "blockyard.client", "blockyard.service", "blockyard.model",
         "blockyard.errors"),
    ),
    "blockyard.daemon": Room(
        "the daemon composes the faces and the workers; blocks are the workers' business",
        ("blockyard", "target", "pdus"),
    ),
}  # fmt: skip

OFFLINE = {"blockyard.cli.check", "blockyard.cli.dump"}
"""Verbs that open a store without a daemon: they may import the store."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> Room | None:
    names = [name for name in ROOMS if module == name or module.startswith(name + ".")]
    return ROOMS[max(names, key=len)] if names else None


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def broken_by(module: str, imported: str, room: Room) -> bool:
    top = imported.partition(".")[0]
    if top in OURS:
        # ``from target.iscsi import x`` names the package and x: the package alone is no leak if x is allowed.
        return not within(imported, room.ours) and not any(allowed.startswith(imported + ".") for allowed in room.ours)
    if within(imported, room.never):
        return True
    return room.theirs is not None and not _standard(top) and top not in room.theirs


def _standard(name: str) -> bool:
    return name in sys.stdlib_module_names


def test_every_import_keeps_to_the_house() -> None:
    broken = []
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            module = module_of(path)
            room = room_of(module)
            if room is None or module in OFFLINE:
                continue
            broken += [
                f"{module} imports {name}: {room.sentence}"
                for name in imports_of(path)
                if broken_by(module, name, room)
            ]
    assert not broken, "\n".join(broken)


def test_the_rules_have_teeth() -> None:
    assert broken_by("target.iscsi.session", "asyncio", ROOMS["target.iscsi"])
    assert broken_by("target.iscsi.session", "target.scsi.sense", ROOMS["target.iscsi"])
    assert broken_by("target.scsi.sbc", "blockstore.pool", ROOMS["target.scsi"])
    assert broken_by("pdus.codec", "numpy", ROOMS["pdus"])
    assert not broken_by("target.scsi.sbc", "blockstore.api.Volume", ROOMS["target.scsi"])
