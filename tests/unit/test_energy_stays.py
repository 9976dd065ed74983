"""A call's part of the steps of its stay, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.columns import ENDED_AT, NAN, Columns
from scheduler.energy.stays import FRONTEND_SECONDS, Pace, Stays

if TYPE_CHECKING:
    from scheduler.energy.columns import Floats

INFINITE = float("inf")


def crowd(*calls: tuple[float, float, float]) -> Columns:
    """Calls: sent, ended, prompt tokens."""
    columns = Columns()
    for number, (sent, _, prompt) in enumerate(calls):
        columns.ids.append(f"c{number}")
        columns.sent.extend((sent, prompt, prompt, INFINITE, 1.0, INFINITE))
    columns.take()
    columns.table[ENDED_AT] = [ended for _, ended, _ in calls]
    return columns


def parts(columns: Columns, now: float, pace: Pace | None = None, *edges: float) -> Floats:
    """At the end, with further windows that end before."""
    stays = Stays()
    stays.pace = pace or Pace()
    ended = columns.table[ENDED_AT].copy()
    for edge in edges:
        columns.table[ENDED_AT] = np.where(ended <= edge, ended, INFINITE)
        stays.close(columns.table, edge)
        columns.forget()
        ended = ended[ended > edge]
    columns.table[ENDED_AT] = ended
    return stays.close(columns.table, now)


def test_a_call_alone_has_all_of_the_steps() -> None:
    assert parts(crowd((0.0, 2.0, 0.0)), 3.0) == pytest.approx([1.0])


def test_calls_share_the_steps_of_the_time_in_which_they_are_together() -> None:
    first, second = parts(crowd((0.0, 4.0, 0.0), (1.0, 2.0, 0.0)), 4.0)
    assert second == pytest.approx(0.5)
    assert first == pytest.approx((1 + 0.5 + 2) / 4, abs=0.01)


def test_who_leaves_before_the_next_step_shares_it_with_all_that_are_there() -> None:
    pace = Pace(mean_seconds=0.02)
    first, late = parts(crowd((0.0, 2.0, 0.0), (1.0, 1.01, 0.0)), 2.0, pace)
    assert late == pytest.approx(0.5)
    assert first == pytest.approx(1.0)


def test_while_a_prompt_is_computed_no_steps_are_shared() -> None:
    pace = Pace(0.01, 0.0, 0.001)
    first, _ = parts(crowd((0.0, 3.0, 0.0), (1.0, 3.0, 1000.0)), 3.0, pace)  # a second of prefill
    assert first == pytest.approx((1 + 0.5) / 2, abs=0.01)


def test_steps_of_many_calls_take_longer_and_are_fewer() -> None:
    first, _ = parts(crowd((0.0, 2.0, 0.0), (1.0, 2.0, 0.0)), 2.0, Pace(0.01, 0.03, 0.0))
    assert first == pytest.approx((100 + 25 / 2) / 125, abs=0.01)  # 100 steps alone, then 25 of two


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5), st.floats(0, 3000)), min_size=1, max_size=12),
    st.floats(0.1, 9.9),
)
def test_where_windows_end_changes_nothing(calls: list[tuple[float, float, float]], edge: float) -> None:
    stays = sorted((sent, sent + lasts, prompt) for sent, lasts, prompt in calls)
    pace = Pace(0.01, 0.002, 0.0002, 0.01)
    at_once = parts(crowd(*stays), 11.0, pace)
    # A call is in no window's table before it was sent.
    first = [call for call in stays if call[0] < edge]
    columns = crowd(*first)
    maker = Stays()
    maker.pace = pace
    columns.table[ENDED_AT] = [ended if ended <= edge else INFINITE for _, ended, _ in first]
    found = list(maker.close(columns.table, edge)[columns.table[ENDED_AT] <= edge])
    columns.forget()
    for number, (sent, _, prompt) in enumerate(stays[len(first) :], len(first)):
        columns.ids.append(f"c{number}")
        columns.sent.extend((sent, prompt, prompt, INFINITE, 1.0, INFINITE))
    columns.take()
    columns.table[ENDED_AT] = [ended for _, ended, _ in stays if ended > edge]
    found += list(maker.close(columns.table, 11.0))
    if not any(abs(sent + FRONTEND_SECONDS + 0.015 - edge) < 1e-6 for sent, _, _ in stays):
        assert sorted(found) == pytest.approx(sorted(at_once.tolist()), abs=1e-6)
    assert all(0 < part <= 1 + 1e-9 for part in found)
    assert not any(part == NAN for part in found)
