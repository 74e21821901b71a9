"""The product in its own processes, shared by a module's tests; afterwards its store must be whole."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.product import BLOCKYARD, Product


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    served = Product(tmp_path_factory.mktemp("product"))
    with served:
        yield served
    assert_whole(served.store)


def assert_whole(store: Path) -> None:
    """``check --deep`` finds nothing."""
    done = subprocess.run([BLOCKYARD, "check", "--store", store, "--deep"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
