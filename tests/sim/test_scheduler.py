"""The scheduler under random traffic: every invariant after every event, every call ends once, every log replays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.actions import Abort, Action, Dispatch, Reject, WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.eventlog import event_line, head_line, replay
from scheduler.events import (
    AnsweredHere,
    BreakersChanged,
    CallArrived,
    CallFailed,
    CallFinished,
    ClientGone,
    Draining,
    EnginesChanged,
    EngineSpec,
    EngineStatus,
    Event,
    FirstToken,
    KeyQuota,
    PolicyChanged,
    QuotasChanged,
    Tick,
)

A, B = EngineSpec("a", 3), EngineSpec("b", 2)
QUOTAS = (
    KeyQuota("small", max_concurrency=2, requests_per_minute=60),
    KeyQuota("metered", tokens_per_minute=2000, token_budget=5000, budget_seconds=100.0),
)


class World:
    """Drives a scheduler as the gateway would, keeping its own books to compare with."""

    whole_every = 1
    """After so many events the graphs of all workflows are checked, after the others those that were touched."""

    def __init__(self, seed: int, policy: str) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        options = (("max_in_flight", 2),) if policy == "fifo" else ()
        config = SchedulerConfig((A, B), policy, options, QUOTAS, queue_calls=6, queue_seconds=20.0, workflows=4)
        self.scheduler = Scheduler(config, self.now)
        self.log = [head_line(config, self.now)]
        self.held: set[str] = set()
        self.running: dict[str, str] = {}
        self.over: set[str] = set()
        self.arrived = self.answered_here = 0
        self.wake_at: list[float] = []

    def tell(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        self.log.append(event_line(event, self.now, actions))
        # What was not touched is as it was; it is looked at again all the same, if not each time.
        whole = len(self.log) % self.whole_every == 0 or type(event) is Draining
        self.scheduler.validate(*(() if whole else (self.now,)))
        for action in actions:
            self.apply(action)
        assert self.held == {call_id for call_id, call in self.scheduler.calls.items() if call.engine is None}
        assert self.running == {i: c.engine for i, c in self.scheduler.calls.items() if c.engine is not None}
        return actions

    def apply(self, action: Action) -> None:
        match action:
            case Dispatch(call_id, engine):
                self.held.remove(call_id)
                self.running[call_id] = engine
            case Reject(call_id, status):
                assert call_id not in self.over
                assert 400 <= status < 600
                self.held.discard(call_id)
                self.running.pop(call_id, None)
                self.over.add(call_id)
            case Abort(call_id):
                assert call_id in self.over
            case WakeAt(at):
                self.wake_at.append(at)

    def arrive(self) -> None:
        call_id = f"c{self.arrived}"
        self.arrived += 1
        self.held.add(call_id)
        self.tell(
            CallArrived(
                call_id,
                self.random.choice(["-", "small", "metered"]),
                self.random.choice([None, "m", "other"]),
                f"w{self.random.randrange(6)}",
                self.random.randrange(300),
                self.random.choice([None, 50, 400]),
            )
        )

    def end(self, call_id: str) -> None:
        self.held.discard(call_id)
        self.running.pop(call_id, None)
        self.over.add(call_id)

    def step(self) -> None:
        rng = self.random
        self.now += rng.expovariate(2.0)
        known = sorted(self.held | set(self.running)) or ["nobody"]
        running = sorted(self.running) or ["nobody"]
        match rng.randrange(13):
            case 0 | 1 | 2 | 3:
                self.arrive()
            case 4 | 5:
                call_id = rng.choice(running)
                self.end(call_id)
                self.tell(CallFinished(call_id, rng.choice([None, 10]), None, rng.randrange(90), rng.randrange(50)))
            case 6:
                self.tell(FirstToken(rng.choice(running)))
            case 7:
                self.fail(rng.choice(known))
            case 8:
                call_id = rng.choice(known)
                self.end(call_id)
                self.tell(ClientGone(call_id, rng.randrange(50)))
            case 9:
                engine = rng.choice("ab")
                models = rng.choice([None, ("m",), ("m", "other")])
                self.tell(EngineStatus(engine, rng.random() < 0.7, models))
            case 10:
                self.tell(Tick())
            case 11:
                self.answered_here += 1
                self.tell(AnsweredHere(f"l{self.answered_here}", rng.choice(["-", "small", "metered"])))
            case _:
                self.reconfigure()

    def fail(self, call_id: str) -> None:
        call = self.scheduler.calls.get(call_id)
        retryable = self.random.random() < 0.6
        if call is not None and (not retryable or call.answering):
            self.end(call_id)
        elif call is not None and call.engine is not None:
            self.running.pop(call_id)
            self.held.add(call_id)  # until the scheduler sends or refuses it
        self.tell(CallFailed(call_id, "engine_reset", retryable, self.random.random() < 0.5))

    def reconfigure(self) -> None:
        choice = self.random.randrange(5)
        if choice == 0:
            self.tell(EnginesChanged(self.random.choice([(A, B), (A,), (EngineSpec("b", 1),)])))
        elif choice == 1:
            self.tell(QuotasChanged(self.random.choice([QUOTAS, QUOTAS[:1], ()])))
        elif choice == 2:
            self.tell(BreakersChanged(self.random.randrange(1, 5), self.random.choice([0.5, 4.0])))
        elif choice == 3:
            self.tell(PolicyChanged("fifo", (("max_in_flight", self.random.randrange(1, 4)),)))
        else:
            self.tell(PolicyChanged("passthrough"))

    def finish(self) -> None:
        """Everything comes to an end: nothing may be left."""
        self.tell(Draining())
        assert not self.held
        for call_id in sorted(self.running):
            self.end(call_id)
            self.tell(CallFinished(call_id, 1, 0, 1))
        assert not self.scheduler.calls
        assert len(self.over) >= self.arrived


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(["passthrough", "fifo"]), steps=st.integers(1, 250))
def test_random_traffic_keeps_every_invariant_and_replays(seed: int, policy: str, steps: int) -> None:
    world = World(seed, policy)
    for _ in range(steps):
        world.step()
    world.finish()
    replayed = list(replay(world.log))
    assert len(replayed) == len(world.log) - 1
    assert all(same for *_, same in replayed)


def test_a_changed_log_does_not_replay_to_the_same_actions() -> None:
    world = World(3, "fifo")
    for _ in range(120):
        world.step()
    changed = [line.replace('"engine": "a"', '"engine": "b"') for line in world.log]
    assert changed != world.log
    assert not all(same for *_, same in replay(changed))


def arrived(call_id: str, *, model: str | None = None, key: str = "-", tokens: int = 0) -> CallArrived:
    return CallArrived(call_id, key, model, call_id, tokens)


def scheduler(policy: str = "fifo", **config: object) -> Scheduler:
    options: tuple[tuple[str, object], ...] = (("max_in_flight", 1),) if policy == "fifo" else ()
    values: dict[str, object] = {"engines": (A,), "policy": policy, "policy_options": options, **config}
    return Scheduler(SchedulerConfig(**values), 0.0)  # type: ignore[arg-type]


def test_fifo_keeps_the_order_and_the_limit() -> None:
    mind = scheduler()
    assert mind.handle(arrived("1"), 0.0) == [Dispatch("1", "a")]
    assert mind.handle(arrived("2"), 0.1) == [WakeAt(600.1)]
    assert mind.handle(arrived("3"), 0.2) == []
    assert mind.handle(CallFinished("1", 1, 0, 1), 1.0) == [Dispatch("2", "a")]
    assert mind.handle(ClientGone("2"), 1.1) == [Abort("2", "a"), Dispatch("3", "a")]
    mind.validate()


def test_fifo_takes_the_engine_with_the_fewest_calls() -> None:
    mind = scheduler(engines=(A, B), policy_options=(("max_in_flight", 3),))
    engines = [mind.handle(arrived(str(i)), 0.0)[0].engine for i in range(4)]  # type: ignore[union-attr]
    assert engines == ["a", "b", "a", "b"]
    mind.handle(CallFinished("1", 1, 0, 1), 1.0)
    assert mind.handle(arrived("5"), 1.0) == [Dispatch("5", "b")]


def test_a_full_engine_of_one_model_does_not_block_another_model() -> None:
    mind = scheduler(engines=(A, B))
    mind.handle(EngineStatus("a", True, ("m",)), 0.0)
    mind.handle(EngineStatus("b", True, ("other",)), 0.0)
    mind.handle(arrived("1", model="m"), 0.0)
    mind.handle(arrived("2", model="m"), 0.0)
    assert mind.handle(arrived("3", model="other"), 0.0) == [Dispatch("3", "b")]


def test_passthrough_goes_round_robin() -> None:
    mind = scheduler("passthrough", engines=(A, B))
    assert [mind.handle(arrived(str(i)), 0.0)[0].engine for i in range(4)] == ["a", "b", "a", "b"]  # type: ignore[union-attr]


def test_a_retry_goes_to_another_engine_and_only_once() -> None:
    mind = scheduler("passthrough", engines=(A, B))
    assert mind.handle(arrived("1"), 0.0) == [Dispatch("1", "a")]
    assert mind.handle(CallFailed("1", "connect_refused", True, True), 0.1) == [Dispatch("1", "b")]
    (said,) = mind.handle(CallFailed("1", "engine_reset", True, True), 0.2)
    assert isinstance(said, Reject)
    assert (said.status, said.reason) == (502, "engine_reset")
    mind.validate()


def test_a_call_whose_answer_began_is_never_retried() -> None:
    mind = scheduler("passthrough", engines=(A, B))
    mind.handle(arrived("1"), 0.0)
    mind.handle(FirstToken("1"), 0.1)
    assert mind.handle(CallFailed("1", "engine_reset", True, True), 0.2) == []
    assert not mind.calls


def test_a_dead_engine_is_left_out_and_comes_back() -> None:
    mind = scheduler("passthrough", engines=(A, B))
    for at in range(3):
        mind.handle(EngineStatus("a", False), float(at))
    assert [mind.handle(arrived(str(i)), 3.0)[0].engine for i in range(2)] == ["b"] * 2  # type: ignore[union-attr]
    mind.handle(EngineStatus("a", True), 3.5)  # too early: still open
    assert mind.engines["a"].breaker.state == "open"
    mind.handle(EngineStatus("a", True), 4.5)
    assert mind.engines["a"].breaker.state == "half_open"
    assert mind.handle(arrived("try"), 4.6) == [Dispatch("try", "a")]
    mind.handle(FirstToken("try"), 4.7)
    assert mind.engines["a"].breaker.state == "closed"


def test_a_half_open_engine_gets_one_call_at_a_time_and_opens_for_longer_each_time() -> None:
    mind = scheduler("passthrough")
    for at in range(3):
        mind.handle(EngineStatus("a", False), float(at))
    mind.handle(EngineStatus("a", True), 4.5)
    assert mind.handle(arrived("1"), 4.6) == [Dispatch("1", "a")]
    assert [type(action) for action in mind.handle(arrived("2"), 4.6)] == [WakeAt]
    mind.handle(CallFailed("1", "engine_reset", False, True), 5.0)
    breaker = mind.engines["a"].breaker
    assert (breaker.state, breaker.open_until) == ("open", 9.0)
    assert not mind.calls, "the held call is refused too: nobody can serve it"


def test_errors_of_a_living_engine_do_not_open_its_breaker() -> None:
    mind = scheduler("passthrough")
    for i in range(20):
        mind.handle(arrived(str(i)), float(i))
        mind.handle(FirstToken(str(i)), float(i))  # a 500 is an answer too
        mind.handle(CallFinished(str(i), None, None, None), float(i))
    assert mind.engines["a"].breaker.state == "closed"


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        ([Draining()], 503, "draining"),
        ([EngineStatus("a", True, ("m",))], 404, "unknown_model"),
        ([EngineStatus("a", False)] * 3, 503, "no_engine"),
        ([arrived("x", model="n"), arrived("y", model="n"), arrived("z", model="n")], 503, "queue_full"),
    ],
)
def test_refusals_say_why(events: list[Event], status: int, reason: str) -> None:
    mind = scheduler(queue_calls=2)
    for event in events:
        mind.handle(event, 0.0)
    (said,) = mind.handle(arrived("1", model="n"), 0.0)
    assert isinstance(said, Reject)
    assert (said.status, said.reason) == (status, reason)
    mind.validate()


def test_a_call_that_waits_too_long_is_refused() -> None:
    mind = scheduler(queue_seconds=5.0)
    mind.handle(arrived("1"), 0.0)
    assert mind.handle(arrived("2"), 1.0) == [WakeAt(6.0)]
    mind.handle(arrived("3"), 3.0)
    said = mind.handle(Tick(), 6.0)
    assert isinstance(said[0], Reject)
    assert (said[0].call_id, said[0].reason, said[1:]) == ("2", "queue_timeout", [WakeAt(8.0)])


def test_key_concurrency_and_rates() -> None:
    quotas = (KeyQuota("k", max_concurrency=2, requests_per_minute=3),)
    mind = scheduler("passthrough", quotas=quotas)
    reasons = []
    for i in range(3):
        said = mind.handle(arrived(str(i), key="k"), 0.0)[0]
        reasons.append(said.reason if isinstance(said, Reject) else None)
    assert reasons == [None, None, "key_concurrency"]
    mind.handle(CallFinished("0", 1, 0, 1), 0.0)
    mind.handle(CallFinished("1", 1, 0, 1), 0.0)
    assert isinstance(mind.handle(arrived("3", key="k"), 0.0)[0], Dispatch)
    said = mind.handle(arrived("4", key="k"), 5.0)[0]
    assert isinstance(said, Reject)
    assert (said.status, said.reason, said.retry_after_seconds) == (429, "key_request_rate", pytest.approx(15.0))


def test_token_budgets_are_reserved_settled_and_renewed() -> None:
    quotas = (KeyQuota("k", token_budget=1000, budget_seconds=100.0),)
    mind = scheduler("passthrough", quotas=quotas)
    mind.handle(arrived("1", key="k", tokens=900), 0.0)
    said = mind.handle(arrived("2", key="k", tokens=200), 0.0)[0]
    assert isinstance(said, Reject)
    assert (said.reason, said.retry_after_seconds) == ("key_token_budget", 100.0)
    mind.handle(CallFinished("1", 100, 0, 50), 1.0)
    assert isinstance(mind.handle(arrived("3", key="k", tokens=850), 1.0)[0], Dispatch)
    mind.handle(ClientGone("3"), 2.0)
    assert mind.quotas.by_key["k"].budget_used_tokens == 150
    assert isinstance(mind.handle(arrived("4", key="k", tokens=1000), 101.0)[0], Dispatch)


def test_the_ledger_bounds_its_workflows_and_loses_no_token() -> None:
    mind = scheduler("passthrough", workflows=3)
    for i in range(10):
        mind.handle(arrived(str(i)), 0.0)
        mind.handle(CallFinished(str(i), 10, 4, 5), 0.0)
    assert len(mind.ledger.by_workflow) == 3
    assert mind.ledger.closed_workflows.prompt_tokens == 70
    assert mind.ledger.by_engine["a"].output_tokens == 50
    mind.validate()


def test_a_policy_is_changed_without_losing_a_call() -> None:
    mind = scheduler()
    for i in range(5):
        mind.handle(arrived(str(i)), 0.0)
    said = mind.handle(PolicyChanged("passthrough"), 1.0)
    assert said[:2] == [Dispatch("1", "a"), Dispatch("2", "a")]
    assert mind.ready.count == 2
    mind.validate()
