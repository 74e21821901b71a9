from __future__ import annotations

import pytest

from tests.target.scsi.support import SIZE, Yard


@pytest.fixture
def yard() -> Yard:
    return Yard(SIZE)
