"""A container host: a guest with Docker and the volume plugin, installed as `make install` does it.

The plugin's files come to the guests on a disk that they share. Everything is asked of `docker`, as its user does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from integration.guest import HOST_ADDRESS, Command, Guest, Result
from integration.product import Product

DOCKERD_LIMIT = 300.0  # seconds; 14 on an idle machine, minutes on a busy one
DOCKERD_POLL = 2.0  # seconds; the client itself is work for an emulated processor
RUN_LIMIT = 180.0  # seconds for a container that only looks at something
# No network for containers and no registry: a bridge and its filter rules would only cost boot time.
DOCKERD = "dockerd --bridge=none --iptables=false --ip6tables=false --storage-driver=overlay2"
# A root file system of busybox alone, from the guest's own package.
IMPORT = (
    "mkdir -p /tmp/rootfs/bin /tmp/rootfs/data && cp /bin/busybox /tmp/rootfs/bin/ && ln -s busybox /tmp/rootfs/bin/sh"
    " && tar -C /tmp/rootfs -cf - . | docker import - box"
)
PREFIX = "/opt/blockyard"
SOCKET = "/run/docker/plugins/blockyard.sock"
_ROOT = Path(__file__).parent.parent


def installation(folder: Path) -> Path:
    """What `make install` makes, as a tar that a guest can have for a disk."""
    destination, archive = folder / "installed", folder / "installed.tar"
    pip = Path(sys.executable).with_name("pip")
    # The guests' Python is Debian 12's; the machine that runs this has the same.
    command = [str(_ROOT / "tools/install"), str(destination), PREFIX, "/usr/bin/python3", str(pip)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    subprocess.run(["tar", "-C", str(destination), "-cf", str(archive), "."], check=True, timeout=60)
    return archive


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key of a target that guests see at ``HOST_ADDRESS``."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "30", "-subj", "/CN=blockyard", "-addext", f"subjectAltName=IP:{HOST_ADDRESS}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


class DockerHost:
    """One guest. After ``power_on`` it has nothing: its disk is forgotten with the power."""

    def __init__(self, guest: Guest, target: Product, api: str, certificate: Path, project: str = "shop") -> None:
        self.guest = guest
        created = target.cli("token", "create", "--host", guest.initiator, "--project", project)
        self._token: str = created["text"]
        self._api = api
        self._certificate = certificate
        self._plugin: Command | None = None

    def set_up(self) -> None:
        """Install, configure, start Docker and the plugin."""
        self.guest.run("tar -C / -xf /dev/vdb", timeout=120)
        self.guest.put("/etc/blockyard/token", self._token)
        self.guest.put("/etc/blockyard/ca.pem", self._certificate.read_bytes())
        lines = [f'api = "{self._api}"', 'token_file = "/etc/blockyard/token"', 'ca_file = "/etc/blockyard/ca.pem"']
        self.guest.put("/etc/blockyard/docker.toml", "\n".join([*lines, 'default_size = "512M"', ""]))
        self.start_dockerd()
        self.wait_for_dockerd()
        self.guest.run(IMPORT, timeout=120)
        self.start_plugin()

    # The two daemons

    def start_plugin(self) -> None:
        self._plugin = self.guest.start(f"exec {PREFIX}/bin/blockyard docker-plugin 2>>/tmp/plugin.log")
        serves = f"[ -S {SOCKET} ] && grep -q '^INFO.*serving for' /tmp/plugin.log"
        self.guest.run(
            f"for i in $(seq 600); do {serves} && exit 0; sleep 0.1; done; cat /tmp/plugin.log; exit 1", timeout=90
        )

    def kill_plugin(self) -> None:
        """kill -9."""
        assert self._plugin is not None
        self._plugin.kill()
        self._plugin.wait(20, check=False)
        self.guest.run(f"rm -f {SOCKET}; mv /tmp/plugin.log /tmp/plugin.log.old")

    def start_dockerd(self) -> None:
        # Again when it gives up, as a service manager would: on a busy machine its containerd is too slow for it.
        self.guest.start(f"while :; do {DOCKERD} 2>>/tmp/dockerd.log; sleep 1; done")

    def wait_for_dockerd(self) -> None:
        tries = int(DOCKERD_LIMIT / DOCKERD_POLL / 2)
        answers = "[ -S /run/docker.sock ] && timeout 30 docker info >/dev/null 2>&1"
        ready = f"for i in $(seq {tries}); do {answers} && exit 0; sleep {DOCKERD_POLL}; done"
        self.guest.run(f"{ready}; cat /tmp/dockerd.log; exit 1", timeout=DOCKERD_LIMIT + 60)

    def plugin_log(self) -> str:
        return self.guest.run("cat /tmp/plugin.log", check=False).text

    # Docker's command line

    def docker(self, *words: str, check: bool = True, timeout: float = RUN_LIMIT) -> Result:
        return self.guest.run(["docker", *words], check=check, timeout=timeout)

    def create(self, volume: str, **options: str) -> None:
        words = [word for key, value in options.items() for word in ("-o", f"{key.replace('_', '-')}={value}")]
        self.docker("volume", "create", "-d", "blockyard", *words, volume)

    def container(self, volume: str, script: str, *options: str) -> list[str]:
        """The words that run ``script`` in a container which has the volume as its /data."""
        fixed = ["docker", "run", "--rm", "--network", "none", *options, "-v", f"{volume}:/data"]
        return [*fixed, "--volume-driver", "blockyard", "box", "/bin/sh", "-c", script]

    def run(self, volume: str, script: str, *, check: bool = True, timeout: float = RUN_LIMIT) -> Result:
        return self.guest.run(self.container(volume, script), check=check, timeout=timeout)

    def start(self, volume: str, script: str, *options: str) -> Command:
        return self.guest.start(self.container(volume, script, *options))

    # What is left

    def left(self) -> Sequence[str]:
        """Sessions, volumes' mounts, node records of ours and disks that this host has."""
        look = (
            "ls /sys/class/iscsi_session; ls /sys/block | grep ^sd; grep -o '/var/lib/blockyard-docker/volumes/[^ ]*'"
        )
        found = self.guest.run(f"{look} /proc/self/mountinfo; find /etc/iscsi/nodes -name blockyard", check=False)
        return found.text.split()

    def wait_until_clean(self, seconds: float = 120.0) -> None:
        for _ in range(int(seconds)):
            if not self.left():
                return
            self.guest.run("sleep 1")
        raise AssertionError(f"{self.left()} are left; the plugin's log:\n{self.plugin_log()}")
