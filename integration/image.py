"""The guest image: a stock Debian made from packages once, kept in the user's cache, never changed afterwards.

Not a running guest (``guest.py``). The cache folder's name is a hash of the recipe below, so a changed recipe is a new
image and old ones go. Invariant: a folder that has its final name is whole, because it is built under another name and
renamed last, by whoever holds the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration import cpio, mirror

SUITE = "bookworm"
PACKAGES = (
    "linux-image-cloud-amd64",
    "udev", "kmod", "util-linux", "procps", "iproute2", "busybox-static", "python3", "systemd", "dbus",
    "open-iscsi", "sg3-utils", "lsscsi", "e2fsprogs", "xfsprogs", "fio",
    "docker.io", "containerd", "runc", "iptables",
)  # fmt: skip
DISK_SIZE = "4G"  # sparse; room for dockerd's images, discarded with the guest

# What stands between the kernel and its root disk, the agent's port and the network. The cloud kernel has them as
# modules; it has everything else that a guest loads on its root disk.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_console", "virtio_net", "virtio-rng", "crc32c-intel")

INITRAMFS_SCRIPT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /root
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/$module"; done < /modules/order
until /bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t tmpfs run /root/run
/bin/busybox cp -r /harness /root/run/harness
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /bin/sh /run/harness/integration/inside/init.sh
"""

ROOT_DISK = "root.ext4"
KERNEL = "vmlinuz"
INITRAMFS = "initramfs.cpio"


class ImageError(RuntimeError):
    """The image cannot be built here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image on disk. Its files are shared by all guests and never written."""

    folder: Path

    @property
    def root_disk(self) -> Path:
        return self.folder / ROOT_DISK

    @property
    def kernel(self) -> Path:
        return self.folder / KERNEL

    @property
    def initramfs(self) -> Path:
        """The cached part: busybox, boot modules and ``/init``; a guest appends ``/harness``."""
        return self.folder / INITRAMFS


def get(cache: Path | None = None) -> Image:
    """The image of this recipe, built now (about a minute) unless the cache has it."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockyard"
    cache.mkdir(parents=True, exist_ok=True)
    final = cache / f"guest-{recipe_hash()}"
    if not final.exists():
        with _locked(cache / "guest.lock"):
            if not final.exists():
                _remove_others(cache)
                _build_into(final)
    return Image(final)


def recipe_hash() -> str:
    recipe = repr((SUITE, PACKAGES, DISK_SIZE, BOOT_MODULES, INITRAMFS_SCRIPT))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another run is building the guest image; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_others(cache: Path) -> None:
    """Torn builds and images of former recipes: about 1 GB each."""
    for folder in cache.glob("guest-*"):
        _say(f"removing {folder}")
        _as_root("rm", "-rf", "--one-file-system", str(folder))


def _build_into(final: Path) -> None:
    for tool in ("debootstrap", "mke2fs", "unshare"):
        if shutil.which(tool, path=_root_path()) is None:
            raise ImageError(f"{tool} is not installed; integration/debian-packages.txt lists what the host needs")
    started = time.monotonic()
    building = final.with_name(final.name + ".building")
    root = building / "root"
    root.mkdir(parents=True)
    _debootstrap(root)
    _say("packing the guest's disk")
    (building / KERNEL).write_bytes(_only(root.glob("boot/vmlinuz-*")).read_bytes())
    (building / INITRAMFS).write_bytes(_initramfs(root))
    _as_root("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(building / ROOT_DISK), DISK_SIZE)
    _as_root("chown", str(os.getuid()), str(building / ROOT_DISK))
    _as_root("rm", "-rf", "--one-file-system", str(root))
    building.rename(final)
    _say(f"guest image ready after {time.monotonic() - started:.0f} s in {final}")


def _debootstrap(root: Path) -> None:
    uri = mirror.find(SUITE)
    _say(f"building the guest image: {SUITE} with {len(PACKAGES)} packages (about a minute)")
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
    # INITRD=No: Debian's own initramfs would take longer to make than all the rest, and nothing would boot from it.
    environment = [f"{name}={value}" for name, value in {**mirror.proxy_environment(), "INITRD": "No"}.items()]
    # A private mount namespace: whatever debootstrap mounts below the root is gone with it, also when it is killed.
    command = ["unshare", "--mount", "env", *environment, "debootstrap", *options, SUITE, str(root), uri]
    log = root.parent / "debootstrap.log"
    with log.open("wb") as output:
        process = subprocess.Popen(_rooted(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            output.write(line)
            if count % 100 == 0:
                _say("  " + line.decode(errors="replace").strip())
    if process.wait() != 0:
        tail = log.read_bytes()[-2000:].decode(errors="replace")
        raise ImageError(f"debootstrap ended with code {process.returncode}; the end of its output:\n{tail}")


def _initramfs(root: Path) -> bytes:
    modules = _only(root.glob("lib/modules/*"))
    files = {"init": INITRAMFS_SCRIPT.encode(), "bin/busybox": (root / "bin/busybox").read_bytes()}
    order = list(_load_order(modules))
    for path in order:
        files[f"modules/{path.name}"] = path.read_bytes()
    files["modules/order"] = "".join(f"modules/{path.name}\n" for path in order).encode()
    return cpio.archive(files, executable=frozenset({"init", "bin/busybox"}))


def _load_order(modules: Path) -> Iterator[Path]:
    """The boot modules with everything they need, each after what it needs (depmod lists the deepest last)."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        needs[Path(path).stem] = [*reversed(needed.split()), path]
    built_in = {Path(line).stem for line in (modules / "modules.builtin").read_text().splitlines()}
    seen: set[str] = set()
    for module in BOOT_MODULES:
        if module in built_in:
            continue
        for path in needs[module]:
            if path not in seen:
                seen.add(path)
                yield modules / path


def _only(paths: Iterator[Path]) -> Path:
    found = sorted(paths)
    if len(found) != 1:
        raise ImageError(f"expected one kernel in the guest image, found {[path.name for path in found]}")
    return found[0]


def _root_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _rooted(command: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") is None:
        raise ImageError("building the guest image needs root (debootstrap): run it as root once, or install sudo")
    return ["sudo", "--non-interactive", *command]


def _as_root(*command: str) -> None:
    environment = {**os.environ, "PATH": _root_path()}
    done = subprocess.run(_rooted(list(command)), capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise ImageError(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr.strip()}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(get().folder)
    except (ImageError, mirror.NoMirror) as error:
        sys.exit(str(error))
