"""The disk behind a session: found in the kernel's tree below that very session, and proved to be the volume.

Not by /dev/disk/by-id: those links are udev's, come later, and name one of several disks when an administrator is
logged in to the same target too. The identity is what the kernel has read from the disk itself: the NAA name of VPD
page 83 (what the wwn- links are made of; 100 bits of the volume's UUID) and the serial number of page 80 (all of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from blockyard.hosts.commands import Deadline, Host, read_text
from blockyard.hosts.errors import DiskMissing, WrongDisk
from blockyard.hosts.initiator import Initiator, Session
from blockyard.hosts.mounts import Mount
from blockyard.model import Volume

_SECTOR = 512  # bytes; the unit of /sys/block/*/size whatever the disk's own blocks are
_POLL = 0.1
_RESCAN_AFTER = 3.0  # seconds; the scan at login takes less, so then it has missed the disk
_COMPANY_ID = "02594d"  # IEEE's part of the names of our volumes
_VPD_HEADER = 4  # bytes before a VPD page's content


@dataclass(frozen=True, slots=True)
class Disk:
    name: str
    """As the kernel says, sda."""
    number: str
    """``major:minor``."""
    size: int
    """Bytes."""
    read_only: bool

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"


def naa(uuid: UUID) -> str:
    """The name that the target gives to a volume: NAA 6, IEEE Registered Extended (SPC-4)."""
    return f"6{_COMPANY_ID}{uuid.hex[7:]}"


def disks_of(host: Host, session: Session) -> dict[int, Disk]:
    """The session's disks by LUN."""
    top = f"/sys/class/iscsi_session/{session.name}/device"
    found = {}
    for target in host.names(top):
        for unit in host.names(f"{top}/{target}") if target.startswith("target") else ():
            for name in host.names(f"{top}/{target}/{unit}/block"):
                disk = look_at(host, name)
                if disk is not None:
                    found[int(unit.rpartition(":")[2])] = disk
    return found


def has_mounted(host: Host, session: Session, mount: Mount) -> bool:
    """Whether one of the session's disks is what is mounted."""
    return any(mount.shows(disk.name, disk.number) for disk in disks_of(host, session).values())


def look_at(host: Host, name: str) -> Disk | None:
    number, sectors = read_text(host, f"/sys/block/{name}/dev"), read_text(host, f"/sys/block/{name}/size")
    if number is None or sectors is None:
        return None
    return Disk(name, number, int(sectors) * _SECTOR, read_text(host, f"/sys/block/{name}/ro") == "1")


def wait_for_disk(host: Host, initiator: Initiator, session: Session, volume: Volume, deadline: Deadline) -> Disk:
    """The volume's disk, its identity proved. Raises DiskMissing, WrongDisk."""
    rescan_at = host.now() + _RESCAN_AFTER
    while True:
        disk = disks_of(host, session).get(volume.lun)
        # A disk shows itself a moment before the kernel has read its size.
        if disk is not None and disk.size > 0:
            check_identity(host, disk, volume)
            return disk
        if deadline.over:
            raise DiskMissing(f"{session.target} is logged in, but its LUN {volume.lun} did not appear as a disk")
        if host.now() >= rescan_at:
            initiator.rescan(session, deadline)
            rescan_at = host.now() + _RESCAN_AFTER
        host.sleep(_POLL)


def check_identity(host: Host, disk: Disk, volume: Volume) -> None:
    """Before anything is done to a disk. Raises WrongDisk."""
    device = f"/sys/block/{disk.name}/device"
    seen = (read_text(host, f"{device}/wwid"), _serial(host, f"{device}/vpd_pg80"))
    wanted = (f"naa.{naa(volume.uuid)}", volume.uuid.hex)
    if seen != wanted:
        raise WrongDisk(f"{disk.path} says that it is {seen[0]}, serial {seen[1]}; wanted is {wanted[0]}, {wanted[1]}")


def _serial(host: Host, path: str) -> str | None:
    try:
        return host.read(path)[_VPD_HEADER:].decode(errors="replace").strip()
    except OSError:  # the disk has gone
        return None
