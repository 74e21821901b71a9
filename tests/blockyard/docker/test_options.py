"""What ``docker volume create -o`` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockyard.docker import options
from blockyard.docker.config import load
from blockyard.docker.options import Options, Source
from blockyard.errors import Invalid
from blockyard.hosts.filesystems import Kind
from blockyard.model import Cache, names
from blockyard.model.attachments import AttachMode


def test_every_option_is_read() -> None:
    given = {"size": "1.5G", "fs": "xfs", "group": "db", "cache": "writethrough", "mkfs-opts": "-i 'size=512'"}
    assert options.parse(given) == Options(
        size=3 << 29, fs=Kind.XFS, group="db", cache=Cache.WRITETHROUGH, make_options=("-i", "size=512")
    )
    cloned = options.parse({"from": "db@monday", "access": "read-only-many"})
    assert cloned == Options(source=Source("db", "monday"), access=AttachMode.READ_ONLY_MANY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": "1G"}, "unknown option sise; allowed are size"),
        ({"size": "big"}, "option size=big: allowed is such as 10G"),
        ({"size": "0"}, "option size=0"),
        ({"fs": "ntfs"}, "option fs=ntfs: allowed is ext4, xfs or raw"),
        ({"from": "db"}, "option from=db: allowed is GROUP@SNAPSHOT"),
        ({"cache": "none"}, "allowed is writeback or writethrough"),
        ({"access": "rw"}, "allowed is single-writer, multi-writer or read-only-many"),
        ({"group": "Data_Base"}, "is not a group name"),
        ({"mkfs-opts": "-J device=/dev/sda"}, "no other device may be named"),
        ({"mkfs-opts": "-L 'x"}, "No closing quotation"),
        ({"from": "db@monday", "fs": "ext4"}, "has the file system of its snapshot"),
        ({"fs": "raw", "mkfs-opts": "-q"}, "fs=raw has none"),
        ({"access": "multi-writer"}, "torn by two writers"),
        ({"access": "multi-writer", "fs": "ext4"}, "torn by two writers"),
        ({"access": "read-only-many"}, "an empty volume cannot be read"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(given: dict[str, str], message: str) -> None:
    with pytest.raises(Invalid) as refused:
        options.parse(given)
    assert message in str(refused.value)


def test_names_of_compose_become_different_group_names() -> None:
    found = {options.group_for(name) for name in ("shop-data", "shop_data", "Shop_data", "shop.data", "x" * 100)}
    assert len(found) == 5
    assert "shop-data" in found
    for name in found:
        names.group_name(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "x" * 129])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        options.volume_name(name)


def test_the_state_folder_is_known_by_the_name_that_the_kernel_gives_its_mounts(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    file = tmp_path / "docker.toml"
    file.write_text(f'state = "{tmp_path}/link/state/"\n')
    assert load(file).state == tmp_path.resolve() / "elsewhere" / "state"
