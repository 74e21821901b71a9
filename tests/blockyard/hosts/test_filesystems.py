"""What counts as blank, with the real blkid and mkfs on a file in the place of a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockyard.hosts.commands import Deadline, LinuxHost
from blockyard.hosts.disks import Disk
from blockyard.hosts.errors import DiskUnreadable, NotBlank
from blockyard.hosts.filesystems import Kind, Wanted, need_filesystem, probe

SIZE = 16 << 20
OURS = Wanted(kind=Kind.EXT4, folder="/nowhere", ours=True)
MAGIC = 1024 + 56  # offset of the magic number in the first superblock of ext4


def disk_of(path: Path) -> Disk:
    return Disk(f"..{path}", "0:0", SIZE, read_only=False)


def make(disk: Disk) -> Kind:
    host = LinuxHost()
    return need_filesystem(host, disk, OURS, Deadline(host, 60))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return disk_of(path)


def test_a_file_system_whose_superblock_is_damaged_is_not_made_anew(disk: Disk) -> None:
    assert make(disk) is Kind.EXT4
    with Path(disk.path).open("r+b") as file:
        file.seek(MAGIC)
        file.write(b"??")
    assert probe(LinuxHost(), disk) is None
    content = Path(disk.path).read_bytes()
    with pytest.raises(NotBlank, match="no known file system"):
        make(disk)
    assert Path(disk.path).read_bytes() == content


def test_what_a_mkfs_left_that_was_cut_off_is_made_anew(disk: Disk) -> None:
    assert make(disk) is Kind.EXT4
    with Path(disk.path).open("r+b") as file:
        file.write(bytes(2048))  # mkfs.ext4 writes the first superblock last of all
    assert probe(LinuxHost(), disk) is None
    assert make(disk) is Kind.EXT4
    assert probe(LinuxHost(), disk) == Kind.EXT4


def test_a_disk_that_cannot_be_read_is_not_blank(tmp_path: Path) -> None:
    gone = disk_of(tmp_path / "gone")
    assert probe(LinuxHost(), gone) is None, "blkid says nothing else of it"
    with pytest.raises(DiskUnreadable, match="No such file"):
        make(gone)
    short = tmp_path / "short"
    short.write_bytes(bytes(1000))
    with pytest.raises(DiskUnreadable, match="1000 of its first"):
        make(disk_of(short))
