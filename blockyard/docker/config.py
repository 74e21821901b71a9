"""What /etc/blockyard/docker.toml says: validated once, then frozen. Every key but ``api`` has a default."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from blockyard.errors import Invalid, explain
from blockyard.hosts.filesystems import Kind
from blockyard.hosts.initiator import Timing
from blockyard.model import Value, names

DEFAULT_CONFIG = Path("/etc/blockyard/docker.toml")
DEFAULT_SOCKET = Path("/run/docker/plugins/blockyard.sock")


def _size(text: object) -> object:
    return names.volume_size(names.parse_size(text)) if isinstance(text, str) else text


class DockerConfig(Value):
    api: str = names.DEFAULT_API
    """``unix:PATH`` or ``https://HOST:PORT``."""
    token_file: Path | None = None
    """Holds this host's token; needed for https."""
    ca_file: Path | None = None
    """Who signs the daemon's certificate; the system's authorities when it is not given."""
    initiator_name_file: Path = Path("/etc/iscsi/initiatorname.iscsi")
    socket: Path = DEFAULT_SOCKET
    state: Annotated[Path, AfterValidator(Path.resolve)] = Field(
        default=Path("/var/lib/blockyard-docker"), validate_default=True
    )
    """What must be known after a restart; volumes are mounted below it. Without symbolic links, as the kernel names
    mounts: by another name none of ours would be found again."""
    docker_pid_file: Path = Path("/run/docker.pid")
    default_size: Annotated[int, BeforeValidator(_size)] = 10 << 30
    default_fs: Kind = Kind.EXT4
    mount_options: tuple[str, ...] = ("discard",)  # the store is thin: what is deleted shall be free
    takeover_patience: float = Field(default=60.0, ge=0, le=90)
    """Seconds that a mount waits for a silent holder to be declared dead. Docker gives a mount 120."""
    timing: Timing = Timing()


def load(path: Path) -> DockerConfig:
    """Raises Invalid."""
    try:
        return DockerConfig.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise Invalid(f"configuration {path} cannot be read: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"configuration {path} is no TOML: {error}") from error
    except ValidationError as error:
        raise Invalid(f"configuration {path}: {explain(error.errors())}") from error


def read_initiator_name(path: Path) -> str:
    """This host's iSCSI name. Raises Invalid."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror or error}): install open-iscsi") from error
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() == "InitiatorName":
            return value.strip()
    raise Invalid(f"{path} has no line InitiatorName=iqn...")
