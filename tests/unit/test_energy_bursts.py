"""Which prompts share a step, and what came before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.bursts import BUDGET_TOKENS, Bursts
from scheduler.energy.stays import Pace

PACE = Pace(prompt_token_seconds=2e-5, decode_seconds=0.01, average_seconds=0.03)


def steps(sent: list[float], tokens: list[float], bursts: Bursts | None = None) -> tuple[list[float], list[float]]:
    found = (bursts or Bursts()).steps(np.array(sent), np.array(tokens), PACE)
    return found.tokens.tolist(), found.before.tolist()


def test_a_prompt_that_comes_alone_has_a_step_of_its_own_and_nothing_before() -> None:
    tokens, before = steps([10.0, 20.0], [1000.0, 500.0])
    assert tokens == [1000.0, 500.0]
    assert before == pytest.approx([0.0, 0.0], abs=1e-9)


def test_prompts_that_come_together_share_a_step_up_to_its_budget() -> None:
    tokens, before = steps([10.0] * 10, [1000.0] * 10)
    assert tokens[:8] == [BUDGET_TOKENS] * 8
    assert tokens[-1] == pytest.approx(10_000 - BUDGET_TOKENS)
    assert before[0] == pytest.approx(0.0, abs=1e-9)
    assert before[-1] > 0.95, "the average has come up while the first step ran"


def test_one_that_comes_while_another_is_computed_is_in_the_next_step() -> None:
    tokens, before = steps([10.0, 10.05, 10.6], [8000.0, 1000.0, 1000.0])
    assert tokens == [8000.0, 1000.0, 1000.0]
    assert before[1] > 0.9
    assert before[2] < 0.1, "what came before fades"


def test_the_queue_goes_on_from_window_to_window() -> None:
    sent, sizes = [10.0, 10.02, 10.05, 10.3], [8000.0, 900.0, 700.0, 100.0]
    at_once, bursts = steps(sent, sizes), Bursts()
    apart = [steps(sent[:1], sizes[:1], bursts), steps(sent[1:], sizes[1:], bursts)]
    assert [one + other for one, other in zip(*apart, strict=True)] == [*at_once]


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(1, 30_000)), min_size=1, max_size=40))
def test_every_prompt_is_in_a_step_that_holds_it_or_is_full(prompts: list[tuple[float, float]]) -> None:
    sent, sizes = zip(*sorted(prompts), strict=True)
    tokens, before = steps([*sent], [*sizes])
    for own, whole, average in zip(sizes, tokens, before, strict=True):
        assert 0 <= average <= 1
        assert 0 < whole <= BUDGET_TOKENS * (1 + 1e-9)
        assert whole >= min(own, BUDGET_TOKENS) / 2 * (1 - 1e-6)
