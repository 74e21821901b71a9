"""Every item of the list of crashes and faults has tests, and they exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.blockstore.fault_list import FAULTS

TESTS = Path(__file__).parent.parent


def test_the_list_is_complete() -> None:
    plain = [f"{number:02}" for number in range(1, 17)]
    assert list(FAULTS) == plain + [f"17{case}" for case in "abcdefghijkl"]


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_of_the_list_has_tests(number: str) -> None:
    assert FAULTS[number].tests
    for test in FAULTS[number].tests:
        module, function = test.split("::")
        tree = ast.parse((TESTS / f"{module}.py").read_text())
        assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test
