"""A group's labels and attachments: kept, recovered, checked, and the fencing that taking one over relies on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from blockstore.api import (
    AttachmentRecord,
    AttachMode,
    ChapSecret,
    Group,
    Invalid,
    Revoked,
    StandingPermit,
)
from blockstore.catalog import Catalog, decode_group
from blockstore.check import check_catalog
from blockstore.dump import dump_pool
from tests.blockstore.support import GRAIN, Answer, Driver, Store, pattern

LABELS = {"blockyard.project": "shop", "docker.fs": "ext4"}


def attachment(number: int, mode: AttachMode = AttachMode.SINGLE_WRITER) -> AttachmentRecord:
    host = f"iqn.2026-01.example:host-{number}"
    return AttachmentRecord(host, mode, number, 1_700_000_000.0, ChapSecret(host, f"secret-number-{number}"))


def test_labels_and_attachments_are_kept(driver: Driver) -> None:
    group = driver.group(labels=LABELS)
    assert group.record.labels == LABELS
    driver.wait(group.update(labels={"a": "b"}, attachments=[attachment(1)]))
    assert group.record.labels == {"a": "b"}
    assert group.record.attachments == (attachment(1),)
    assert "secret-number" not in repr(group.record)


def test_a_clone_has_its_own_labels_and_is_attached_to_nobody(driver: Driver) -> None:
    group = driver.group(labels=LABELS)
    driver.wait(group.update(attachments=[attachment(4)]))
    driver.wait(group.snapshot("s"))
    clone = driver.wait(driver.pool.clone_group("db", "s", "copy", iqn="iqn.copy", clients=(), labels={"x": "y"}))
    assert clone.record.labels == {"x": "y"}
    assert (clone.record.attachments, clone.record.attach_generation) == ((), 0)


def test_a_rollback_changes_no_attachment(driver: Driver) -> None:
    group = driver.group()
    driver.wait(group.snapshot("s"))
    driver.wait(group.update(attachments=[attachment(2)]))
    driver.wait(group.rollback("s"))
    assert (group.record.attachments, group.record.attach_generation) == ((attachment(2),), 2)


def test_a_generation_is_never_used_again(driver: Driver) -> None:
    group = driver.group()
    driver.wait(group.update(attachments=[attachment(3)]))
    driver.wait(group.update(attachments=[]))
    assert group.record.attach_generation == 3
    for number in (2, 3):
        with pytest.raises(Invalid, match="above 3"):
            driver.wait(group.update(attachments=[attachment(number)]))
    driver.wait(group.update(attachments=[attachment(4)]))
    assert group.record.attach_generation == 4


def test_nothing_revoked_before_an_attachment_lands_after_it(driver: Driver) -> None:
    group = driver.group()
    volume = group.volumes[0]
    driver.write(volume, 0, pattern(1))
    permit, answer = StandingPermit(), Answer()
    volume.write(0, pattern(2), permit, answer)
    permit.revoked = True
    driver.wait(group.update(attachments=[attachment(1)]))
    assert isinstance(answer.error, Revoked)
    assert driver.read(volume, 0, GRAIN) == pattern(1)


def test_attachments_survive_the_death_of_the_process_and_an_orderly_end(store: Store) -> None:
    group = store.open().group(labels=LABELS)
    driver = store.driver
    assert driver is not None
    driver.wait(group.update(attachments=[attachment(1)]))
    assert kept(store.reopen().pool.groups["db"]) == (LABELS, (attachment(1),), 1)
    store.close()
    assert kept(store.open().pool.groups["db"]) == (LABELS, (attachment(1),), 1)


def kept(group: Group) -> tuple[dict[str, str], tuple[AttachmentRecord, ...], int]:
    return dict(group.record.labels), group.record.attachments, group.record.attach_generation


def test_a_catalogue_that_knows_no_attachments_still_loads(driver: Driver) -> None:
    catalog: Catalog = driver.pool.catalog  # type: ignore[attr-defined]
    group = driver.group()
    value = json.loads(catalog.groups["db"].put().value)
    assert not {"labels", "attachments", "attach_generation"} & value.keys(), "absent until there is something to say"
    assert decode_group(json.dumps(value).encode()).record == group.record


def test_a_dump_shows_attachments_without_their_secrets(store: Store) -> None:
    driver = store.open()
    driver.wait(driver.group().update(attachments=[attachment(1)]))
    driver.wait(driver.pool.checkpoint())
    store.close()
    text = "\n".join(dump_pool(store.path))
    assert "host-1" in text
    assert "secret-number" not in text


READER = AttachMode.READ_ONLY_MANY


@pytest.mark.parametrize(
    ("attachments", "generation", "finding"),
    [
        ((attachment(1, READER), replace(attachment(2, READER), host=attachment(1).host.upper())), 2, "attached twice"),
        ((attachment(1, READER), replace(attachment(2, READER), generation=1)), 2, "same generation"),
        ((attachment(2),), 1, "not within 1 to 1"),
        ((attachment(1), attachment(2)), 2, "exclude each other"),
        ((attachment(1, READER), attachment(2, AttachMode.MULTI_WRITER)), 2, "exclude each other"),
    ],
)
def test_check_finds_attachments_that_cannot_be(
    store: Store, attachments: tuple[AttachmentRecord, ...], generation: int, finding: str
) -> None:
    pool = store.open()
    pool.group()
    engine = pool.engine
    entry = engine.catalog.groups["db"]
    record = replace(entry.record, attachments=attachments, attach_generation=generation)
    broken = Catalog()
    broken.apply(replace(entry, record=record).put())
    found = [str(each) for each in check_catalog(broken, engine.blockmap)]
    assert any(finding in text for text in found), found
    assert not list(check_catalog(engine.catalog, engine.blockmap))
