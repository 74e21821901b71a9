"""Who may log in: initiators by name, CHAP in one and in both directions, and digests on what they send."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.initiator import LOGIN_AUTH_FAILED, LOGIN_FAILED, Chap, Initiator
from integration.product import Group, Product

SECRET = "correct horse 1234"  # at least 12 characters, or Linux refuses it
TARGET_SECRET = "battery staple 5678"
OTHER_SECRET = "something else 9012"
ALGORITHMS = ["MD5", "SHA1", "SHA256", "SHA3-256"]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def one_way(target: Product, host_a: Initiator, secret_file: Path) -> Group:
    """A group that asks its one client for a secret."""
    group = target.create_group(client=host_a.iqn)
    target.cli(
        "client", "allow", group.name, host_a.iqn, "--chap-user", "alice", "--chap-secret-file", str(secret_file)
    )
    host_a.remember(group.iqn)
    return group


@pytest.fixture
def mutual(target: Product, host_a: Initiator, secret_file: Path, tmp_path: Path) -> Group:
    """A group that asks for a secret and proves itself by another."""
    target_file = tmp_path / "target-secret"
    target_file.write_text(TARGET_SECRET + "\n")
    group = target.create_group(client=host_a.iqn)
    inward = ["--chap-user", "alice", "--chap-secret-file", str(secret_file)]
    outward = ["--mutual-user", "yard", "--mutual-secret-file", str(target_file)]
    target.cli("client", "allow", group.name, host_a.iqn, *inward, *outward)
    host_a.remember(group.iqn)
    return group


def _read_first_block(host: Initiator, iqn: str) -> None:
    host.guest.run(f"dd if={host.disk(iqn)} of=/dev/null bs=4096 count=1 iflag=direct status=none")


def _connections_opened(host: Initiator) -> int:
    """TCP connections that the guest has tried to open since boot (/proc/net/snmp, Tcp: ActiveOpens)."""
    names, values = (line.split() for line in host.guest.run("grep ^Tcp: /proc/net/snmp").text.splitlines())
    return int(values[names.index("ActiveOpens")])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_right_secret_logs_in(host_a: Initiator, one_way: Group, algorithm: str) -> None:
    host_a.use_chap(one_way.iqn, Chap("alice", SECRET, algorithm=algorithm))
    host_a.login(one_way.iqn)
    _read_first_block(host_a, one_way.iqn)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_right_secrets_in_both_directions_log_in(host_a: Initiator, mutual: Group, algorithm: str) -> None:
    host_a.use_chap(mutual.iqn, Chap("alice", SECRET, "yard", TARGET_SECRET, algorithm))
    host_a.login(mutual.iqn)
    _read_first_block(host_a, mutual.iqn)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA256"])
def test_a_wrong_secret_is_refused_once_and_for_all(host_a: Initiator, one_way: Group, algorithm: str) -> None:
    host_a.use_chap(one_way.iqn, Chap("alice", OTHER_SECRET, algorithm=algorithm))
    before = _connections_opened(host_a)
    assert host_a.try_login(one_way.iqn).code == LOGIN_AUTH_FAILED
    host_a.guest.run("sleep 3")  # a storm would have begun: iscsid retries after a second or two
    assert _connections_opened(host_a) - before == 1
    assert host_a.sessions() == []


def test_a_wrong_user_is_refused(host_a: Initiator, one_way: Group) -> None:
    host_a.use_chap(one_way.iqn, Chap("mallory", SECRET))
    assert host_a.try_login(one_way.iqn).code == LOGIN_AUTH_FAILED


def test_no_secret_at_all_is_refused(host_a: Initiator, one_way: Group) -> None:
    assert host_a.try_login(one_way.iqn).code == LOGIN_AUTH_FAILED
    assert host_a.sessions() == []


def test_a_host_refuses_a_target_with_the_wrong_secret(host_a: Initiator, mutual: Group) -> None:
    host_a.use_chap(mutual.iqn, Chap("alice", SECRET, "yard", OTHER_SECRET))
    assert host_a.try_login(mutual.iqn).code != 0
    assert host_a.sessions() == []


def test_a_mutual_group_refuses_the_wrong_secret_of_the_host(host_a: Initiator, mutual: Group) -> None:
    host_a.use_chap(mutual.iqn, Chap("alice", OTHER_SECRET, "yard", TARGET_SECRET))
    assert host_a.try_login(mutual.iqn).code == LOGIN_AUTH_FAILED


def test_a_host_that_is_not_allowed_neither_sees_nor_enters_a_group(host_a: Initiator, target: Product) -> None:
    group = target.create_group(client="iqn.2026-01.example.blockyard:somebody-else")
    assert group.iqn not in [iqn for _, iqn in host_a.discover()]
    host_a.remember(group.iqn)
    # Either "forbidden" or "no such target": to tell them apart is more than a stranger needs to know.
    assert host_a.try_login(group.iqn).code in (LOGIN_AUTH_FAILED, LOGIN_FAILED)
    assert host_a.sessions() == []


def test_a_denied_host_loses_its_session_and_stays_out(host_a: Initiator, target: Product) -> None:
    group = target.create_group(client=host_a.iqn)
    host_a.connect(group.iqn)
    target.cli("client", "deny", group.name, host_a.iqn)
    assert target.cli("session", "ls", group.name) == []
    assert group.iqn not in [iqn for _, iqn in host_a.discover()]


def test_data_is_right_with_crc32c_on_headers_and_data(host_a: Initiator, target: Product) -> None:
    group = target.create_group()
    host_a.discover()
    host_a.use_digests(group.iqn)
    host_a.login(group.iqn)
    keys = host_a.negotiated()
    assert (keys["HeaderDigest"], keys["DataDigest"]) == ("CRC32C", "CRC32C")

    device = host_a.disk(group.iqn)
    write = "head -c 12582912 /dev/urandom >/tmp/data && sha256sum </tmp/data"
    before = host_a.guest.run(
        f"{write} && dd if=/tmp/data of={device} bs=1M oflag=direct status=none", timeout=180
    ).text
    small = f"dd if={device} bs=4k count=256 iflag=direct status=none"
    large = f"dd if={device} bs=1M skip=1 count=11 iflag=direct status=none"
    assert host_a.guest.run(f"({small}; {large}) | sha256sum", timeout=180).text == before
    assert "digest" not in host_a.guest.kmsg().lower()
