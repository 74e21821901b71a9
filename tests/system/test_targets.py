"""What sessions see when targets change, and who sees which target: through the product, with an initiator of ours."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdus.iscsi.async_message import AsyncEvent, AsyncMessage
from pdus.iscsi.login import LoginStatus
from pdus.iscsi.task_management import Function, FunctionResponse
from tests.initiator import Command, Disconnected, Initiator, LoginRefused, Offer, read10, synchronize_cache, write10
from tests.product import Product

MIB = 1 << 20
ALLOWED = "iqn.2026-01.example:allowed"
SECRET = "a-secret-of-20-bytes"
UNIT_ATTENTION = 6


@pytest.fixture
def group(product: Product) -> Iterator[str]:
    iqn = product.create_group("here", 64 * MIB)
    yield iqn
    product.cli("group", "rm", "here", "--force")


def log_in(product: Product, iqn: str, **how: object) -> Initiator:
    session = Initiator(product.address, iqn, **how).login()  # type: ignore[arg-type]
    while session.run(bytes(6)).status:
        pass
    return session


def additional_sense(command: Command) -> tuple[int, int, int]:
    assert command.status == 2
    return command.sense[2] & 0xF, command.sense[12], command.sense[13]


def pump_for_ever(session: Initiator) -> None:
    while True:
        session.pump()


def capacity(session: Initiator, lun: int = 0) -> int:
    data = session.good(struct.pack(">BB8xI2x", 0x9E, 0x10, 32), data_in=32, lun=lun).data_in
    last, block = struct.unpack_from(">QI", data)
    return int((last + 1) * block)


def test_discovery_names_only_what_the_initiator_may_use(product: Product, group: str) -> None:
    private = product.create_group("private", MIB, "--client", ALLOWED)
    for name, expected in ((ALLOWED, {group, private}), ("iqn.2026-01.example:other", {group})):
        with Initiator(product.address, None, name=name) as session:
            pairs = session.login().send_targets()
            assert {value for key, value in pairs if key == "TargetName"} == expected
            address = f"127.0.0.1:{product.port},1"
            assert {value for key, value in pairs if key == "TargetAddress"} == {address}
            assert session.logout() == 0
    product.cli("group", "rm", "private")


def test_login_of_a_stranger_is_forbidden(product: Product) -> None:
    iqn = product.create_group("private", MIB, "--client", ALLOWED)
    with Initiator(product.address, iqn) as session, pytest.raises(LoginRefused) as refusal:
        session.login()
    assert refusal.value.status == LoginStatus.AUTHORIZATION_FAILURE
    product.cli("group", "rm", "private")


def test_login_to_an_unknown_target_is_refused_for_good(product: Product) -> None:
    with Initiator(product.address, "iqn.2026-01.example:nothing") as session, pytest.raises(LoginRefused) as refusal:
        session.login()
    assert refusal.value.status == LoginStatus.NOT_FOUND


def test_chap_lets_in_who_knows_the_secret_only(product: Product, group: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    chap = ("--chap-user", "alice", "--chap-secret-file", str(file))
    product.cli("client", "allow", "here", ALLOWED, *chap)
    with log_in(product, group, name=ALLOWED, chap=("alice", SECRET.encode())) as session:
        assert session.ping() == b"ping"
    for user, secret in (("alice", b"another-secret-of-20"), ("mallory", SECRET.encode())):
        with (
            Initiator(product.address, group, name=ALLOWED, chap=(user, secret)) as wrong,
            pytest.raises(LoginRefused) as refusal,
        ):
            wrong.login()
        assert refusal.value.status == LoginStatus.AUTHENTICATION_FAILURE
    with Initiator(product.address, group, name=ALLOWED) as without, pytest.raises(LoginRefused) as refusal:
        without.login()
    assert refusal.value.status == LoginStatus.AUTHENTICATION_FAILURE


def test_denied_client_loses_its_session_at_once(product: Product, group: str) -> None:
    product.cli("client", "allow", "here", ALLOWED)
    product.cli("client", "deny", "here", "any")
    with log_in(product, group, name=ALLOWED) as session:
        session.good(write10(0, 8), data_out=bytes(4096))
        product.cli("client", "deny", "here", ALLOWED)
        with pytest.raises((Disconnected, ConnectionError)):
            session.good(read10(0, 8), data_in=4096)


def test_new_volume_is_announced_and_served(product: Product, group: str) -> None:
    with log_in(product, group) as session:
        product.cli("volume", "add", "here", "--size", str(8 * MIB))
        assert additional_sense(session.run(bytes(6))) == (UNIT_ATTENTION, 0x3F, 0x0E)
        events = [header for header, _ in session.others if isinstance(header, AsyncMessage)]
        assert [event.event for event in events] == [AsyncEvent.SCSI]
        while session.run(bytes(6), lun=1).status:
            pass
        assert capacity(session, 1) == 8 * MIB
        session.good(write10(0, 8), data_out=b"one." * 1024, lun=1)
        assert bytes(session.good(read10(0, 8), data_in=4096).data_in) == bytes(4096)


def test_growth_raises_a_unit_attention_and_a_larger_capacity(product: Product, group: str) -> None:
    with log_in(product, group) as session:
        product.cli("volume", "resize", "here", "0", str(128 * MIB))
        assert additional_sense(session.run(bytes(6))) == (UNIT_ATTENTION, 0x2A, 0x09)
        assert capacity(session) == 128 * MIB
        session.good(write10(100 * MIB // 512, 8), data_out=bytes(4096))


def test_deleted_target_asks_to_log_out_and_refuses_for_good(product: Product) -> None:
    iqn = product.create_group("doomed", MIB)
    with log_in(product, iqn) as session:
        product.cli("group", "rm", "doomed", "--force")
        with pytest.raises((Disconnected, ConnectionError)):
            pump_for_ever(session)
        events = [header.event for header, _ in session.others if isinstance(header, AsyncMessage)]
        assert AsyncEvent.REQUEST_LOGOUT in events
    with Initiator(product.address, iqn) as again, pytest.raises(LoginRefused) as refusal:
        again.login()
    assert refusal.value.status == LoginStatus.NOT_FOUND


def test_same_nexus_logging_in_again_ends_the_old_session(product: Product, group: str) -> None:
    with log_in(product, group) as old, log_in(product, group) as new:
        with pytest.raises((Disconnected, ConnectionError)):
            old.ping()
        assert new.ping() == b"ping"
        sessions = product.cli("session", "ls")
        assert [entry["initiator"] for entry in sessions] == [new.name]


def test_another_isid_is_another_session(product: Product, group: str) -> None:
    with log_in(product, group) as one, log_in(product, group, isid=b"\x80\0\0\0\0\x02") as two:
        assert one.ping() == two.ping() == b"ping"
        assert len(product.cli("session", "ls")) == 2


def test_digests_protect_both_directions(product: Product, group: str) -> None:
    offer = Offer()
    offer.keys |= {"HeaderDigest": "CRC32C,None", "DataDigest": "CRC32C,None"}
    with log_in(product, group, offer=offer) as session:
        assert session.header_digest
        assert session.data_digest
        data = bytes(range(256)) * 4096
        session.good(write10(0, 2048), data_out=data)
        session.good(synchronize_cache())
        assert bytes(session.good(read10(0, 2048), data_in=len(data)).data_in) == data


def test_task_management_answers_by_the_book(product: Product, group: str) -> None:
    with log_in(product, group) as session:
        assert session.manage(Function.ABORT_TASK_SET) == FunctionResponse.COMPLETE
        assert session.manage(Function.LOGICAL_UNIT_RESET, lun=7) == FunctionResponse.LUN_DOES_NOT_EXIST
        assert session.manage(Function.TASK_REASSIGN) == FunctionResponse.REASSIGNMENT_NOT_SUPPORTED
        assert session.manage(99) == FunctionResponse.NOT_SUPPORTED
        assert session.manage(Function.ABORT_TASK, ref_cmd_sn=session.cmd_sn - 1) in (
            FunctionResponse.COMPLETE,
            FunctionResponse.TASK_DOES_NOT_EXIST,
        )
        assert session.logout() == 0


def test_command_numbers_wrap(product: Product, group: str) -> None:
    with log_in(product, group, cmd_sn=0xFFFFFFF0) as session:
        for number in range(40):
            session.good(write10(number * 8, 8), data_out=bytes([number]) * 4096)
        assert session.cmd_sn < 0x100
        assert session.logout() == 0


def test_rollback_under_a_session_needs_force_and_ends_the_session(product: Product, group: str) -> None:
    with log_in(product, group) as session:
        session.good(write10(0, 8), data_out=b"old." * 1024)
        product.cli("snapshot", "create", "here", "then")
        session.good(write10(0, 8), data_out=b"new." * 1024)
        assert product.try_cli("group", "rollback", "here", "then") is None
        product.cli("group", "rollback", "here", "then", "--force")
        with pytest.raises((Disconnected, ConnectionError)):
            session.ping()
    with log_in(product, group) as session:
        assert bytes(session.good(read10(0, 8), data_in=4096).data_in) == b"old." * 1024
    names = [snapshot["name"] for snapshot in product.cli("snapshot", "ls", "here")]
    assert any(name.startswith("before-rollback-") for name in names)


def test_the_advertised_address_is_named_in_every_kind_of_session(tmp_path: Path) -> None:
    with Product(tmp_path, "--advertise", "192.0.2.7:3260") as product:
        iqn = product.create_group("here", MIB)
        with Initiator(product.address, None) as session:
            assert ("TargetAddress", "192.0.2.7:3260,1") in session.login().send_targets()
        with log_in(product, iqn) as session:
            assert session.send_targets("") == [("TargetName", iqn), ("TargetAddress", "192.0.2.7:3260,1")]
