"""The volumes of this host: mounted for Docker's ids, and taken down when the last of them is gone.

What is wanted stands in the book (a volume with ids is mounted, one without is not), what is there in the kernel and
at the target; the steps between are ``hosts``'. All methods but ``folder`` and ``trouble_of`` want the volume's lock.
Invariant: a record is written before the first step that leaves something behind, and removed after the last one.
"""

from __future__ import annotations

import logging
import shlex

from blockyard.docker import options as opts
from blockyard.docker.book import Book, Record
from blockyard.docker.catalogue import Catalogue
from blockyard.docker.config import DockerConfig
from blockyard.docker.locks import VolumeLocks
from blockyard.errors import Invalid, NotFound, ProductError, Unavailable
from blockyard.hosts.api import HostApi
from blockyard.hosts.attach import Condition, bring_up, condition, follow_size, take_down, tear_down
from blockyard.hosts.claim import claim
from blockyard.hosts.commands import Deadline, Host
from blockyard.hosts.errors import HostError, TargetUnreachable
from blockyard.hosts.filesystems import Wanted, unmount
from blockyard.hosts.initiator import Initiator
from blockyard.hosts.mounts import mount_at, seen_elsewhere
from blockyard.model import Group
from blockyard.model.attachments import Attached, AttachMode

log = logging.getLogger("blockyard.docker")

_IN_PLACE = (Condition.MOUNTED, Condition.INTERRUPTED)
_FORGOTTEN_SECONDS = 120.0  # after a restart; Docker repeats a request that was cut off for 30 s


class Volumes:
    def __init__(
        self,
        host: Host,
        api: HostApi,
        iqn: str,
        initiator: Initiator,
        book: Book,
        catalogue: Catalogue,
        config: DockerConfig,
    ) -> None:
        self.book = book
        self.locks = VolumeLocks()
        self._host = host
        self._api = api
        self._iqn = iqn
        self._initiator = initiator
        self._catalogue = catalogue
        self._config = config
        self._started = host.now()
        self._troubles: dict[str, str] = {}

    @property
    def root(self) -> str:
        """Below it everything is mounted."""
        return f"{self._config.state}/volumes"

    def folder(self, volume: str) -> str:
        return f"{self.root}/{volume}"

    def trouble_of(self, volume: str) -> str | None:
        """What has happened to it here since it was mounted last."""
        return self._troubles.get(volume)

    # --- mount -----------------------------------------------------------------------------------------------------

    def mount(self, volume: str, group: Group, each: str, deadline: Deadline) -> str:
        if len(group.volumes) != 1:
            raise Invalid(f"group {group.name} has {len(group.volumes)} volumes; Docker can mount a group of 1")
        record = self.book.get(volume)
        state = self._condition(volume, record)
        if record is not None and record.ids and state is Condition.MOUNTED:
            # Its session is logged in, so the host was not fenced: no need to ask the target, which may be away.
            self.book.put(volume, record.with_id(each, self._host.now()))
            return self.folder(volume)
        if record is not None and state is Condition.BROKEN:
            record = self._clear(volume, record, "what was mounted before does not work any more")
        record = record or Record(group=group.name)
        self.book.put(volume, record)
        try:
            record = self._bring_up(volume, group, record, deadline)
        except (HostError, ProductError):
            self._undo(volume)
            raise
        self.book.put(volume, record.with_id(each, self._host.now()))
        self._troubles.pop(volume, None)
        return self.folder(volume)

    def _bring_up(self, volume: str, group: Group, record: Record, deadline: Deadline) -> Record:
        mode = opts.access_of(group)
        patience = Deadline(self._host, min(self._config.takeover_patience, deadline.left()))
        attached = claim(self._api, self._host, self._iqn, group.name, mode, patience)
        attachment = attached.attachment
        if record.generation not in (0, attachment.generation):
            # It was somebody else's meanwhile: nothing that this host still holds of it is to be trusted.
            record = self._clear(volume, record, "another host had it meanwhile")
        record = record.model_copy(update={"target": attachment.target, "generation": attachment.generation})
        self.book.put(volume, record)
        if self._condition(volume, record) in _IN_PLACE:
            return record
        wanted = self._wanted(volume, group, attached)
        kind = bring_up(self._host, self._initiator, attached, wanted, deadline)
        return record.model_copy(update={"kind": kind, "read_only": wanted.read_only})

    def _wanted(self, volume: str, group: Group, attached: Attached) -> Wanted:
        read_only = attached.attachment.mode is AttachMode.READ_ONLY_MANY
        return Wanted(
            kind=opts.kind_of(group, self._config.default_fs),
            folder=self.folder(volume),
            make_options=tuple(shlex.split(group.labels.get(opts.MAKE_OPTIONS, ""))),
            mount_options=() if read_only else self._config.mount_options,
            read_only=read_only,
            ours=opts.CREATED_BY in group.labels and group.origin is None,
            any_kind=opts.FILESYSTEM not in group.labels,
        )

    def _undo(self, volume: str) -> None:
        """After a mount that failed; the failure is what Docker shall hear, so another one is only logged."""
        try:
            self.settle(volume)
        except (HostError, ProductError) as error:
            log.warning("volume %s: left for later: %s", volume, error)

    # --- unmount ---------------------------------------------------------------------------------------------------

    def unmount(self, volume: str, each: str) -> None:
        record = self.book.get(volume)
        if record is None:
            return
        if each in record.ids:
            self.book.put(volume, record.without(each))
        try:
            self.settle(volume)
        except ProductError as error:
            # Here it is unmounted; the target hears of it when it answers again.
            log.warning("volume %s: %s", volume, error)

    def settle(self, volume: str) -> bool:
        """Take down what no id wants: unmount, log out, give it back. False: there are ids. Raises HostError,
        ProductError; then it has to be repeated."""
        record = self.book.get(volume)
        if record is None:
            return True
        if record.ids:
            return False
        self._take_down(volume, record)
        self._give_back(record)
        self.book.remove(volume)
        return True

    def _take_down(self, volume: str, record: Record) -> None:
        folder, state = self.folder(volume), self._condition(volume, record)
        if record.target is None:
            unmount(self._host, folder, lazy=True)  # found in the kernel, and its session is gone
        elif state is Condition.BROKEN or (state is Condition.INTERRUPTED and self._fenced(record)):
            tear_down(self._host, self._initiator, record.target, folder)
        elif state is Condition.INTERRUPTED:
            # An unmount would hang on what is still to be written, or lose it. When the target stays away for longer
            # than the session waits, the file system fails, and is broken.
            raise TargetUnreachable(f"volume {volume} is unmounted when its session to {record.target} is back")
        else:
            take_down(self._host, self._initiator, record.target, folder)

    def _give_back(self, record: Record) -> None:
        group = record.group or (record.target and self._catalogue.of_target(record.target))
        if not group:
            if record.target is not None and self._catalogue.trouble is not None:
                raise Unavailable(f"whose target {record.target} is can't be asked: {self._catalogue.trouble}")
            return
        try:
            self._api.release(group, self._iqn)
        except NotFound:  # deleted meanwhile
            return

    # --- between requests ------------------------------------------------------------------------------------------

    def check(self, volume: str) -> None:
        """Finish what was begun, notice what broke. Raises HostError, ProductError; it is repeated anyway."""
        record = self.book.get(volume)
        if record is None:
            return
        if not record.ids:
            self.settle(volume)
            return
        why = self._broken(volume, record)
        if why is not None:
            self._clear(volume, record, why)
            self.settle(volume)
        elif self._condition(volume, record) is Condition.MOUNTED:
            self._forget_ids(volume, record)
            self._follow_size(volume, record)

    def _broken(self, volume: str, record: Record) -> str | None:
        """Why it will not work again; None: it does, or may yet."""
        state = self._condition(volume, record)
        if state is Condition.INTERRUPTED:
            return "fenced: another host has taken it over" if self._fenced(record) else None
        if state is Condition.MOUNTED:
            return None
        return {Condition.BROKEN: "its disk or its file system has failed"}.get(state, "it is not mounted any more")

    def _clear(self, volume: str, record: Record, why: str) -> Record:
        """Nothing of it is left here, whoever had it; returns its record without ids."""
        log.warning("volume %s: %s; cleaning up", volume, why)
        self._troubles[volume] = why
        if record.target is not None:
            tear_down(self._host, self._initiator, record.target, self.folder(volume))
        record = record.model_copy(update={"ids": {}, "generation": 0})
        self.book.put(volume, record)
        return record

    def _forget_ids(self, volume: str, record: Record) -> None:
        """Ids that a restart of Docker or of this plugin has lost: no container has the volume, long after it.

        Docker may be killed between a mount and its own note of it, or the plugin before its answer has gone out.
        """
        docker = self._docker_started()
        mounted = mount_at(self._host, self._place(volume, record))
        if docker is None or mounted is None:
            return
        restart = max(docker, self._started)
        old = [each for each, at in record.ids.items() if at < restart]
        if not old or self._host.now() < restart + _FORGOTTEN_SECONDS or seen_elsewhere(self._host, mounted):
            return
        log.warning("volume %s: no container has it since the restart; forgetting %s", volume, ", ".join(old))
        self.book.put(volume, record.without(*old))
        self.settle(volume)

    def _docker_started(self) -> float | None:
        """Seconds since boot; None: it does not run."""
        try:
            pid = int(self._host.read(str(self._config.docker_pid_file)))
            stat = self._host.read(f"/proc/{pid}/stat").decode(errors="replace")
        except (OSError, ValueError):
            return None
        return int(stat.rpartition(")")[2].split()[19]) / 100  # proc(5): field 22, in ticks of 10 ms

    def _follow_size(self, volume: str, record: Record) -> None:
        group = self._catalogue.get(volume)
        if group is None or record.target is None or len(group.volumes) != 1:
            return
        wanted = Wanted(kind=record.kind, folder=self.folder(volume), read_only=record.read_only)
        if follow_size(self._host, self._initiator, record.target, group.volumes[0], wanted):
            log.info("volume %s has %d bytes now", volume, group.volumes[0].size)

    # --- what there is ---------------------------------------------------------------------------------------------

    def _condition(self, volume: str, record: Record | None) -> Condition:
        if record is None or record.target is None:
            return Condition.NOTHING
        wanted = Wanted(kind=record.kind, folder=self.folder(volume), read_only=record.read_only)
        return condition(self._host, self._initiator, record.target, wanted)

    def _place(self, volume: str, record: Record) -> str:
        return Wanted(kind=record.kind, folder=self.folder(volume)).mount_point

    def _fenced(self, record: Record) -> bool:
        """Whether the target says that it is not this host's any more; False while it says nothing."""
        if record.group is None:
            return False
        try:
            ours = self._api.attachments(group=record.group, host=self._iqn)
        except NotFound:
            return True
        except ProductError:
            return False
        return not any(record.generation in (0, each.generation) for each in ours)
