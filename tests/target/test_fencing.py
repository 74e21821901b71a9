"""Attachments at the target: who may log in, what a fence stops, and how a silent host is noticed. No disk."""

from __future__ import annotations

import time

import pytest

from blockstore.api import AttachmentRecord, AttachMode, ChapSecret, Group
from pdus.iscsi.login import LoginStatus
from target.iscsi.settings import Settings
from tests.initiator import LoginRefused, read10, write10
from tests.target.support import HOST, IQN, MIB, Host, Yard, serving
from tests.target.test_node import BLOCK, additional_sense, send_data, send_write, start_login, take_r2t

OTHER = "iqn.2026-01.example:other"
WRITE_PROTECTED = (7, 0x27, 0)
MODE_SENSE_6 = bytes([0x1A, 0, 0x3F, 0, 255, 0])


def attachment(host: str, generation: int, mode: AttachMode = AttachMode.SINGLE_WRITER) -> AttachmentRecord:
    return AttachmentRecord(host, mode, generation, 0.0, ChapSecret(host, f"the secret of {generation}"))


def attach(yard: Yard, group: Group, *attachments: AttachmentRecord) -> None:
    updated = group.update(attachments=attachments)
    yard.loop.settle()
    updated.result()
    yard.targets.put(group)


def attached_group(yard: Yard, *attachments: AttachmentRecord) -> Group:
    group: Group = yard.pool.groups.get("disk") or yard.group(MIB)
    attach(yard, group, *attachments)
    return group


def log_in(yard: Yard, attachment: AttachmentRecord, **how: object) -> Host:
    chap = (attachment.chap.user, attachment.chap.secret.encode())
    return yard.host(name=attachment.host, chap=chap, **how).log_in()


def status_of_login(host: Host) -> int:
    with pytest.raises(LoginRefused) as refused:
        host.login()
    return refused.value.status


def content(yard: Yard, group: Group) -> bytes:
    into = bytearray(BLOCK)
    group.volumes[0].read_now(0, memoryview(into))
    return bytes(into)


def test_while_a_group_is_attached_its_clients_cannot_log_in(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    group = attached_group(yard, ours)
    assert status_of_login(yard.host(name=OTHER)) == LoginStatus.AUTHORIZATION_FAILURE
    assert log_in(yard, ours).good(write10(0, 8), data_out=b"a" * BLOCK)
    attach(yard, group)
    yard.host(name=OTHER).log_in().good(read10(0, 8), data_in=BLOCK)


def test_an_attached_host_must_prove_its_secret(yard: Yard) -> None:
    attached_group(yard, attachment(HOST, 2))
    stale = (HOST, b"the secret of 1")
    assert status_of_login(yard.host(name=HOST, chap=stale)) == LoginStatus.AUTHENTICATION_FAILURE
    assert status_of_login(yard.host(name=HOST)) == LoginStatus.AUTHENTICATION_FAILURE


def test_a_write_in_the_batch_is_dropped_by_a_fence_and_never_answered(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    group = attached_group(yard, ours)
    host = log_in(yard, ours)
    host.good(write10(0, 8), data_out=b"a" * BLOCK)
    with yard.batch_held():
        joined = yard.watch_writes()
        host.start(write10(0, 8), data_out=b"b" * BLOCK)
        yard.loop.settle()
        assert len(joined) == 1, "it is in the batch"
        with yard.targets.fenced(IQN, keep=()):
            assert joined[0].permit.revoked
            assert host.silent
    assert content(yard, group) == b"a" * BLOCK
    assert host.dropped


def test_nothing_that_a_fenced_session_sends_is_executed(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    group = attached_group(yard, ours)
    host = log_in(yard, ours)
    send_write(host, 0x77, 0)
    r2t = take_r2t(host)
    joined = yard.watch_writes()
    with yard.targets.fenced(IQN, keep=()):
        send_data(host, r2t)
        host.start(write10(0, 8), data_out=b"b" * BLOCK)
        host.start(read10(0, 8), data_in=BLOCK)
        assert host.silent
    assert not joined
    assert content(yard, group) == bytes(BLOCK)
    assert host.dropped


def test_nobody_logs_in_while_a_fence_is_put_up_and_all_are_told_to_try_again(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    attached_group(yard, ours)
    with yard.targets.fenced(IQN, keep=()):
        chap = (HOST, ours.chap.secret.encode())
        assert status_of_login(yard.host(name=HOST, chap=chap)) == LoginStatus.SERVICE_UNAVAILABLE
    log_in(yard, ours)


def test_a_login_that_waits_for_the_store_does_not_slip_through_a_fence(yard: Yard) -> None:
    ours, theirs = attachment(HOST, 1), attachment(OTHER, 2)
    group = attached_group(yard, ours)
    barriers = yard.hold_barriers()
    host = yard.host(name=HOST, chap=(HOST, ours.chap.secret.encode()))
    start_login(host)
    with yard.targets.fenced(IQN, keep=()):
        attach(yard, group, theirs)
    barriers[0](None)
    assert host.dropped
    assert not yard.targets.sessions()


def test_a_fence_leaves_the_hosts_alone_that_keep_the_group(yard: Yard) -> None:
    ours, theirs = attachment(HOST, 1, AttachMode.MULTI_WRITER), attachment(OTHER, 2, AttachMode.MULTI_WRITER)
    group = attached_group(yard, ours, theirs)
    gone, kept = log_in(yard, ours), log_in(yard, theirs)
    with yard.targets.fenced(IQN, keep=[OTHER.upper()]):
        kept.good(write10(0, 8), data_out=b"k" * BLOCK)
        attach(yard, group, theirs)
    assert gone.dropped
    kept.good(read10(0, 8), data_in=BLOCK)


def test_the_old_secret_is_refused_after_another_host_has_the_group(yard: Yard) -> None:
    ours, theirs = attachment(HOST, 1), attachment(OTHER, 2)
    group = attached_group(yard, ours)
    host = log_in(yard, ours)
    with yard.targets.fenced(IQN, keep=()):
        attach(yard, group, theirs)
    assert host.dropped
    again = yard.host(name=HOST, chap=(HOST, ours.chap.secret.encode()))
    assert status_of_login(again) == LoginStatus.AUTHORIZATION_FAILURE  # one of those that end Linux's retries
    log_in(yard, theirs)


def test_a_read_only_host_sees_write_protected_units(yard: Yard) -> None:
    reader = attachment(HOST, 1, AttachMode.READ_ONLY_MANY)
    group = attached_group(yard, reader)
    host = log_in(yard, reader)
    assert host.good(MODE_SENSE_6, data_in=255).data_in[2] & 0x80, "WP"
    assert additional_sense(host.run(write10(0, 8), data_out=b"x" * BLOCK)) == WRITE_PROTECTED
    assert bytes(host.good(read10(0, 8), data_in=BLOCK).data_in) == bytes(BLOCK)
    assert content(yard, group) == bytes(BLOCK)


def test_a_silent_host_is_dropped_after_a_ping_without_answer_and_when_it_was_seen_stays_known() -> None:
    ours = attachment(HOST, 1)
    with serving(Settings(ping_interval=3, ping_timeout=2)) as yard:
        attached_group(yard, ours)
        assert yard.targets.seen(IQN, HOST) is None
        host = log_in(yard, ours)
        yard.loop.advance(4)
        assert yard.targets.sessions()
        seen = yard.targets.seen(IQN, HOST.upper())
        assert seen == pytest.approx(time.time() - 4, abs=1)
        yard.loop.advance(2)
        assert not yard.targets.sessions()
        assert yard.targets.seen(IQN, HOST) == pytest.approx(time.time() - 6, abs=1)
        assert host.dropped


def test_a_host_that_answers_pings_stays(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    attached_group(yard, ours)
    host = log_in(yard, ours)
    for _ in range(10):
        yard.loop.advance(9)
        host.ping()
    assert yard.targets.sessions()
    assert yard.targets.seen(IQN, HOST) == pytest.approx(time.time(), abs=1)


def test_where_an_unattached_host_was_seen_is_not_kept(yard: Yard) -> None:
    ours = attachment(HOST, 1)
    group = attached_group(yard, ours)
    log_in(yard, ours).close()
    yard.loop.settle()
    assert yard.targets.seen(IQN, HOST) is not None
    attach(yard, group)
    assert yard.targets.seen(IQN, HOST) is None
