"""However a call ends, and wherever it stands then: its place is free, its key is charged, and nothing waits for it."""

from __future__ import annotations

from scheduler.actions import Abort, Dispatch, Reject, WakeAt
from scheduler.core import Scheduler
from scheduler.engines import MODEL_SHOWN_CHARACTERS
from scheduler.events import (
    AnsweredHere,
    CallArrived,
    CallFailed,
    CallFinished,
    ClientGone,
    Draining,
    EngineStatus,
    FirstToken,
    KeyQuota,
    PolicyChanged,
    Tick,
)
from scheduler.snapshot import snapshot
from tests.sim.test_scheduler import arrived, scheduler

BUDGET = (KeyQuota("k", token_budget=1000),)


def used(mind: Scheduler) -> int:
    return mind.quotas.by_key["k"].budget_used_tokens


def test_a_retry_that_is_held_again_is_forgotten_when_its_time_is_up() -> None:
    mind = scheduler("passthrough", queue_seconds=50.0)
    assert mind.handle(arrived("a"), 0.0) == [Dispatch("a", "a")]
    assert mind.handle(arrived("b"), 0.0) == [Dispatch("b", "a")]
    mind.handle(PolicyChanged("fifo", (("max_in_flight", 1),)), 1.0)
    assert mind.handle(CallFailed("a", "engine_reset", True, True), 2.0) == [WakeAt(50.0)], "no room: held"
    assert mind.handle(CallFailed("a", "total_timeout", False, False), 3.0) == []
    assert list(mind.calls) == ["b"]
    mind.validate()
    assert mind.handle(CallFinished("b", 1, 0, 1), 4.0) == [], "the dead call is not sent"
    assert mind.handle(arrived("c"), 5.0) == [Dispatch("c", "a")]


def test_a_call_that_was_never_sent_is_forgotten_when_its_time_is_up() -> None:
    mind = scheduler(quotas=(KeyQuota("k", max_concurrency=2, token_budget=1000),))
    mind.handle(arrived("1"), 0.0)
    mind.handle(arrived("2", key="k", tokens=100), 0.0)
    assert mind.handle(CallFailed("2", "total_timeout", False, False), 1.0) == []
    assert (list(mind.calls), mind.quotas.by_key["k"].running, used(mind)) == (["1"], 0, 0)
    mind.validate()


def test_a_fault_that_may_be_retried_is_no_held_calls() -> None:
    mind = scheduler()
    mind.handle(arrived("1"), 0.0)
    mind.handle(arrived("2"), 0.0)
    assert mind.handle(CallFailed("2", "engine_reset", True, True), 1.0) == []
    assert list(mind.calls) == ["1", "2"]
    mind.validate()


def test_a_tick_that_comes_early_asks_for_the_next_one() -> None:
    mind = scheduler(queue_seconds=5.0)
    mind.handle(arrived("1"), 0.0)
    assert mind.handle(arrived("2"), 0.0) == [WakeAt(5.0)]
    assert mind.handle(Tick(), 4.999) == [WakeAt(5.0)]
    (said,) = mind.handle(Tick(), 5.0)
    assert isinstance(said, Reject) and said.reason == "queue_timeout"


def test_a_client_that_leaves_is_charged_what_it_received() -> None:
    mind = scheduler("passthrough", quotas=BUDGET)
    mind.handle(arrived("1", key="k", tokens=40), 0.0)
    mind.handle(FirstToken("1"), 1.0)
    assert mind.handle(ClientGone("1", 300), 2.0) == [Abort("1", "a")]
    assert used(mind) == 340
    mind.handle(CallArrived("2", "k", None, "", 40, 500), 3.0)
    mind.handle(FirstToken("2"), 4.0)
    mind.handle(ClientGone("2", 10), 5.0)
    assert used(mind) == 340 + 540, "its reservation was more"
    mind.handle(arrived("3", key="k", tokens=40), 6.0)
    mind.handle(ClientGone("3"), 7.0)
    assert used(mind) == 880, "nothing was received"


def test_an_answer_that_broke_off_or_has_no_usage_is_charged_what_was_seen() -> None:
    mind = scheduler("passthrough", quotas=BUDGET)
    mind.handle(arrived("1", key="k", tokens=40), 0.0)
    mind.handle(FirstToken("1"), 1.0)
    mind.handle(CallFailed("1", "client_stalled", False, False, 200), 2.0)
    assert used(mind) == 240
    mind.handle(arrived("2", key="k", tokens=40), 3.0)
    mind.handle(CallFinished("2", None, None, None, 100), 4.0)
    assert used(mind) == 380
    assert mind.ledger.by_engine["a"].output_tokens == 0, "an estimate is not booked"
    mind.handle(arrived("3", key="k", tokens=40), 5.0)
    mind.handle(CallFinished("3", 7, 0, 3, 100), 6.0)
    assert used(mind) == 390, "what the engine reports holds"


def test_what_the_gateway_answers_itself_counts_against_its_key_and_is_over_at_once() -> None:
    mind = scheduler(quotas=(KeyQuota("k", max_concurrency=1, requests_per_minute=2),))
    assert mind.handle(AnsweredHere("1", "k"), 0.0) == []
    assert mind.handle(AnsweredHere("2", "k"), 0.0) == []
    (said,) = mind.handle(AnsweredHere("3", "k"), 0.0)
    assert isinstance(said, Reject) and (said.status, said.reason) == (429, "key_request_rate")
    assert not mind.calls
    for _ in range(3):
        mind.handle(EngineStatus("a", False), 1.0)
    (said,) = mind.handle(AnsweredHere("4", "-"), 1.0)
    assert isinstance(said, Reject) and (said.status, said.reason) == (503, "no_engine")
    mind.handle(Draining(), 2.0)
    (said,) = mind.handle(AnsweredHere("5", "-"), 2.0)
    assert isinstance(said, Reject) and said.reason == "draining"
    mind.validate()


def test_the_name_of_an_unknown_model_is_shown_in_part() -> None:
    mind = scheduler()
    mind.handle(EngineStatus("a", True, ("m",)), 0.0)
    (said,) = mind.handle(arrived("1", model="Z" * 5_000_000), 0.0)
    assert isinstance(said, Reject)
    assert said.message == f"The model `{'Z' * MODEL_SHOWN_CHARACTERS}` does not exist; there are: m"


def test_all_that_a_client_said_is_in_the_schedulers_picture() -> None:
    mind = scheduler()
    mind.handle(
        CallArrived(
            *("1", "-", None, "run", 5),
            node="n",
            identity_source="dynamo",
            parent_id="p",
            energy_budget_joules=40.5,
            strict_priority=2,
            speculative_prefill=True,
        ),
        0.0,
    )
    said = mind.calls["1"].arrived
    assert (said.energy_budget_joules, said.strict_priority, said.speculative_prefill) == (40.5, 2, True)
    (shown,) = snapshot(mind, 0.0)["calls"]
    assert (shown["workflow"], shown["node"], shown["parent"], shown["identity_source"]) == ("run", "n", "p", "dynamo")
