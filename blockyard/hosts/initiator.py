"""open-iscsi as verbs: log in, log out, and what sessions the kernel has.

Everything that is ours goes by an interface record of our own name (iscsiadm(8), "iface"), and the kernel shows that
name with each session: so ours are told from an administrator's without keeping a list. Invariants: every call of
iscsiadm has a limit; a login that fails leaves neither session nor node record; the secret never is on a command line;
of several logins at a time one writes to iscsiadm's database.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from blockyard.hosts.commands import Deadline, Done, Host, read_text
from blockyard.hosts.errors import CommandTimeout, HostError, LoginRefused, TargetUnreachable
from blockyard.model import ChapCredentials

INTERFACE = "blockyard"
LOGGED_IN = "LOGGED_IN"

# iscsiadm's exit codes (open-iscsi, include/iscsi_err.h).
_OK = 0
_NOT_FOUND = 6  # no such record
_SESSION_EXISTS = 15
_LOGIN_AUTH_FAILED = 24
_NO_OBJECTS_FOUND = 21

_SESSIONS = "/sys/class/iscsi_session"
_DATABASES = ("/etc/iscsi", "/var/lib/iscsi")  # Debian's, and that of others since 2.1.9
_PORTAL_GROUP_TAG = 1  # the target has one portal group; with the tag iscsiadm makes a record for each interface

_ASK_SECONDS = 20.0  # for calls that reach no network; generous, because a busy host is no reason to fail
_LOGIN_SECONDS = 30.0
_LOGOUT_SECONDS = 40.0  # iscsid gives a silent target 15 s (logout_timeout) before it drops the session
_GONE_SECONDS = 10.0  # for the kernel to take a session away that was logged out
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a session is."""

    replacement: int = 120
    """Seconds that I/O waits for a target that is away, before the file system gets an error. Long enough for a target
    that is restarted; a host that was fenced waits as long, unless its session is taken down."""
    ping_interval: int = 5
    ping_timeout: int = 5
    """Seconds; together the time until a dead connection is noticed."""


@dataclass(frozen=True, slots=True)
class Session:
    """One of ours."""

    name: str
    """Below /sys/class/iscsi_session, as session7."""
    target: str
    state: str

    @property
    def number(self) -> str:
        return self.name.removeprefix("session")

    @property
    def logged_in(self) -> bool:
        return self.state == LOGGED_IN


class Initiator:
    """This host's open-iscsi."""

    def __init__(self, host: Host, timing: Timing | None = None) -> None:
        self._host = host
        self._timing = timing or Timing()
        self._writing = threading.Lock()

    # --- what there is ---------------------------------------------------------------------------------------------

    def sessions(self) -> list[Session]:
        found = []
        for name in self._host.names(_SESSIONS):
            folder = f"{_SESSIONS}/{name}"
            target, state = read_text(self._host, f"{folder}/targetname"), read_text(self._host, f"{folder}/state")
            if target and state and read_text(self._host, f"{folder}/ifacename") == INTERFACE:
                found.append(Session(name, target, state))
        return found

    def session(self, target: str) -> Session | None:
        """The one to this target; one that is logged in before others."""
        found = [session for session in self.sessions() if session.target == target]
        return next((session for session in found if session.logged_in), found[0] if found else None)

    def remembered(self) -> list[str]:
        """Targets that there is a node record of ours for."""
        return sorted({target for target, _ in self._records()})

    # --- log in ----------------------------------------------------------------------------------------------------

    def log_in(self, target: str, portals: Sequence[str], chap: ChapCredentials, deadline: Deadline) -> Session:
        """By the first portal that answers. Raises LoginRefused, TargetUnreachable."""
        said = []
        for portal in portals:
            try:
                return self._log_in_by(portal, target, chap, deadline)
            except TargetUnreachable as error:
                said.append(f"{portal}: {error}")
        raise TargetUnreachable(f"no portal of {target} lets this host in: {'; '.join(said) or 'it has none'}")

    def _log_in_by(self, portal: str, target: str, chap: ChapCredentials, deadline: Deadline) -> Session:
        with self._writing:
            self._need_interface()
            self._remember(target, portal, chap)
        try:
            done = self._node(target, portal, "--login", seconds=deadline.left(_LOGIN_SECONDS))
        except CommandTimeout as error:
            self.log_out(target)
            raise TargetUnreachable(str(error)) from error
        session = self.session(target)
        if done.code in (_OK, _SESSION_EXISTS) and session is not None:
            return session
        self.log_out(target)
        if done.code == _LOGIN_AUTH_FAILED:
            raise LoginRefused(f"{target} refuses this host: {_said(done)}")
        raise TargetUnreachable(_said(done))

    def _need_interface(self) -> None:
        for database in _DATABASES:
            record = read_text(self._host, f"{database}/ifaces/{INTERFACE}")
            if record is not None and "iface.transport_name = tcp" in record:
                return
        self._iscsiadm("-m", "iface", "-I", INTERFACE, "-o", "new").check()
        self._iscsiadm(
            "-m", "iface", "-I", INTERFACE, "-o", "update", "-n", "iface.transport_name", "-v", "tcp"
        ).check()  # fmt: skip

    def _remember(self, target: str, portal: str, chap: ChapCredentials) -> None:
        """A node record with all that the login needs.

        ``-o new`` fills it from iscsid.conf; then the file itself is replaced, once and whole: a secret given to
        ``-o update`` could be read by everybody in the process list, and each setting would be a moment of its own.
        """
        self.forget(target)
        self._node(target, portal, "-o", "new").check()
        paths = [path for remembered, path in self._records() if remembered == target]
        if not paths:
            raise HostError(f"iscsiadm made a node record for {target}, but it is in none of {', '.join(_DATABASES)}")
        for path in paths:
            record = self._host.read(path).decode()
            # Not beside it: there every file is taken for a record.
            database = next(each for each in _DATABASES if path.startswith(f"{each}/"))
            settled = _with_settings(record, self._settings(chap)).encode()
            self._host.replace(path, settled, by_way_of=f"{database}/.{INTERFACE}.new")

    def _settings(self, chap: ChapCredentials) -> dict[str, str]:
        timing = self._timing
        return {
            "node.startup": "manual",
            "node.conn[0].startup": "manual",
            "node.session.auth.authmethod": "CHAP",
            "node.session.auth.chap_algs": "SHA256,MD5",
            "node.session.auth.username": chap.user,
            "node.session.auth.password": chap.secret,
            "node.session.timeo.replacement_timeout": str(timing.replacement),
            "node.session.initial_login_retry_max": "1",  # whoever asks tries again, and knows until when
            "node.conn[0].timeo.login_timeout": "15",
            "node.conn[0].timeo.noop_out_interval": str(timing.ping_interval),
            "node.conn[0].timeo.noop_out_timeout": str(timing.ping_timeout),
        }

    def rescan(self, session: Session, deadline: Deadline) -> None:
        """Look for new disks and new sizes."""
        seconds = deadline.left(_ASK_SECONDS)
        self._iscsiadm("-m", "session", "-r", session.number, "--rescan", seconds=seconds).check()

    # --- log out ---------------------------------------------------------------------------------------------------

    def log_out(self, target: str) -> None:
        """No session and no node record of ours for this target any more; nothing happens when there was none."""
        for session in self.sessions():
            if session.target == target:
                self._end(session)
        self.forget(target)

    def _end(self, session: Session) -> None:
        words = ("-m", "session", "-r", session.number, "--logout")
        done = self._iscsiadm(*words, seconds=_LOGOUT_SECONDS)
        deadline = Deadline(self._host, _GONE_SECONDS)
        while session.name in self._host.names(_SESSIONS):
            if done.code not in (_OK, _NO_OBJECTS_FOUND):
                done.check()
            if deadline.over:
                raise HostError(f"{session.name} to {session.target} is still there {_GONE_SECONDS:.0f} s after logout")
            self._host.sleep(_POLL)

    def forget(self, target: str) -> None:
        """Remove the node records of ours for this target."""
        if any(remembered == target for remembered, _ in self._records()):
            done = self._iscsiadm("-m", "node", "-T", target, "-I", INTERFACE, "-o", "delete")
            if done.code not in (_OK, _NO_OBJECTS_FOUND, _NOT_FOUND):
                done.check()

    # --- iscsiadm --------------------------------------------------------------------------------------------------

    def _records(self) -> list[tuple[str, str]]:
        """Target and file of each node record of ours."""
        names = self._host.names
        return [
            (target, f"{database}/nodes/{target}/{portal}/{INTERFACE}")
            for database in _DATABASES
            for target in names(f"{database}/nodes")
            for portal in names(f"{database}/nodes/{target}")
            if INTERFACE in names(f"{database}/nodes/{target}/{portal}")
        ]

    def _node(self, target: str, portal: str, *words: str, seconds: float = _ASK_SECONDS) -> Done:
        where = ("-T", target, "-p", f"{portal},{_PORTAL_GROUP_TAG}", "-I", INTERFACE)
        return self._iscsiadm("-m", "node", *where, *words, seconds=seconds)

    def _iscsiadm(self, *words: str, seconds: float = _ASK_SECONDS) -> Done:
        return self._host.run(("iscsiadm", *words), seconds)


def _with_settings(record: str, settings: dict[str, str]) -> str:
    """``record`` with each setting once. The lines between BEGIN and END are ``name = value``, in any order."""
    lines = [line for line in record.splitlines() if line.partition(" = ")[0] not in settings]
    end = next((number for number, line in enumerate(lines) if line.startswith("# END RECORD")), len(lines))
    lines[end:end] = [f"{name} = {value}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _said(done: Done) -> str:
    """iscsiadm's reason: of its lines the one that names the error."""
    lines = [line.removeprefix("iscsiadm: ") for line in done.stderr.splitlines()]
    reasons = [line for line in lines if "error" in line]
    return f"iscsiadm ended with code {done.code}: {(reasons or lines or ['no reason given'])[0]}"
