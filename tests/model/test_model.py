"""The store's rules show nothing wrong within the bounds; each of them, broken, does."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest

from tests.model import rules
from tests.model.explore import Model, explore
from tests.model.state import Scope
from tests.model.teeth import BACKED_UP, TEETH, WHOLE, WIDER
from tests.scale import scaled

_STATES = 300_000  # of one scope, times the scale: about 0.8 GiB for a million; a scope with more is explored in part
_WIDE = int(os.environ.get("BLOCKYARD_SCALE", "1")) > 1
_SCOPES = WIDER if _WIDE else WHOLE


def in_words(scope: Scope) -> str:
    """What may happen in it."""
    return ", ".join(
        f"{field.name} {getattr(scope, field.name)}" for field in fields(scope)[4:] if getattr(scope, field.name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", _SCOPES)
def test_the_protocol_loses_nothing_whatever_the_order_of_events(name: str) -> None:
    outcome = explore(Model(_SCOPES[name]), scaled(_STATES))
    print(f"{name}: {outcome.states} states, {outcome.steps} steps, all of them: {outcome.complete}")
    assert outcome.problem is None, f"\n{outcome}"
    assert outcome.complete or _WIDE


@pytest.mark.slow
@pytest.mark.parametrize("scope", sorted(set(TEETH.values()), key=str), ids=in_words)
def test_unbroken_rules_are_clean_where_a_broken_one_is_found(scope: Scope) -> None:
    outcome = explore(Model(scope))
    assert outcome.problem is None, f"\n{outcome}"
    assert outcome.complete


@pytest.mark.slow
@pytest.mark.parametrize("rule", TEETH)
def test_a_broken_rule_is_found(rule: str) -> None:
    outcome = explore(Model(TEETH[rule], rule))
    print(f"{rule}\n    breaks: {rules.SENTENCES[rule]}\n{outcome}")
    assert outcome.problem is not None, f"{rule!r} was not found in {outcome.states} states"


@pytest.mark.slow
@pytest.mark.parametrize("rule", BACKED_UP)
def test_a_rule_that_another_one_backs_up_is_not_missed_alone(rule: str) -> None:
    outcome = explore(Model(BACKED_UP[rule], rule), scaled(_STATES))
    assert outcome.problem is None, f"{rule}, though {rules.BACKED_UP[rule]}\n{outcome}"


def test_every_rule_that_can_be_broken_has_its_tooth() -> None:
    assert set(TEETH) == set(rules.SENTENCES)
    assert set(BACKED_UP) == set(rules.BACKED_UP)
    assert len(TEETH) >= 50


def test_a_scope_without_crashes_has_few_states() -> None:
    assert explore(Model(Scope(writes=1, flushes=1))).states < 50
