"""The units that `make install` brings, under a real systemd: sockets, readiness, restart under load, watchdog.

The guest's process 1 is the harness's script, so systemd runs as process 1 of a process namespace, as in a container;
initiator and file systems stay outside of it.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from integration import docker_host, image
from integration.conftest import IQN
from integration.guest import Guest

SYSTEMD = (
    "exec setsid unshare --pid --mount --fork --mount-proc --cgroup"
    " env container=lxc /lib/systemd/systemd --unit=basic.target"
)
FILES = "PYTHONPATH=/run/harness python3 -m integration.inside.files"
WATCHDOG_SECONDS = 60  # WatchdogSec of blockyard.service
LIMIT = 240.0  # seconds for anything that a busy, emulated machine does

pytestmark = pytest.mark.timeout(1200)


class Machine:
    """A guest with systemd beside its harness."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.run("tar -C / -xf /dev/vdb && systemd-sysusers blockyard.conf", timeout=120)
        guest.start(SYSTEMD)
        self.wait_for("systemctl is-system-running", ("running", "degraded"))  # the guest's other units may fail

    def inside(self, line: str, *, check: bool = True) -> str:
        """A line in systemd's namespaces."""
        words = ["nsenter", "-t", self.guest.run("pgrep -xo systemd").text, "-m", "-p", "-C", "/bin/sh", "-c", line]
        return self.guest.run(words, timeout=LIMIT, check=check).text

    def wait_for(self, line: str, wanted: tuple[str, ...]) -> None:
        began, said = time.monotonic(), ""
        for _ in itertools.takewhile(lambda _: time.monotonic() - began < LIMIT, itertools.count()):
            if self.guest.run("pgrep -x systemd", check=False).code == 0:
                said = self.inside(line, check=False)
                if said in wanted:
                    return
            self.guest.run("sleep 1")
        raise AssertionError(f"`{line}` says {said!r} after {LIMIT:.0f} s, not one of {wanted}")

    def journal(self, unit: str) -> str:
        return self.inside(f"journalctl --no-pager -u {unit}")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("services")
    guest = Guest(image.get(), "services", IQN.format("services"), folder, disks=(docker_host.installation(folder),))
    try:
        guest.power_on()
        guest.wait_until_ready()
        yield Machine(guest)
    finally:
        guest.power_off_hard()


def test_the_units_say_what_systemd_understands(machine: Machine) -> None:
    units = "blockyard.socket blockyard.service blockyard-docker.socket blockyard-docker.service"
    assert machine.inside(f"systemd-analyze verify {units} 2>&1") == ""


def test_the_target_serves_as_nobody_in_particular_once_its_pools_have_reported(machine: Machine) -> None:
    machine.inside("systemctl start blockyard.service")
    assert "1 of 1 pool(s) serving" in machine.inside("systemctl show -p StatusText --value blockyard")
    assert machine.inside("ps -o user= -p $(systemctl show -p MainPID --value blockyard)") == "blockyard"
    assert machine.inside("stat -c '%U %G %a' /run/blockyard/api.sock") == "root blockyard 660"


def test_a_restart_under_verified_writes_costs_no_error(machine: Machine, remark: Callable[[str], None]) -> None:
    run = machine.guest.run
    machine.inside("/opt/blockyard/bin/blockyard group create demo --size 400M --client any")
    run("iscsiadm -m discovery -t st -p 127.0.0.1:3260 && iscsiadm -m node --login", timeout=120)
    run("udevadm settle; mkfs.ext4 -q -F /dev/sda && mkdir -p /mnt/demo && mount /dev/sda /mnt/demo", timeout=120)
    writing = machine.guest.start(f"exec env {FILES} write /mnt/demo")
    writing.wait_for_output("\n20\n", LIMIT)
    began = time.monotonic()
    machine.inside("systemctl restart blockyard.service")
    remark(f"systemctl restart blockyard: {time.monotonic() - began:.1f} s")
    count = len(writing.output.splitlines())
    writing.wait_for_output(f"\n{count + 20}\n", LIMIT)
    writing.kill(signal.SIGTERM)
    done = writing.wait(60)
    assert done.stderr == b""
    run(f"{FILES} check /mnt/demo {len(done.text.splitlines())}")
    assert "I/O error" not in machine.guest.kmsg()
    run("umount /mnt/demo && iscsiadm -m node -u && iscsiadm -m node -o delete", timeout=120)


def test_a_daemon_that_hangs_is_replaced(machine: Machine) -> None:
    machine.inside("kill -STOP $(systemctl show -p MainPID --value blockyard)")
    machine.guest.run(f"sleep {WATCHDOG_SECONDS}", timeout=WATCHDOG_SECONDS + 30)
    machine.wait_for("systemctl show -p NRestarts,SubState --value blockyard | xargs", ("1 running", "running 1"))
    assert "Watchdog timeout" in machine.journal("blockyard")
    assert "demo" in machine.inside("/opt/blockyard/bin/blockyard group ls")


def test_the_plugin_is_ready_when_it_listens(machine: Machine) -> None:
    machine.inside("systemctl start blockyard-docker.service")
    assert machine.inside(f"python3 - <<'END'\n{ASK}\nEND") == '{"Implements":["VolumeDriver"],"Err":""}'
    assert "volumes in use" in machine.inside("systemctl show -p StatusText --value blockyard-docker")


ASK = """
import socket
sock = socket.socket(socket.AF_UNIX)
sock.connect("/run/docker/plugins/blockyard.sock")
sock.sendall(b"POST /Plugin.Activate HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
answer = b""
while data := sock.recv(4096):
    answer += data
print(answer.partition(b"\\r\\n\\r\\n")[2].decode())
"""
