"""A Linux host that is an object: its sessions, disks, mounts and files, and the commands that change them.

As much of open-iscsi, blkid, mkfs and mount as ``blockyard.hosts`` uses, with their exit codes, and the files of /proc
and /sys that it reads. ``contract`` proves that it behaves as a real one does. A reboot forgets what a reboot forgets.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from blockyard.hosts.commands import Done
from blockyard.hosts.disks import naa
from blockyard.hosts.errors import CommandTimeout
from tests.blockyard.hosts.simulated_target import PORTAL, Content, SimulatedGroup, SimulatedTarget

ROOT_DEVICE = "254:0"
DEVTMPFS = "0:5"
IFACES, NODES = "/etc/iscsi/ifaces", "/etc/iscsi/nodes"
NEW_RECORD = "# BEGIN RECORD 2.1.8\nnode.startup = automatic\nnode.session.auth.authmethod = None\n# END RECORD\n"
MKFS_SECONDS = 2.0


@dataclass
class SimulatedSession:
    number: int
    target: str
    interface: str
    group: SimulatedGroup
    disk: str
    size: int
    """What the kernel believes; a rescan looks again."""
    minor: int
    state: str = "LOGGED_IN"
    secret: str = ""


@dataclass
class SimulatedMount:
    disk: str
    number: str
    folder: str
    kind: str
    content: Content
    session: SimulatedSession
    read_only: bool = False

    def line(self) -> str:
        device, root = (DEVTMPFS, f"/{self.disk}") if self.kind == "devtmpfs" else (self.number, "/")
        folder = self.folder.replace(" ", r"\040")
        flags = "ro" if self.read_only else "rw"
        return f"40 21 {device} {root} {folder} {flags},relatime shared:1 - {self.kind} {self.disk} rw"


@dataclass
class Container:
    pid: int
    mounts: list[SimulatedMount] = field(default_factory=list)


class SimulatedHost:
    def __init__(self, target: SimulatedTarget, iqn: str) -> None:
        self.target = target
        self.iqn = iqn
        self.steps = target.steps
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.sessions: list[SimulatedSession] = []
        self.mounts: list[SimulatedMount] = []
        self.containers: dict[int, Container] = {}
        self.frozen: set[str] = set()
        self.busy: set[str] = set()
        """Folders in which somebody has a file open."""
        self.umount_fails: int | None = None
        """With which code, whatever is unmounted."""
        self.freeze_is_slow = False
        """It is given up, and happens all the same."""
        self.clock = 100.0
        self.boots = 1
        self.commands: list[tuple[str, ...]] = []
        self.half_logins = 0
        """So many logins still leave a session that is not logged in, and fail."""
        self._numbers = 0
        target.on_fenced.append(self._fenced)

    # --- what happens to it ----------------------------------------------------------------------------------------

    def reboot(self) -> None:
        """Power off and on: disks and their file systems, /run and the sessions are gone; files stay."""
        self.sessions, self.mounts, self.containers, self.frozen = [], [], {}, set()
        self.boots += 1
        self.clock = 10.0
        self.files.pop("/run/docker.pid", None)

    def start_container(self, pid: int, folder: str) -> None:
        mounts = [mount for mount in self.mounts if mount.folder in (folder, f"{folder}/disk")]
        assert mounts, f"{folder} is not mounted"
        copies = [SimulatedMount(m.disk, m.number, "/data", m.kind, m.content, m.session, m.read_only) for m in mounts]
        self.containers[pid] = Container(pid, copies)

    def end_container(self, pid: int) -> None:
        del self.containers[pid]

    def start_dockerd(self, pid: int = 900) -> None:
        ticks = int(self.clock * 100)
        self.files["/run/docker.pid"] = f"{pid}\n".encode()
        self.files[f"/proc/{pid}/stat"] = f"{pid} (dockerd) S {' 0' * 18} {ticks} 0".encode()

    def cut(self) -> None:
        """Its connections to the target break; the kernel tries again."""
        for session in self.sessions:
            session.state = "FAILED"

    def reconnect(self) -> None:
        """The target lets in again who may come."""
        for session in self.sessions:
            if self.target.admits(session.target, self.iqn, self.iqn, session.secret) is not None:
                session.state = "LOGGED_IN"

    def _fenced(self, target: str, host: str) -> None:
        for session in self.sessions:
            if host == self.iqn and session.target == target:
                session.state = "FAILED"

    def left(self) -> list[str]:
        """All that a host without volumes does not have."""
        records = [path for path in self.files if path.startswith(NODES)]
        sessions = [f"session {session.number} to {session.target}" for session in self.sessions]
        mounts = [mount.folder for mount in self.mounts]
        folders = [folder for folder in self.folders if folder.endswith("/volumes/") or "/volumes/" in folder]
        return records + sessions + mounts + folders + sorted(self.frozen)

    # --- Host ------------------------------------------------------------------------------------------------------

    def run(self, words: Sequence[str], seconds: float) -> Done:
        self.commands.append(tuple(words))
        program, arguments = words[0], list(words[1:])
        effect = {
            "iscsiadm": self._iscsiadm,
            "blkid": self._blkid,
            "mkfs.ext4": self._mkfs_ext4,
            "mkfs.xfs": self._mkfs_xfs,
            "mount": self._mount,
            "umount": self._umount,
            "resize2fs": self._grow,
            "xfs_growfs": self._grow,
            "fsfreeze": self._fsfreeze,
            "df": self._df,
        }[program]

        def whole() -> Done:
            code, stdout, stderr = effect(arguments)
            return Done(tuple(words), code, stdout, stderr)

        if program in ("blkid", "df"):
            self.steps.look()
            return whole()
        halfway = (lambda: self._half_made(arguments[-1], program)) if program.startswith("mkfs") else None
        return self.steps.do(" ".join(words[:2]), whole, halfway)

    def read(self, path: str, length: int | None = None) -> bytes:
        self.steps.look()
        content = self._file(path)
        return content if length is None else content[:length]

    def write(self, path: str, text: str) -> None:
        self.steps.do(f"write {path}", lambda: self._write(path, text))

    def replace(self, path: str, content: bytes, *, by_way_of: str | None = None) -> None:
        temporary = by_way_of or f"{path}.new"

        def halfway() -> None:
            self.files[temporary] = content[: len(content) // 2]

        def whole() -> None:
            self.files.pop(temporary, None)
            self._store(path, content)

        self.steps.do(f"replace {path}", whole, halfway)

    def touch(self, path: str) -> None:
        self.steps.do(f"touch {path}", lambda: self.files.setdefault(path, b""))

    def make_folder(self, path: str) -> None:
        self.steps.do(f"mkdir {path}", lambda: self.folders.add(path))

    def remove(self, path: str) -> None:
        self.steps.do(f"remove {path}", lambda: self._remove(path))

    def names(self, folder: str) -> list[str]:
        self.steps.look()
        made = self._kernel_names(folder)
        if made is not None:
            return sorted(made)
        paths = [*self.files, *self.folders]
        return sorted({path[len(folder) + 1 :].partition("/")[0] for path in paths if path.startswith(folder + "/")})

    def link(self, path: str) -> str | None:
        self.steps.look()
        pid = path.split("/")[2]
        return f"mnt:[{pid}]" if pid.isdigit() and int(pid) in self.containers else "mnt:[1]"

    def now(self) -> float:
        self.steps.look()
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.steps.look()
        self.clock += seconds

    # --- files -----------------------------------------------------------------------------------------------------

    def _mount_of(self, path: str) -> SimulatedMount | None:
        found = [m for m in self.mounts if m.kind != "devtmpfs" and path.startswith(m.folder + "/")]
        return found[-1] if found else None

    def _file(self, path: str) -> bytes:
        mount = self._mount_of(path)
        if mount is not None:
            self._need_session(mount)
            return _or_missing(mount.content.files.get(path.removeprefix(mount.folder)))
        if path == "/proc/sys/kernel/random/boot_id":
            return f"boot-{self.boots}\n".encode()
        if path.endswith("/mountinfo"):
            return self._mountinfo(path.split("/")[2])
        if path.startswith("/sys/"):
            return _or_missing(self._attribute(path))
        if path.startswith("/dev/"):
            return self._bytes_of(self._session_of(path.removeprefix("/dev/")).group.content)
        return _or_missing(self.files.get(path))

    def _bytes_of(self, content: Content) -> bytes:
        marks = {
            "half-xfs": b"\0" * 126 + b"\1",
            "half-ext4": b"\0" * 2048 + b"descriptors",
            "junk": b"junk",
            "xfs": b"XFSB",
            "ext4": b"\0" * 1080 + b"\x53\xef",
        }
        return marks.get(content.kind or "", b"").ljust(65536, b"\0")

    def _store(self, path: str, content: bytes) -> None:
        mount = self._mount_of(path)
        if mount is None:
            self.files[path] = content
            return
        self._need_session(mount)
        mount.content.files[path.removeprefix(mount.folder)] = content

    def _need_session(self, mount: SimulatedMount) -> None:
        if mount.session not in self.sessions or mount.session.state != "LOGGED_IN":
            raise OSError(errno.EIO, "Input/output error")

    def _write(self, path: str, text: str) -> None:
        if path.endswith("/device/rescan"):
            session = self._session_of(path.split("/")[3])
            session.size = session.group.size
        elif path.startswith("/dev/"):
            kind = "half-ext4" if text.startswith("\0" * 2048) else "junk"
            self._session_of(path.removeprefix("/dev/")).group.content.kind = kind
        else:
            raise FileNotFoundError(path)

    def _remove(self, path: str) -> None:
        if any(mount.folder == path for mount in self.mounts):
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.files.pop(path, None)
        if any(other.startswith(path + "/") for other in (*self.files, *self.folders)):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        self.folders.discard(path)

    # --- /proc and /sys --------------------------------------------------------------------------------------------

    def _mountinfo(self, pid: str) -> bytes:
        inside = pid.isdigit() and int(pid) in self.containers
        mounts = self.containers[int(pid)].mounts if inside else self.mounts
        lines = [f"21 1 {ROOT_DEVICE} / / rw - ext4 vda rw", *(mount.line() for mount in mounts)]
        return "".join(f"{line}\n" for line in lines).encode()

    def _attribute(self, path: str) -> bytes | None:
        words = path.split("/")
        if path.startswith("/sys/class/iscsi_session/"):
            session = next((each for each in self.sessions if f"session{each.number}" == words[4]), None)
            if session is None:
                return None
            shown = {"targetname": session.target, "state": session.state, "ifacename": session.interface}
            return f"{shown[words[5]]}\n".encode() if words[5] in shown else None
        session = next((each for each in self.sessions if each.disk == words[3]), None)
        if session is None:
            return None
        uuid = session.group.uuid
        shown = {
            "dev": f"8:{session.minor}",
            "size": str(session.size // 512),
            "ro": "0",
            "device/wwid": f"naa.{naa(uuid)}",
            "device/vpd_pg80": f"\0\x80\0\x20{uuid.hex}",
        }
        attribute = "/".join(words[4:])
        return shown[attribute].encode() if attribute in shown else None

    def _kernel_names(self, folder: str) -> list[str] | None:
        if folder == "/proc":
            return ["1", "self", *(str(pid) for pid in self.containers)]
        if folder == "/sys/class/iscsi_session":
            return [f"session{session.number}" for session in self.sessions]
        if folder.startswith("/sys/fs/"):
            kind = folder.rpartition("/")[2]
            every = self.mounts + [mount for each in self.containers.values() for mount in each.mounts]
            return [mount.disk for mount in every if mount.kind == kind]
        for session in self.sessions:
            top = f"/sys/class/iscsi_session/session{session.number}/device"
            unit = f"{session.number}:0:0:0"
            tree = {
                top: [f"target{session.number}:0:0", "power"],
                f"{top}/target{session.number}:0:0": [unit, "uevent"],
                f"{top}/target{session.number}:0:0/{unit}/block": [session.disk],
            }
            if folder in tree:
                return tree[folder]
        return None

    # --- open-iscsi ------------------------------------------------------------------------------------------------

    def _iscsiadm(self, words: list[str]) -> tuple[int, str, str]:
        given = dict(pairwise(words))
        mode = given["-m"]
        if mode == "iface":
            text = self.files.get(f"{IFACES}/{given['-I']}", b"iface.iscsi_ifacename = x\n").decode()
            text += "iface.transport_name = tcp\n" if given["-o"] == "update" else ""
            self.files[f"{IFACES}/{given['-I']}"] = text.encode()
            return 0, "", ""
        if mode == "session":
            return self._session_verb(given["-r"], words)
        if "--login" in words:
            return self._login(given)
        if given["-o"] == "new":
            self.files[self._record_path(given)] = NEW_RECORD.encode()
            return 0, "", ""
        paths = [path for path in self.files if path.startswith(f"{NODES}/{given['-T']}/")]
        for path in paths:
            del self.files[path]
        return (0, "", "") if paths else (21, "", "iscsiadm: No records found")

    def _record_path(self, given: dict[str, str]) -> str:
        portal = given["-p"].partition(",")[0].replace(":", ",")
        return f"{NODES}/{given['-T']}/{portal},1/{given['-I']}"

    def _login(self, given: dict[str, str]) -> tuple[int, str, str]:
        record = self.files.get(self._record_path(given))
        if record is None:
            return 21, "", "iscsiadm: No records found"
        if any(s.target == given["-T"] and s.interface == given["-I"] for s in self.sessions):
            return 15, "", "iscsiadm: session exists"
        if not self.target.reachable or not given["-p"].startswith(PORTAL):
            self.clock += 15
            return 8, "", "iscsiadm: initiator reported error (8 - connection timed out)"
        settings = dict(line.partition(" = ")[::2] for line in record.decode().splitlines())
        assert settings["node.startup"] == "manual", "a volume must not come up by itself at boot"
        user, secret = settings.get("node.session.auth.username", ""), settings.get("node.session.auth.password", "")
        group = self.target.admits(given["-T"], self.iqn, user, secret)
        if group is None or settings["node.session.auth.authmethod"] != "CHAP":
            return 24, "", "iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)"
        session = self._new_session(given["-T"], given["-I"], group, secret)
        if self.half_logins:
            self.half_logins -= 1
            session.state = "FREE"
            return 8, "", "iscsiadm: initiator reported error (8 - connection timed out)"
        return 0, "", ""

    def _new_session(self, target: str, interface: str, group: SimulatedGroup, secret: str) -> SimulatedSession:
        taken = {session.minor for session in self.sessions} | {int(m.number.partition(":")[2]) for m in self.mounts}
        taken |= {int(m.number.partition(":")[2]) for each in self.containers.values() for m in each.mounts}
        minor = next(number for number in range(0, 400, 16) if number not in taken)
        self._numbers += 1
        disk = f"sd{chr(ord('a') + minor // 16)}"
        session = SimulatedSession(self._numbers, target, interface, group, disk, group.size, minor, secret=secret)
        self.sessions.append(session)
        return session

    def _session_verb(self, number: str, words: list[str]) -> tuple[int, str, str]:
        session = next((each for each in self.sessions if str(each.number) == number), None)
        if session is None:
            return 21, "", "iscsiadm: No session found."
        if "--logout" in words:
            self.sessions.remove(session)
        else:
            session.size = session.group.size
        return 0, "", ""

    def _session_of(self, disk: str) -> SimulatedSession:
        for session in self.sessions:
            if session.disk == disk:
                return session
        raise FileNotFoundError(f"/dev/{disk}")

    # --- file systems ----------------------------------------------------------------------------------------------

    def _blkid(self, words: list[str]) -> tuple[int, str, str]:
        kind = self._session_of(words[-1].removeprefix("/dev/")).group.content.kind
        if kind in (None, "junk", "half-ext4"):
            return 2, "", ""
        return 0, f"DEVNAME={words[-1]}\nTYPE={'xfs' if kind == 'half-xfs' else kind}\n", ""

    def _mkfs_ext4(self, words: list[str]) -> tuple[int, str, str]:
        return self._mkfs("ext4", words)

    def _mkfs_xfs(self, words: list[str]) -> tuple[int, str, str]:
        return self._mkfs("xfs", words)

    def _mkfs(self, kind: str, words: list[str]) -> tuple[int, str, str]:
        session = self._session_of(words[-1].removeprefix("/dev/"))
        assert not any(mount.session is session for mount in self.mounts), "mkfs of a mounted disk"
        assert not session.group.content.files, "mkfs of a disk with data"
        self.clock += MKFS_SECONDS
        session.group.content = Content(kind, session.size)
        return 0, "", ""

    def _half_made(self, path: str, program: str) -> None:
        content = self._session_of(path.removeprefix("/dev/")).group.content
        content.kind = "half-xfs" if program == "mkfs.xfs" else "half-ext4"

    def _mount(self, words: list[str]) -> tuple[int, str, str]:
        disk, folder = words[-2].removeprefix("/dev/"), words[-1]
        session = self._session_of(disk)
        content, number = session.group.content, f"8:{session.minor}"
        if "--bind" in words:
            self.mounts.append(SimulatedMount(disk, number, folder, "devtmpfs", content, session))
            return 0, "", ""
        kind, options = words[words.index("-t") + 1], words[words.index("-o") + 1].split(",")
        if content.kind != kind:
            return 32, "", f"mount: {folder}: wrong fs type, bad option, bad superblock on {words[-2]}"
        self.mounts.append(SimulatedMount(disk, number, folder, kind, content, session, "ro" in options))
        return 0, "", ""

    def _umount(self, words: list[str]) -> tuple[int, str, str]:
        found = [mount for mount in self.mounts if mount.folder == words[-1]]
        if not found:
            return 32, "", f"umount: {words[-1]}: not mounted."
        if self.umount_fails is not None:
            return self.umount_fails, "", f"umount: {words[-1]}: failed."
        if words[-1] in self.busy and "--lazy" not in words:
            return 32, "", f"umount: {words[-1]}: target is busy."
        self.mounts.remove(found[-1])
        return 0, "", ""

    def _grow(self, words: list[str]) -> tuple[int, str, str]:
        mount = next(m for m in self.mounts if words[-1] in (m.folder, f"/dev/{m.disk}"))
        mount.content.filesystem_size = mount.session.size
        return 0, "", ""

    def _fsfreeze(self, words: list[str]) -> tuple[int, str, str]:
        folder = words[-1]
        change: Callable[[str], None] = self.frozen.add if words[0] == "--freeze" else self.frozen.discard
        if (words[0] == "--freeze") == (folder in self.frozen):
            return 1, "", f"fsfreeze: {folder}: freeze failed: Device or resource busy"
        change(folder)
        if words[0] == "--freeze" and self.freeze_is_slow:
            raise CommandTimeout(f"`fsfreeze --freeze {folder}` did not end within 30 s: killed")
        return 0, "", ""

    def _df(self, words: list[str]) -> tuple[int, str, str]:
        mount = next(mount for mount in self.mounts if mount.folder == words[-1])
        return 0, f"1B-blocks\n{mount.content.filesystem_size}\n", ""


def _or_missing(content: bytes | None) -> bytes:
    if content is None:
        raise FileNotFoundError
    return content
