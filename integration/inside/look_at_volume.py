"""Attach a group to this host, run a command on its disk, give it back: arguments GROUP COMMAND (product's Python)."""

from __future__ import annotations

import subprocess
import sys

from blockyard.docker.config import DEFAULT_CONFIG, load, read_initiator_name
from blockyard.docker.service import connect
from blockyard.hosts.commands import Deadline, LinuxHost
from blockyard.hosts.disks import wait_for_disk
from blockyard.hosts.initiator import Initiator
from blockyard.model.attachments import AttachRequest

config, host = load(DEFAULT_CONFIG), LinuxHost()
iqn, initiator, deadline = read_initiator_name(config.initiator_name_file), Initiator(host), Deadline(host, 90)
with connect(config, 60) as api:
    attached = api.attach(sys.argv[1], iqn, AttachRequest())
    attachment = attached.attachment
    session = initiator.log_in(attachment.target, attachment.portals, attached.chap, deadline)
    disk = wait_for_disk(host, initiator, session, attachment.volumes[0], deadline)
    code = subprocess.run([*sys.argv[2:], disk.path], check=False).returncode
    initiator.log_out(attachment.target)
    api.release(sys.argv[1], iqn)
sys.exit(code)
