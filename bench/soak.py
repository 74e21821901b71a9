"""``make soak NAME=...``: repeat what ``make test`` does once, many times and from other seeds, and keep the evidence.

Prints where the report went (``docs/evidence/<name>.txt``): date, machine, what was run, how often, how it ended.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
_COUNTS = re.compile(r"\b\d+ (I/Os|states)\b")  # what tests print of how much they did


@dataclass(frozen=True)
class Soak:
    tests: tuple[str, ...]
    scale: int
    """How many times more rounds than in ``make test``."""
    what: str


SOAKS = {
    "kill": Soak(("tests/system/test_kill.py",), 20, "workers killed with kill -9 under verified writes"),
    "kill-guest": Soak(
        ("integration/scenario_kill.py",), 5, "worker and daemon killed with kill -9 under a host's mounted ext4"
    ),
    "permits": Soak(("tests/system/test_permits.py",), 20, "aborts, resets and reinstating logins against writes"),
    "fencing": Soak(
        ("tests/system/test_fencing.py",), 10, "take-overs of groups under load, through connections that are cut"
    ),
    "hostile": Soak(("tests/system/test_hostile.py",), 20, "malformed PDUs beside a verified client"),
    "model": Soak(("tests/model/test_model.py",), 10, "the protocol's model in wider bounds, and its broken rules"),
    "crash": Soak(
        tuple(f"tests/blockstore/test_{name}.py" for name in ("crash", "sqlite_faults", "kill_points", "model")),
        2,
        "power cut, or the process dead, at every I/O of traces",
    ),
    "plugin": Soak(
        ("tests/blockyard/docker/test_random_kills.py",), 50, "the Docker plugin, hosts and target killed in any order"
    ),
}


def main() -> None:
    names = "\n".join(f"  {name:10} {soak.what}" for name, soak in SOAKS.items())
    parser = argparse.ArgumentParser(
        prog="make soak", epilog=f"names:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SOAKS, metavar="NAME")
    parser.add_argument("--scale", type=int, help="times more rounds than in make test")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    options = parser.parse_args()
    soak = SOAKS[options.name]
    sys.exit(run(options.name, soak, options.scale or soak.scale, options.seed))


def run(name: str, soak: Soak, scale: int, seed: int) -> int:
    command = [sys.executable, "-m", "pytest", "-v", "-rP", "--timeout=0", *soak.tests]
    begin = time.time()
    print(f"soak {name}: {soak.what}; scale {scale}, seed {seed}", flush=True)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "BLOCKYARD_SCALE": str(scale), "BLOCKYARD_SEED": str(seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    report = EVIDENCE / f"{name}.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    report.write_text(
        f"make soak NAME={name} ({soak.what})\n"
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(begin))} UTC, commit {commit.strip()}, "
        f"{platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
        f"scale {scale} (rounds of make test times {scale}), seed {seed}, {time.time() - begin:.0f} s\n\n"
        + "\n".join(outcomes(done.stdout)).replace(str(ROOT), ".")
        + "\n"
    )
    print(done.stdout[-2000:] if done.returncode else report.read_text())
    print(f"report: {report.relative_to(ROOT)}")
    return done.returncode


def outcomes(output: str) -> list[str]:
    """What to keep of pytest's output: a line for each test, and what passed tests had to say."""
    kept, remarks = [], False
    for line in output.splitlines():
        if line.startswith("="):
            remarks = "remarks of passed tests" in line
        if remarks or "::" in line or line.startswith("=") or _COUNTS.search(line):
            kept.append(line)
    return kept


if __name__ == "__main__":
    main()
