"""What a Linux host does with iSCSI: the verbs of iscsiadm and of mounting, over a guest.

The guest's own tools do the work, so an error shows iscsiadm's words and exit code. Node records and sessions belong
to the guest; ``reset`` leaves none behind.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from integration.guest import CommandFailed, Guest, Result

# iscsiadm's exit codes (open-iscsi, include/iscsi_err.h).
LOGIN_FAILED = 19
NOTHING_FOUND = 21
LOGIN_AUTH_FAILED = 24

DISK_LIMIT = 30  # seconds for a logged-in LUN to have its device node
MOUNTS = "/mnt"  # everything that a scenario mounts is below


class NotClean(AssertionError):
    """A guest still has sessions, records or mounts after it was reset."""


@dataclass(frozen=True, slots=True)
class Chap:
    """Secrets as an initiator's administrator sets them; ``target_*`` are for the mutual direction."""

    user: str
    secret: str
    target_user: str | None = None
    target_secret: str | None = None
    algorithm: str | None = None
    """One of MD5, SHA1, SHA256, SHA3-256; None: open-iscsi's own choice."""


class Initiator:
    """The initiator of one guest, in front of one portal (``ADDRESS:PORT`` as the guest sees it)."""

    def __init__(self, guest: Guest, portal: str) -> None:
        self.guest = guest
        self.portal = portal

    @property
    def iqn(self) -> str:
        return self.guest.initiator

    # Discovery and records

    def discover(self) -> list[tuple[str, str]]:
        """What SendTargets answers, as (address with port, IQN); every record found is remembered."""
        result = self._iscsiadm("-m discovery -t sendtargets -p", self.portal, check=False)
        if result.code == NOTHING_FOUND:
            return []
        if result.code != 0:
            raise CommandFailed(self.guest.name, result)
        records = [line.split() for line in result.text.splitlines()]
        return [(address.partition(",")[0], iqn) for address, iqn in records]

    def remember(self, iqn: str) -> None:
        """Make a node record without asking the target."""
        self._node(iqn, "--op new")

    def use(self, iqn: str, name: str, value: str) -> None:
        """Change a setting of a record, e.g. ``node.session.auth.username``."""
        self._node(iqn, "--op update -n", name, "-v", value)

    def use_chap(self, iqn: str, chap: Chap) -> None:
        settings = {"authmethod": "CHAP", "username": chap.user, "password": chap.secret}
        if chap.target_user is not None and chap.target_secret is not None:
            settings |= {"username_in": chap.target_user, "password_in": chap.target_secret}
        if chap.algorithm is not None:
            settings["chap_algs"] = chap.algorithm
        for name, value in settings.items():
            self.use(iqn, f"node.session.auth.{name}", value)

    def use_digests(self, iqn: str) -> None:
        """Header and data digests, required in both directions."""
        for name in ("HeaderDigest", "DataDigest"):
            self.use(iqn, f"node.conn[0].iscsi.{name}", "CRC32C")

    # Sessions

    def connect(self, iqn: str, lun: int = 0) -> str:
        """Discover, log in, and wait for the disk: what most scenarios begin with. Returns the device."""
        found = self.discover()
        assert iqn in [name for _, name in found], f"{iqn} is not in the discovery answer {found}"
        self.login(iqn)
        return self.disk(iqn, lun)

    def login(self, iqn: str) -> None:
        self._node(iqn, "--login")

    def try_login(self, iqn: str) -> Result:
        """A login that may fail; its code is one of the constants above."""
        return self._node(iqn, "--login", check=False)

    def logout(self, iqn: str) -> None:
        self._node(iqn, "--logout")

    def sessions(self) -> list[str]:
        """IQNs of the targets that this guest is logged in to, one for each session."""
        result = self._iscsiadm("-m session", check=False)
        if result.code == NOTHING_FOUND:
            return []
        if result.code != 0:
            raise CommandFailed(self.guest.name, result)
        return [line.split()[3] for line in result.text.splitlines()]

    def negotiated(self) -> dict[str, str]:
        """The keys of the (only) session as iscsiadm shows them."""
        lines = self._iscsiadm("-m session -P 2").text.splitlines()
        pairs = [line.strip().partition(": ") for line in lines]
        return {name: value for name, separator, value in pairs if separator}

    # Disks

    def disk(self, iqn: str, lun: int = 0) -> str:
        """The device of a LUN, e.g. ``/dev/sda``, once udev has made its links."""
        link = shlex.quote(f"/dev/disk/by-path/ip-{self.portal}-iscsi-{iqn}-lun-{lun}")
        tries = DISK_LIMIT * 10
        wait = (
            f"for i in $(seq {tries}); do [ -b {link} ] && break; sleep 0.1; done; udevadm settle; ls /dev/disk/by-path"
        )
        self.guest.run(wait, timeout=DISK_LIMIT + 30, check=False)
        return self.guest.run(f"[ -b {link} ] && readlink -f {link}").text

    def rescan(self) -> None:
        """Look for new LUNs and new sizes in all sessions."""
        self._iscsiadm("-m session --rescan")
        self.guest.run("udevadm settle")

    def size(self, device: str) -> int:
        """Bytes of a block device."""
        return int(self.guest.run(["blockdev", "--getsize64", device]).text)

    # File systems

    def format(self, device: str, kind: str) -> None:
        """``kind`` is ext4 or xfs."""
        self.guest.run(f"mkfs.{kind} -q {device}", timeout=120)

    def mount(self, device: str, name: str = "data") -> str:
        """Mount below ``/mnt``; returns the folder."""
        folder = f"{MOUNTS}/{name}"
        self.guest.run(f"mkdir -p {folder} && mount {device} {folder}", timeout=120)
        return folder

    def unmount(self, folder: str) -> None:
        self.guest.run(["umount", folder], timeout=180)

    # Cleaning

    def reset(self) -> None:
        """No commands, mounts, sessions, records, kernel messages any more; proves it or raises."""
        self.guest.end_commands()
        run = self.guest.run
        run(f"for folder in $(findmnt -rno TARGET | grep ^{MOUNTS}/ | tac); do umount $folder; done", check=False)
        self._iscsiadm("-m node -U all", check=False)
        self._iscsiadm("-m node -o delete", check=False)
        run("rm -rf /etc/iscsi/send_targets/*; dmesg --clear; udevadm settle")
        left = run(
            f"findmnt -rno TARGET | grep ^{MOUNTS}/; ls /sys/class/iscsi_session; ls /sys/block | grep ^sd;"
            " find /etc/iscsi/nodes /etc/iscsi/send_targets -type f",
            check=False,
        ).stdout
        if left:
            raise NotClean(f"guest {self.guest.name} is not clean:\n{left.decode()}")

    # iscsiadm

    def _node(self, iqn: str, operation: str, *words: str, check: bool = True) -> Result:
        return self._iscsiadm(f"-m node -T {shlex.quote(iqn)} -p {self.portal} {operation}", *words, check=check)

    def _iscsiadm(self, operation: str, *words: str, check: bool = True) -> Result:
        # A login is retried by iscsid for up to 120 s while the target says "not yet" (initial_login_retry_max).
        return self.guest.run(f"iscsiadm {operation} {shlex.join(words)}", timeout=150, check=check)
