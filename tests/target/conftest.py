"""A target with one group of one volume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.target.support import Yard, serving


@pytest.fixture
def yard() -> Iterator[Yard]:
    with serving() as yard:
        yard.group()
        yield yard
