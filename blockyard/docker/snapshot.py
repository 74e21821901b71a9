"""``python -m blockyard.docker.snapshot FILE VOLUME NAME``: what ``blockyard docker-snapshot`` becomes.

A snapshot taken on the target alone is what a power cut would leave: right, but with a journal to replay. Here the file
system stands still meanwhile, so nothing is to be repaired, and a read-only clone can be mounted at once. A freeze that
a kill leaves behind is undone by the plugin when it starts, or by this command when it is repeated.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from blockyard.docker.config import DockerConfig, load
from blockyard.docker.options import volume_name, volume_of
from blockyard.docker.service import API_SECONDS, connect
from blockyard.errors import NotFound, ProductError
from blockyard.hosts.api import HostApi
from blockyard.hosts.commands import Host, LinuxHost
from blockyard.hosts.errors import HostError
from blockyard.hosts.filesystems import frozen, thaw
from blockyard.hosts.mounts import mount_at
from blockyard.model import Snapshot


def take(host: Host, api: HostApi, config: DockerConfig, volume: str, name: str) -> Snapshot:
    """Raises NotFound for a volume that is not mounted here, HostError, and what the target says."""
    folder = f"{config.state}/volumes/{volume_name(volume)}"
    if mount_at(host, folder) is None:
        raise NotFound(
            f"volume {volume} has no file system mounted on this host: `blockyard snapshot create` is enough"
        )
    group = next((each for each in api.list_groups().groups if volume_of(each) == volume), None)
    if group is None:
        raise NotFound(f"the target has no volume {volume}")
    thaw(host, folder)
    with frozen(host, folder):
        return api.create_snapshot(group.name, name)


def end_in_order() -> None:
    """A terminal that is closed, or a kill, ends the command as an error does: what stands still goes on first."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def main(path: str, volume: str, name: str) -> int:
    end_in_order()
    try:
        config = load(Path(path))
        with connect(config, API_SECONDS) as api:
            snapshot = take(LinuxHost(), api, config, volume, name)
    except ProductError as error:
        print(f"blockyard: {error}", file=sys.stderr)
        return error.answer.exit_code
    except HostError as error:
        print(f"blockyard: {error}", file=sys.stderr)
        return 1
    print(f"Snapshot {snapshot.name} of volume {volume} is taken.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
