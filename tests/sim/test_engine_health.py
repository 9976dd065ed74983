"""Which engines are given calls: breakers and their rule, and engines that nobody has seen yet."""

from __future__ import annotations

import pytest

from scheduler.actions import Dispatch, WakeAt
from scheduler.breaker import GOOD_PROBES_TO_CLOSE, BreakerRule
from scheduler.core import Scheduler
from scheduler.events import (
    BreakersChanged,
    CallFailed,
    CallFinished,
    EnginesChanged,
    EngineSpec,
    EngineStatus,
)
from tests.sim.test_scheduler import A, B, arrived, scheduler


def half_open() -> Scheduler:
    """One engine, whose breaker is half-open at 4.5 s."""
    mind = scheduler("passthrough")
    for at in range(3):
        mind.handle(EngineStatus("a", False), float(at))
    mind.handle(EngineStatus("a", True), 4.5)
    assert mind.engines["a"].breaker.state == "half_open"
    return mind


def test_good_probes_close_a_breaker_whose_trial_takes_long() -> None:
    mind = half_open()
    assert mind.handle(arrived("long"), 4.6) == [Dispatch("long", "a")]
    assert [type(action) for action in mind.handle(arrived("2"), 4.6)] == [WakeAt]
    for _ in range(GOOD_PROBES_TO_CLOSE - 1):
        assert mind.handle(EngineStatus("a", True), 5.0) == []
    assert mind.handle(EngineStatus("a", True), 6.0) == [Dispatch("2", "a")]
    assert mind.engines["a"].breaker.state == "closed"
    mind.handle(CallFailed("long", "engine_reset", False, True), 7.0)
    assert mind.engines["a"].breaker.state == "closed", "one fault of a closed breaker's"
    mind.validate()


def test_good_probes_before_a_failed_trial_are_worth_nothing_after_it() -> None:
    mind = half_open()
    mind.handle(arrived("1"), 4.6)
    for _ in range(GOOD_PROBES_TO_CLOSE - 1):
        mind.handle(EngineStatus("a", True), 5.0)
    mind.handle(CallFailed("1", "engine_reset", False, True), 5.5)
    assert mind.engines["a"].breaker.state == "open"
    mind.handle(EngineStatus("a", True), 20.0)
    mind.handle(arrived("2"), 20.0)
    mind.handle(EngineStatus("a", True), 21.0)
    assert mind.engines["a"].breaker.state == "half_open"


def test_another_rule_holds_for_engines_that_exist_and_for_those_to_come() -> None:
    mind = scheduler("passthrough")
    mind.handle(BreakersChanged(50, 25.0), 0.0)
    mind.handle(EnginesChanged((A, B)), 0.0)
    assert [engine.breaker.rule for engine in mind.engines.values()] == [BreakerRule(50, 25.0)] * 2
    for _ in range(49):
        mind.handle(EngineStatus("a", False), 1.0)
    assert mind.engines["a"].breaker.state == "closed"
    mind.handle(EngineStatus("a", False), 1.0)
    assert (mind.engines["a"].breaker.state, mind.engines["a"].breaker.open_until) == ("open", 26.0)
    mind.handle(BreakersChanged(2, 3.0), 2.0)
    mind.handle(EngineStatus("a", True), 5.0)
    assert mind.engines["a"].breaker.state == "half_open", "a shorter time holds at once"


@pytest.mark.parametrize("policy", ["passthrough", "fifo"])
def test_an_engine_that_no_probe_has_seen_gets_calls_only_if_there_is_no_other(policy: str) -> None:
    mind = scheduler(policy, engines=(A, B), policy_options=(("max_in_flight", 3),) if policy == "fifo" else ())
    mind.handle(EngineStatus("b", True, ("m",)), 0.0)
    assert mind.handle(arrived("1", model="m"), 0.0) == [Dispatch("1", "b")]
    assert mind.handle(arrived("2", model="m"), 0.0) == [Dispatch("2", "b")]
    assert mind.handle(arrived("3", model="other"), 0.0) == [Dispatch("3", "a")], "it may have it"
    mind.handle(EngineStatus("a", False), 0.5)
    for call in ("1", "2"):
        mind.handle(CallFinished(call, 1, 0, 1), 1.0)
    assert mind.handle(arrived("4", model="m"), 1.0) == [Dispatch("4", "b")]
    mind.handle(EngineStatus("a", True, ("m",)), 2.0)
    engines = {mind.handle(arrived(call, model="m"), 2.0)[0].engine for call in ("5", "6")}  # type: ignore[union-attr]
    assert engines == {"a", "b"}
    mind.validate()


def test_a_retry_avoids_the_engine_that_failed_even_for_one_unseen() -> None:
    mind = scheduler("passthrough", engines=(A, EngineSpec("c", 3)))
    mind.handle(EngineStatus("a", True), 0.0)
    assert mind.handle(arrived("1"), 0.0) == [Dispatch("1", "a")]
    assert mind.handle(CallFailed("1", "engine_reset", True, True), 1.0) == [Dispatch("1", "c")]
