"""What calls saw, in classes: the same as looking at each call, but for 1 %."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.caps.answers import Answers

HORIZON, DANGER, TARGET = 60.0, 10.0, 0.5

SEEN = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.floats(1e-4, 100.0), st.sampled_from([300.0, 500.0, 700.0])), max_size=60
)


def measure(limit_watts: float) -> float:
    """A step is slower under a lower limit."""
    return 700.0 / limit_watts


@given(SEEN, st.floats(0.0, 120.0), st.sampled_from([0.5, 0.95]))
def test_it_counts_as_one_who_keeps_every_call(
    seen: list[tuple[float, float, float]], wait: float, share: float
) -> None:
    answers = Answers(TARGET, HORIZON, DANGER)
    now, kept = 0.0, []
    for pause, seconds, limit in seen:
        now += pause
        answers.add(now, seconds, limit)
        answers.validate()
        kept.append((now, seconds, limit))
    now += wait
    late = [seconds > TARGET for at, seconds, _ in kept if at > now - DANGER]
    assert answers.look(now) == (sum(late), len(late))
    answers.validate()
    slice_seconds = HORIZON / 30
    surely = [each for each in kept if each[0] > now - HORIZON]
    perhaps = [each for each in kept if each[0] > now - HORIZON - slice_seconds]
    assert len(surely) <= answers.total <= len(perhaps)
    if len(surely) == len(perhaps):
        assert answers.missed == sum(seconds > TARGET for _, seconds, _ in surely)
        values = sorted(seconds / measure(limit) for _, seconds, limit in surely)
        found = answers.quantile(share, measure)
        if values:
            assert found == pytest.approx(values[ceil(share * len(values)) - 1], rel=0.02)
        else:
            assert found is None


def test_its_memory_does_not_grow_with_calls() -> None:
    answers = Answers(TARGET, HORIZON, DANGER)
    for number in range(20_000):
        answers.add(number * 0.001, 0.1 + number % 50 * 0.01, 700.0)
    assert len(answers._counts) < 200 and len(answers._latest) <= 4096
    answers.validate()
