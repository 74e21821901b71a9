"""An attached group moves between two pools of a real daemon: its host comes again as itself, and nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockyard.client import BlockyardClient
from blockyard.errors import InUse
from blockyard.model.attachments import Attached, AttachRequest
from tests.initiator import Disconnected, read10, write10
from tests.product import Product
from tests.system.conftest import assert_whole
from tests.system.test_fencing import (
    BLOCKS,
    SIZE,
    expect_refused,
    expect_refused_finally,
    host_name,
    log_in,
    patient_log_in,
    pattern,
)
from tests.system.test_move import move, other_pool

pytestmark = pytest.mark.slow

LABELS = {"blockyard.project": "shop", "docker.fs": "ext4"}


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    served = Product(tmp_path, "--workers", "2")
    with served:
        yield served
    assert_whole(served.store)


@pytest.fixture
def api(product: Product) -> Iterator[BlockyardClient]:
    with BlockyardClient(product.api) as client:
        yield client


@pytest.fixture
def holder(product: Product, api: BlockyardClient) -> Attached:
    """Host 0, which has group ``db``."""
    options = [text for key, value in LABELS.items() for text in ("--label", f"{key}={value}")]
    product.create_group("db", BLOCKS * SIZE, *options)
    return api.attach("db", host_name(0), AttachRequest())


def test_the_host_logs_in_again_with_its_secret_and_others_still_cannot(
    product: Product, api: BlockyardClient, holder: Attached
) -> None:
    stranger = holder.model_copy(
        update={
            "attachment": holder.attachment.model_copy(update={"host": host_name(1)}),
            "chap": holder.chap.model_copy(update={"user": host_name(1)}),
        }
    )
    with log_in(product.address, holder) as session:
        session.good(write10(0, 8), data_out=pattern(7))
        assert move(api, other_pool(api)).moved
        with pytest.raises((Disconnected, OSError)):
            session.good(read10(0, 8), data_in=SIZE)
    [shown] = api.attachments()
    assert (shown.host, shown.generation, shown.alive) == (host_name(0), holder.attachment.generation, True)
    with patient_log_in(product, api, holder) as session:
        assert bytes(session.good(read10(0, 8), data_in=SIZE).data_in) == pattern(7)
        expect_refused(product.address, stranger)
        with pytest.raises(InUse, match=host_name(0)):
            api.attach("db", host_name(1), AttachRequest())
        assert api.attach("db", host_name(0), AttachRequest()).chap == holder.chap
        session.good(write10(8, 8), data_out=pattern(8))
    assert api.show_group("db").labels == LABELS


def test_who_was_fenced_before_a_move_is_out_after_it_and_numbers_go_on(
    product: Product, api: BlockyardClient, holder: Attached
) -> None:
    successor = api.attach("db", host_name(1), AttachRequest(take_over=True))
    assert move(api, other_pool(api)).moved
    expect_refused_finally(product.address, holder)
    back = api.attach("db", host_name(0), AttachRequest(take_over=True))
    assert back.attachment.generation == successor.attachment.generation + 1 == 3
    assert back.chap != holder.chap
    assert move(api, other_pool(api)).moved
    expect_refused_finally(product.address, successor)
    assert product.stop() == 0
    product.start()
    with BlockyardClient(product.api) as again, patient_log_in(product, again, back) as session:
        session.good(read10(0, 8), data_in=SIZE)
        expect_refused(product.address, successor)
