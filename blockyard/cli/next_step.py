"""What to type next: the exact iscsiadm lines that bring a new group to a Linux host. Text only."""

from __future__ import annotations

import shlex

from blockyard.cli.secrets import Chap
from blockyard.model import Auth, Group


def login_lines(group: Group, chap: Chap) -> list[str]:
    """For the first portal; a secret is shown only if it was made just now."""
    portal = group.portals[0]
    node = f"iscsiadm -m node -T {group.iqn} -p {portal}"
    return [
        f"iscsiadm -m discovery -t sendtargets -p {portal}",
        *(f"{node} --op update -n node.session.auth.{name} -v {value}" for name, value in _settings(chap)),
        f"{node} --login",
    ]


def _settings(chap: Chap) -> list[tuple[str, str]]:
    if chap.chap is None:
        return []
    secret = chap.chap.secret if chap.generated else "THE-SECRET"
    settings = [("authmethod", "CHAP"), ("username", shlex.quote(chap.chap.user)), ("password", secret)]
    if chap.mutual is not None:
        settings += [("username_in", shlex.quote(chap.mutual.user)), ("password_in", "THE-TARGET-SECRET")]
    return settings


def after_group(group: Group, chap: Chap) -> str:
    if not group.clients:
        return f"Nobody may log in yet. Next: blockyard client allow {group.name} IQN-OF-THE-HOST"
    if not group.portals:
        return f"Next: blockyard group show {group.name}"
    if chap.chap is None and all(client.auth is not Auth.NONE for client in group.clients):
        return f"Next, on the host, with the CHAP secrets that its clients have:\n{_indented(login_lines(group, chap))}"
    return f"Next, on the host:\n{_indented(login_lines(group, chap))}"


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
