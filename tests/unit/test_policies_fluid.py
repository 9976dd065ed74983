"""The fewest seconds of steps that meet all deadlines, by the lazy rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.policies.fluid import at_once_seconds, lazy_seconds

JOBS = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.1, 20), st.floats(1, 10)).map(
        lambda job: (job[0], job[0] + job[1] * job[2], job[1])
    ),
    min_size=1,
    max_size=20,
)


def test_two_that_can_wait_for_each_other_take_no_longer_than_the_longer() -> None:
    jobs = [(0.0, 30.0, 10.0), (15.0, 45.0, 8.0)]
    assert at_once_seconds(jobs) == 18.0
    assert lazy_seconds(jobs) == pytest.approx(10.0)


def test_without_slack_nothing_is_saved() -> None:
    jobs = [(0.0, 10.0, 10.0), (20.0, 28.0, 8.0)]
    assert lazy_seconds(jobs) == pytest.approx(at_once_seconds(jobs)) == pytest.approx(18.0)


@given(JOBS)
def test_it_is_between_the_longest_and_all_at_once(jobs: list[tuple[float, float, float]]) -> None:
    assert max(job[2] for job in jobs) - 1e-6 <= lazy_seconds(jobs) <= at_once_seconds(jobs) + 1e-6 * len(jobs)
