"""``make soak NAME=...``: repeat what ``make test`` does once, many times and from other seeds, and keep the evidence.

Prints where the report went (``docs/evidence/<name>.txt``): date, machine, what was run, how often, how it ended.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"


@dataclass(frozen=True)
class Soak:
    tests: tuple[str, ...]
    scale: int
    """How many times more rounds than in ``make test``."""
    what: str


SOAKS = {
    "kill": Soak(("tests/system/test_kill.py",), 20, "workers killed with kill -9 under verified writes"),
    "permits": Soak(("tests/system/test_permits.py",), 20, "aborts, resets and reinstating logins against writes"),
    "fencing": Soak(
        ("tests/system/test_fencing.py",), 10, "take-overs of groups under load, through connections that are cut"
    ),
    "hostile": Soak(("tests/system/test_hostile.py",), 20, "malformed PDUs beside a verified client"),
    "model": Soak(("tests/model/test_model.py",), 10, "the protocol's model in wider bounds, and its broken rules"),
    "plugin": Soak(
        ("tests/blockyard/docker/test_random_kills.py",), 50, "the Docker plugin, hosts and target killed in any order"
    ),
    "power": Soak(("tests/blockstore/test_power_loss.py",), 10, "power cut at every point of recorded traces"),
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
    command = [sys.executable, "-m", "pytest", "-v", "--timeout=0", *soak.tests]
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
    outcomes = [line for line in done.stdout.splitlines() if "::" in line or line.startswith("=")]
    report.write_text(
        f"make soak NAME={name} ({soak.what})\n"
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(begin))} UTC, commit {commit.strip()}, "
        f"{platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
        f"scale {scale} (rounds of make test times {scale}), seed {seed}, {time.time() - begin:.0f} s\n\n"
        + "\n".join(outcomes).replace(str(ROOT), ".")
        + "\n"
    )
    print(done.stdout[-2000:] if done.returncode else report.read_text())
    print(f"report: {report.relative_to(ROOT)}")
    return done.returncode


if __name__ == "__main__":
    main()
