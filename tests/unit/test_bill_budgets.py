"""Budgets of joules: what is reserved, booked and given back, and what happens where nobody knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.budgets import JouleBudgets, JouleQuota


def budgets(joules: float = 100.0, **options: object) -> JouleBudgets:
    return JouleBudgets([JouleQuota("k", joules, 60.0)], 0.0, **options)  # type: ignore[arg-type]


def test_a_key_without_a_budget_costs_nothing() -> None:
    found = budgets()
    assert found.admit("a", "other", "w", None, None, 0.0) is None
    found.settled("a", 5.0, 1.0)
    assert found.by_key["k"].used_joules == 0


def test_a_call_is_reserved_for_then_reckoned_with_then_booked() -> None:
    found = budgets()
    use = found.by_key["k"]
    assert found.admit("a", "k", "", None, 60.0, 0.0) is None
    assert use.left_joules == 40.0
    found.ended("a", 20.0)
    assert use.left_joules == 80.0
    found.settled("a", 25.0, 1.0)
    assert (use.used_joules, use.reserved_joules) == (25.0, 0.0)
    found.settled("a", 25.0, 1.0)  # a second time nothing happens
    assert use.used_joules == 25.0
    found.validate()


def test_more_than_is_left_is_refused_until_the_period_ends() -> None:
    found = budgets()
    assert found.admit("a", "k", "", None, 90.0, 0.0) is None
    refused = found.admit("b", "k", "", None, 20.0, 15.0)
    assert refused is not None
    assert refused.reason == "key_joule_budget"
    assert refused.retry_after_seconds == 45.0
    assert "10.0 J left" in refused.message
    found.settled("a", 90.0, 20.0)
    assert found.admit("b", "k", "", None, 20.0, 60.0) is None
    assert found.by_key["k"].used_joules == 0


def test_a_period_ends_as_often_as_it_has_passed() -> None:
    found = budgets()
    found.admit("a", "k", "", None, 90.0, 0.0)
    found.settled("a", 90.0, 1.0)
    found.admit("b", "k", "", None, 1.0, 200.0)
    assert found.by_key["k"].ends_at == 240.0


def test_a_budget_that_is_used_up_lets_running_calls_finish_and_no_other_begin() -> None:
    found = budgets()
    assert found.admit("a", "k", "", None, 10.0, 0.0) is None
    found.settled("a", 130.0, 1.0)
    assert found.by_key["k"].left_joules == -30.0
    refused = found.admit("b", "k", "", None, 0.0, 2.0)
    assert refused is not None
    assert "has 0.0 J left" in refused.message


def test_a_workflow_has_a_budget_of_its_own() -> None:
    found = budgets(1e6)
    assert found.admit("a", "k", "w", 50.0, 30.0, 0.0) is None
    refused = found.admit("b", "k", "w", None, 30.0, 0.0)
    assert refused is not None
    assert refused.reason == "workflow_joule_budget"
    assert refused.retry_after_seconds is None
    assert found.by_key["k"].reserved_joules == 30.0  # nothing was reserved for the refused one
    assert found.admit("c", "other", "w", None, 30.0, 0.0) is None  # another key's workflow of the same name
    assert found.admit("d", "k", "w", 500.0, 30.0, 0.0) is None  # its client gives it more


@pytest.mark.parametrize(("unavailable", "refused"), [("pass", False), ("refuse", True)])
def test_unknown_energy_is_not_0(unavailable: str, refused: bool) -> None:
    found = budgets(unavailable=unavailable)
    answer = found.admit("a", "k", "", None, None, 0.0)
    assert (answer is not None) == refused
    if answer is not None:
        assert answer.reason == "energy_unavailable"
        return
    found.settled("a", None, 1.0)
    use = found.by_key["k"]
    assert use.unknown_calls == 1
    assert use.used_joules == 0
    use.pass_time(60.0)
    assert use.unknown_calls == 0


def test_what_prefix_sharing_moves_is_booked_and_never_below_0() -> None:
    found = budgets()
    found.admit("a", "k", "w", 50.0, 10.0, 0.0)
    found.settled("a", 10.0, 1.0)
    found.moved("k", "w", -4.0)
    assert found.by_key["k"].used_joules == 6.0
    assert found.by_workflow["k", "w"].used_joules == 6.0
    found.moved("k", "w", -40.0)
    assert found.by_key["k"].used_joules == 0.0
    found.moved("nobody", "w", 40.0)


def test_a_declared_budget_holds_for_calls_that_say_none_and_a_new_declaration_begins_anew() -> None:
    found = budgets(1e6)
    found.declare("k", "w", 50.0, 0.0)
    assert found.admit("a", "k", "w", None, 40.0, 0.0) is None
    refused = found.admit("b", "k", "w", None, 20.0, 0.0)
    assert refused is not None and refused.reason == "workflow_joule_budget"
    assert found.admit("c", "k", "other", None, 20.0, 0.0) is None
    found.declare("k", "w", 50.0, 1.0)
    assert found.admit("d", "k", "w", None, 20.0, 1.0) is None
    found.declare("k", "w", None, 2.0)
    assert found.admit("e", "k", "w", None, 1e5, 2.0) is None, "the key's own budget is large enough"
    found.validate()


def test_only_so_many_workflows_are_remembered() -> None:
    found = budgets(1e6, workflows_max=2)
    for name in ("w1", "w2", "w1", "w3"):
        found.admit(f"call of {name}", "k", name, 50.0, 1.0, 0.0)
    assert list(found.by_workflow) == [("k", "w1"), ("k", "w3")]
    assert found.forgotten_workflows == 1


def test_only_so_many_calls_are_followed_and_the_rest_is_used() -> None:
    found = budgets(1e6, calls_max=2)
    for name in "abc":
        found.admit(name, "k", "", None, 10.0, 0.0)
    use = found.by_key["k"]
    assert (use.used_joules, use.reserved_joules) == (10.0, 20.0)
    found.validate()


def test_a_reload_keeps_what_was_used_and_what_is_reserved() -> None:
    found = budgets()
    found.admit("a", "k", "", None, 30.0, 0.0)
    found.admit("b", "k", "", None, 30.0, 0.0)
    found.settled("a", 20.0, 1.0)
    found.change([JouleQuota("k", 80.0, 1000.0), JouleQuota("fresh", 5.0)], 2.0)
    use = found.by_key["k"]
    assert (use.used_joules, use.reserved_joules, use.ends_at) == (20.0, 30.0, 60.0)
    assert found.by_key["fresh"].left_joules == 5.0
    found.change([], 3.0)
    found.change([JouleQuota("k", 80.0)], 4.0)
    assert found.by_key["k"].reserved_joules == 30.0
    found.validate()


def test_a_restart_remembers_what_was_used() -> None:
    found = budgets()
    found.admit("a", "k", "", None, 30.0, 0.0)
    found.settled("a", 20.0, 1.0)
    found.admit("b", "k", "", None, 5.0, 1.0)
    kept = found.budgets(10.0)
    assert kept == (("k", 25.0, 50.0),)  # b will be settled by nobody
    other = budgets()
    other.restore([*kept, ("gone", 1.0, 1.0)], 1000.0)
    assert other.by_key["k"].used_joules == 25.0
    assert other.by_key["k"].ends_at == 1050.0
    other.restore([("k", 25.0, -70.0)], 1000.0)
    assert other.by_key["k"].used_joules == 0.0
    assert other.by_key["k"].ends_at == 1050.0


events = st.lists(
    st.tuples(
        st.sampled_from(["admit", "ended", "settled", "moved"]),
        st.integers(0, 8),
        st.one_of(st.none(), st.floats(0, 50, allow_nan=False)),
        st.floats(0, 20),
    ),
    max_size=40,
)


@given(events)
def test_reservations_are_those_of_the_calls_that_are_not_settled(steps: list) -> None:
    found = budgets(150.0, calls_max=4)
    now = 0.0
    open_calls: set[str] = set()
    for what, number, joules, passed in steps:
        now += passed
        name = f"c{number}"
        if what == "admit" and name not in open_calls:
            if found.admit(name, "k", "w", 80.0, joules, now) is None:
                open_calls.add(name)
        elif what == "ended":
            found.ended(name, joules)
        elif what == "settled":
            open_calls.discard(name)
            found.settled(name, joules, now)
        elif what == "moved":
            found.moved("k", "w", (joules or 0.0) - 25.0)
        found.validate()
    for name in list(open_calls):
        found.settled(name, 0.0, now)
    assert found.by_key["k"].reserved_joules == pytest.approx(0.0, abs=1e-6)
