"""The simulated engine against the slow, obvious one, and what must hold whatever is asked of it."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from backends.twin.calibration import Calibration, load
from backends.twin.content import Piece, runs_of_pieces
from backends.twin.engine import TwinEngine
from backends.twin.request import Event, Finished, FirstToken, Request
from backends.twin.steps import StepRun
from tests.sim.naive_engine import NaiveEngine

H200 = load("h200-llama-3.1-8b")


def small(**engine: Any) -> Calibration:
    """A small engine with much contention. The prompt-to-block ratio of the real one, few of each."""
    settings_of = {
        "kv_cache_tokens": 40 * 16,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "async_scheduling": True,
        **engine,
    }
    return H200.model_copy(
        update={
            "engine": H200.engine.model_copy(update=settings_of),
            "frontend": H200.frontend.model_copy(update={"input_seconds": 0.001, "output_seconds": 0.0}),
            "model": H200.model.model_copy(update={"max_model_len": 400}),
        }
    )


class Ask(NamedTuple):
    wait_ms: int
    shared: int
    own: int
    output: int
    priority: int
    gone_after_ms: int | None


ASKS = st.lists(
    st.builds(
        Ask,
        # Odd thousandths: two things never fall on the same moment.
        wait_ms=st.sampled_from([0, 1, 3, 7, 20, 90, 400]),
        shared=st.sampled_from([0, 0, 16, 40, 100]),
        own=st.integers(1, 120),
        output=st.integers(1, 90),
        priority=st.integers(-1, 1),
        gone_after_ms=st.none() | st.integers(0, 300),
    ),
    min_size=1,
    max_size=14,
)


def play(asks: list[Ask], calibration: Calibration, policy: Any) -> tuple[TwinEngine, list[Event], NaiveEngine]:
    """The same requests to both engines. Validated after every thing that happens."""
    twin, naive = TwinEngine(calibration, policy=policy), NaiveEngine(calibration, policy)
    events: list[Event] = []
    doings: list[tuple[float, int, Any]] = []
    at = 0.0
    for number, ask in enumerate(asks):
        at += ask.wait_ms / 1000 + 1.3e-5 * (number + 1)
        doings.append((at, number, ask))
        if ask.gone_after_ms is not None:
            doings.append((at + ask.gone_after_ms / 1000 + 7.1e-6, number, None))
    for when, number, ask in sorted(doings, key=lambda doing: doing[0]):
        while (change := twin.next_change()) is not None and change <= when:
            events += twin.advance(change)
            twin.validate()
        events += twin.advance(when)
        name = f"r{number}"
        if ask is None:
            twin.abort(name, when)
        else:
            pieces = [Piece("shared", ask.shared), Piece(name, ask.own + ask.output)]
            runs = runs_of_pieces([piece for piece in pieces if piece.tokens], 16)
            twin.submit(Request(name, ask.shared + ask.own, ask.output, runs, ask.priority), when)
        twin.validate()
    while (change := twin.next_change()) is not None:
        events += twin.advance(change)
        twin.validate()
    _play_naive(naive, sorted(doings, key=lambda doing: doing[0]))
    return twin, events, naive


def _play_naive(naive: NaiveEngine, doings: list[tuple[float, int, Any]]) -> None:
    """It schedules one step after the other; what happens meanwhile is known to it when the next is scheduled."""
    inputs = naive.calibration.frontend.input_seconds
    asks = [(when, number, ask) for when, number, ask in doings if ask is not None]
    for when, number, ask in asks:
        pieces = [Piece("shared", ask.shared), Piece(f"r{number}", ask.own + ask.output)]
        runs = runs_of_pieces([piece for piece in pieces if piece.tokens], 16)
        naive.submit(f"r{number}", ask.shared + ask.own, ask.output, runs, ask.priority, when)
    assert inputs > 0
    naive.run(float("inf"))


def story(events: list[Event]) -> list[tuple[str, str, float]]:
    return [("first" if isinstance(event, FirstToken) else "finished", event.request.id, event.at) for event in events]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("ahead", [True, False])
@given(asks=ASKS)
@settings(max_examples=120)
def test_jumping_over_steps_changes_nothing(asks: list[Ask], policy: str, ahead: bool) -> None:
    stay = [ask._replace(gone_after_ms=None) for ask in asks]
    twin, events, naive = play(stay, small(async_scheduling=ahead), policy)
    told, expected = story(events), naive.story
    note(f"twin  {told}\nnaive {expected}")
    assert [(kind, name) for kind, name, _ in told] == [(kind, name) for kind, name, _ in expected]
    assert [at for *_, at in told] == pytest.approx([at for *_, at in expected], rel=1e-6)
    requests = {event.request.id: event.request for event in events}
    assert {name: each.cached_tokens for name, each in requests.items()} == {
        name: seq.cached_tokens for name, seq in naive.seqs.items()
    }
    assert {name: each.preemptions for name, each in requests.items()} == {
        name: seq.preemptions for name, seq in naive.seqs.items()
    }
    assert twin.meter.joules == pytest.approx(naive.joules, rel=1e-4)


@given(asks=ASKS)
@settings(max_examples=60)
def test_jumping_over_steps_changes_nothing_while_the_limit_binds(asks: list[Ask]) -> None:
    """Runs are straight lines there, and the card's average of the demand is none: nearly nothing, then."""
    stay = [ask._replace(gone_after_ms=None, wait_ms=max(ask.wait_ms, 20)) for ask in asks]
    calibration = small(async_scheduling=False, prompt_step_seconds=0.0)
    card = H200.card.model_copy(update={"limit_watts_default": 420.0})
    twin, events, naive = play(stay, calibration.model_copy(update={"card": card}), "fcfs")
    ends = {event.request.id: event.at for event in events if isinstance(event, Finished)}
    expected = {name: at for kind, name, at in naive.story if kind == "finished"}
    assert ends.keys() == expected.keys()
    assert twin.meter.joules == pytest.approx(naive.joules, rel=0.01)
    assert max(ends.values()) == pytest.approx(max(expected.values()), rel=0.01)


def test_the_host_starts_a_prompt_step_while_the_step_before_runs() -> None:
    """So that behind a step that decodes, less of its time is seen; and the next is scheduled when it has done so."""
    calibration = small(prompt_step_seconds=0.012, max_num_batched_tokens=16)
    twin = TwinEngine(calibration)
    runs: list[StepRun] = []
    twin.watch = runs.append
    twin.submit(Request("decodes", 16, 20), 0.0)
    twin.advance(0.03)
    twin.submit(Request("two steps", 30, 1), 0.03)
    twin.advance(10.0)
    first, *rest = [run for run in runs if run.chunks]
    assert first.cost.seconds == 0.012  # it was idle
    behind, last = rest
    decode_seconds = runs[runs.index(behind) - 1].cost.seconds
    assert behind.cost.seconds == pytest.approx(0.012 + 0.002 - decode_seconds, rel=0.01)
    assert last.start == behind.start + behind.cost.seconds
    assert last.cost.seconds == pytest.approx(0.012)  # nothing of it overlapped: its host was busy till then


@given(asks=ASKS)
@settings(max_examples=150)
def test_everyone_who_stays_is_answered_and_nothing_is_left(asks: list[Ask]) -> None:
    twin, events, _ = play_twin(asks, small())
    finished = {event.request.id for event in events if isinstance(event, Finished)}
    for number, ask in enumerate(asks):
        if ask.gone_after_ms is None:
            assert f"r{number}" in finished
    assert not twin.running
    assert not twin.requests
    assert twin.waiting.count == twin.decoding.count == twin.decoding.context_tokens == 0
    assert twin.cache.private == twin.cache.held == twin.cache.shared == 0
    first = [event.request.id for event in events if isinstance(event, FirstToken)]
    assert len(first) == len(set(first))
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert twin.totals.generation_tokens >= sum(ask.output for ask in asks if ask.gone_after_ms is None)


def play_twin(asks: list[Ask], calibration: Calibration) -> tuple[TwinEngine, list[Event], None]:
    twin, events, _ = play(asks, calibration, "priority")
    return twin, events, None


@given(st.lists(st.floats(0.0001, 3.0), min_size=1, max_size=40), ASKS)
@settings(max_examples=60)
def test_when_it_is_looked_at_changes_nothing(gaps: list[float], asks: list[Ask]) -> None:
    """Advancing in many small pieces or at once gives the same events and the same energy."""
    calibration = small()
    outcomes = []
    for looks in ([], gaps):
        twin = TwinEngine(calibration)
        events: list[Event] = []
        for number, ask in enumerate(asks):
            twin.submit(Request(f"r{number}", ask.own, ask.output), 0.0)
        now = 0.0
        for gap in looks:
            now += gap
            events += twin.advance(now)
            twin.validate()
        events += twin.advance(1000.0)
        outcomes.append((story(events), twin.meter.joules))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-9)


def test_those_who_leave_are_not_remembered() -> None:
    """Neither among those that decode nor in the queue: a client may come and go for ever."""
    calibration = small(max_num_seqs=2, kv_cache_tokens=4000 * 16)
    twin = TwinEngine(calibration)
    now = 0.0
    twin.submit(Request("stays", 100, 300, priority=-1), now)
    for number in range(3000):
        now += 0.0007
        twin.advance(now)
        twin.submit(Request(f"r{number}", 10, 300, priority=number % 3), now)
        if number >= 5:
            twin.abort(f"r{number - 5}", now)
    assert len(twin.decoding._ends) < 200
    assert len(twin.waiting._heap) < 200
    assert len(twin.requests) < 10
    twin.validate()


def test_a_prompt_waits_until_all_of_it_fits() -> None:
    """As vLLM's scheduler_reserve_full_isl: a first chunk alone is no reason to be admitted."""
    twin = TwinEngine(small(kv_cache_tokens=20 * 16, max_num_seqs=8))
    twin.submit(Request("first", 120, 60), 0.0)
    twin.advance(0.2)
    twin.submit(Request("large", 250, 10), 0.2)
    events = twin.advance(60.0)
    assert [event.request.id for event in events if isinstance(event, Finished)] == ["first", "large"]
    assert twin.totals.preemptions == 0


@given(st.integers(0, 2**32), st.sampled_from(["fcfs", "priority"]))
@settings(max_examples=25, deadline=None)
def test_a_prefix_cache_that_is_emptied_at_any_time(seed: int, policy: Any) -> None:
    """Nothing of before is found again, what ran begins again, and every call is answered in full."""
    rng = random.Random(seed)
    twin = TwinEngine(small(max_num_seqs=3, kv_cache_tokens=400 * 16), policy=policy)
    now, ended = 0.0, []
    for number in range(20):
        now += rng.choice([0.0, 0.003, 0.05, 0.5])
        ended += [event.request for event in twin.advance(now) if isinstance(event, Finished)]
        pieces = runs_of_pieces([Piece("shared", 160), Piece(f"r{number}", 100)], 16)
        twin.submit(Request(f"r{number}", 200, rng.randint(1, 60), pieces), now)
        if rng.random() < 0.3:
            twin.reset_prefix_cache(now)
        twin.validate()
    ended += [event.request for event in twin.advance(1000.0) if isinstance(event, Finished)]
    assert sorted(request.id for request in ended) == sorted(f"r{number}" for number in range(20))
    twin.reset_prefix_cache(1000.0)
    pieces = runs_of_pieces([Piece("shared", 160), Piece("last", 100)], 16)
    twin.submit(Request("last", 200, 5, pieces), 1000.0)
    [last] = [event.request for event in twin.advance(2000.0) if isinstance(event, Finished)]
    assert last.cached_tokens == 0
    twin.submit(Request("again", 200, 5, pieces), 2000.0)
    [again] = [event.request for event in twin.advance(3000.0) if isinstance(event, Finished)]
    assert again.cached_tokens > 100
    twin.validate()
