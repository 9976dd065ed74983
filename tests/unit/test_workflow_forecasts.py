"""Lengths, durations, pauses and templates: what is learned, that it holds, and that it stays bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import Node, NodeSpec, WorkflowBook, WorkflowLimits, WorkflowSpec
from scheduler.workflow.durations import PRIOR, LearnedDurations, SecondsForecast
from scheduler.workflow.forecasts import OUTPUT_TOKENS_UNSEEN, Forecast, pattern_of
from scheduler.workflow.quantiles import WINDOW_VALUES, LruTable, RecentQuantiles
from scheduler.workflow.templates import LEVELS_MAX, SHAPES_KEPT


@given(st.lists(st.floats(-1e9, 1e9), max_size=200))
def test_quantiles_are_those_of_the_last_values(values: list[float]) -> None:
    window = RecentQuantiles()
    for count, value in enumerate(values, 1):
        window.add(value)
        window.validate()
        last = sorted(values[max(0, count - WINDOW_VALUES) : count])
        assert window.median == last[len(last) // 2]
        below = sum(other <= window.upper for other in last)
        assert below == len(last) or below / (len(last) + 1) >= 0.9
        assert window.upper in last


@pytest.mark.parametrize("spread", ["uniform", "exponential", "heavy", "constant"])
def test_the_upper_quantile_covers_nine_in_ten(spread: str) -> None:
    rng = random.Random(spread)
    draws: dict[str, Callable[[], float]] = {
        "uniform": rng.random, "exponential": lambda: rng.expovariate(1.0), "heavy": lambda: rng.paretovariate(1.1),
        "constant": lambda: 3.0,
    }  # fmt: skip
    draw = draws[spread]
    covered = trials = 0
    for _ in range(200):
        window = RecentQuantiles()
        for _ in range(9 + rng.randrange(80)):
            window.add(draw())
        for _ in range(10):
            covered += draw() <= window.upper
            trials += 1
    assert covered / trials >= 0.88
    assert spread == "constant" or covered / trials <= 0.97


def test_a_table_forgets_what_was_not_used_for_longest() -> None:
    table: LruTable[str, list[int]] = LruTable(2, list)
    table.take("a").append(1)
    table.take("b")
    assert table.get("a") == [1]
    table.take("c")
    assert (table.get("b"), table.get("a"), len(table)) == (None, [1], 2)


def test_names_of_siblings_are_one_place() -> None:
    assert pattern_of("review-2-17") == pattern_of("review-0-3") == "review-#-#"
    assert pattern_of("550e8400-e29b-41d4-a716-446655440000") == "#"
    assert pattern_of("run-9f86d081884c7d65") == "run-#"
    assert pattern_of("reduce") == "reduce"


# --- durations ---


def test_durations_are_learned_and_never_negative() -> None:
    rng, model = random.Random(3), LearnedDurations()
    prior = model.forecast("m", 1000, 100, 100)
    assert prior.seconds == pytest.approx(PRIOR[0] + 1000 * PRIOR[1] + 100 * PRIOR[2])
    for _ in range(300):
        prompt, output = rng.randrange(5000), rng.randrange(1, 800)
        seconds = (0.3 + prompt / 8000 + output * 0.03) * rng.uniform(0.9, 1.1)
        model.observe("m", prompt, output, seconds * (50.0 if rng.random() < 0.03 else 1.0))  # some stall
    for prompt, output in ((0, 1), (4000, 20), (100, 700)):
        seconds, spread = model.forecast("m", prompt, output, output)
        assert seconds == pytest.approx(0.3 + prompt / 8000 + output * 0.03, rel=0.25, abs=0.2)
        assert 0.0 < spread < seconds
    assert model.forecast("m", 0, 100, 500).spread_seconds > 0.03 * 399
    assert model.forecast("other", 1000, 100, 100) == prior


def test_durations_follow_the_load() -> None:
    model = LearnedDurations()
    for factor in (1.0, 3.0):
        for number in range(150):
            model.observe("m", 500, 100 + number % 50, factor * (0.1 + 0.01 * (100 + number % 50)))
        assert model.forecast("m", 500, 100, 100).seconds == pytest.approx(factor * 1.1, rel=0.1)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**5), st.floats(-1.0, 1e5)), max_size=60))
@example([(0, 1492, 9e-06), (0, 7567, 27366.0), (0, 0, 68156.0)])
def test_durations_stay_sane_whatever_is_observed(seen: list[tuple[int, int, float]]) -> None:
    model = LearnedDurations()
    for prompt, output, seconds in seen:
        model.observe("m", prompt, output, seconds)
        forecast = model.forecast("m", 1000, 100, 200)
        assert 0.0 < forecast.seconds < 1e12
        assert 0.0 <= forecast.spread_seconds < 1e12


def test_models_are_bounded() -> None:
    model = LearnedDurations()
    for number in range(1000):
        model.observe(f"m{number}", 1, 1, 1.0)
    assert model.forecast("m0", 1, 1, 1) == LearnedDurations().forecast("m0", 1, 1, 1)
    assert model.forecast("m999", 1, 1, 1) != LearnedDurations().forecast("m999", 1, 1, 1)


# --- output tokens ---


class Runs:
    """Runs one-call workflows of one name; how long each answer is, the test says."""

    def __init__(self, limits: WorkflowLimits | None = None) -> None:
        self.book = WorkflowBook(limits)
        self.calls = 0

    def declare(self, node: NodeSpec, name: str | None = "agent", key: str = "key") -> Node:
        self.calls += 1
        spec = WorkflowSpec(key, f"wf{self.calls}", name, nodes=(node,))
        return self.book.declare(spec, float(self.calls)).graph.nodes[node.id]

    def run(self, node: NodeSpec, tokens: int, name: str | None = "agent", cached: int = 0) -> None:
        declared = self.declare(node, name)
        event = CallArrived(f"c{self.calls}", "key", "m", declared.workflow.id, 1000, node=node.id)
        self.book.call_arrived(event, float(self.calls))
        self.book.call_started(event.call_id, float(self.calls))
        self.book.call_finished(CallFinished(event.call_id, 1000, cached, tokens), self.calls + 0.5)


def forecast(node: Node) -> tuple[float, float]:
    return node.output_tokens_forecast, node.output_tokens_upper


def test_output_tokens_from_the_place_then_the_model_then_nothing() -> None:
    runs = Runs()
    assert forecast(runs.declare(NodeSpec("map-1"))) == OUTPUT_TOKENS_UNSEEN
    for tokens in range(100, 130):
        runs.run(NodeSpec("map-1"), tokens)
    assert forecast(runs.declare(NodeSpec("map-7"))) == (115, 127)
    assert forecast(runs.declare(NodeSpec("reduce", model="m"))) == (115, 127), "no history of its own"
    assert forecast(runs.declare(NodeSpec("map-7"), name="another")) == OUTPUT_TOKENS_UNSEEN
    assert forecast(runs.declare(NodeSpec("map-7", model="m"), key="other")) == OUTPUT_TOKENS_UNSEEN, (
        "never across keys"
    )


def test_what_is_declared_counts_and_the_maximum_bounds_it() -> None:
    runs = Runs()
    assert forecast(runs.declare(NodeSpec("a", expected_output_tokens=40))) == (40, 40)
    assert forecast(runs.declare(NodeSpec("a", expected_output_tokens=40, max_output_tokens=9))) == (9, 9)
    assert forecast(runs.declare(NodeSpec("a", max_output_tokens=300))) == (256, 300)
    for _ in range(10):
        runs.run(NodeSpec("a"), 700)
    assert forecast(runs.declare(NodeSpec("a", expected_output_tokens=40))) == (40, 700), "history knows better"
    assert forecast(runs.declare(NodeSpec("a", max_output_tokens=300))) == (300, 300)


class PromptSeconds:
    """A token that has to be computed lasts a second."""

    def forecast(
        self,
        model: str | None,
        uncached_tokens: float,
        output_tokens: float,
        output_tokens_upper: float,
        context_tokens: float = 0.0,
    ) -> SecondsForecast:
        return SecondsForecast(uncached_tokens, 0.0)

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """Nothing to learn."""


@pytest.mark.parametrize(("estimate", "cached", "expected"), [(1000, 0, 500), (1000, 900, 50), (500, 400, 300)])
def test_what_of_a_prompt_is_usually_cached_costs_nothing(estimate: int, cached: int, expected: int) -> None:
    """And an estimate that is usually too low is corrected."""
    book = WorkflowBook(durations=PromptSeconds())
    book.call_arrived(CallArrived("c", "key", "m", "wf", estimate), 0.0)
    book.call_finished(CallFinished("c", 1000, cached, 5), 1.0)
    node = book.call_arrived(CallArrived("d", "key", "m", "wf", estimate // 2), 2.0)
    assert node is not None and node.seconds == pytest.approx(expected)


def test_a_call_without_usage_teaches_nothing() -> None:
    book = WorkflowBook()
    book.call_arrived(CallArrived("c", "key", "m", "wf", 10), 0.0)
    book.call_started("c", 0.0)
    book.call_finished(CallFinished("c", None, None, None, 7), 1.0)
    assert len(book.forecasts.places) == len(book.forecasts.models) == 0


def test_histories_are_bounded() -> None:
    runs = Runs(WorkflowLimits(history_places=3, history_models=2, templates=2))
    for number in range(20):
        runs.run(NodeSpec("a"), 10, name=f"name{number}")
    assert len(runs.book.forecasts.places) == 3
    assert len(runs.book.templates.table) == 2


# --- pauses and templates ---


def agent(book: WorkflowBook, run: str, turns: int, pause: float, at: float = 0.0) -> float:
    """A workflow of so many calls one after another, a second each, with pauses between them."""
    now = at
    for turn in range(turns):
        book.call_arrived(CallArrived(f"{run}-{turn}", "key", "m", run, 100), now)
        book.call_started(f"{run}-{turn}", now)
        now += 1.0
        book.call_finished(CallFinished(f"{run}-{turn}", 100, 0, 20), now)
        now += pause
    return now


def test_the_next_run_has_a_forecast() -> None:
    book = WorkflowBook()
    for run in range(4):
        agent(book, f"run{run}", 5, 2.0)
        book.close("key", f"run{run}", 20.0)
    agent(book, "next", 2, 2.0, at=100.0)
    workflow = book.workflow("key", "next")
    assert workflow is not None
    template = book.templates.of(workflow)
    assert template is not None
    calls, tokens, seconds = template.forecast(workflow)
    assert [*calls, *tokens] == [3, 3, 60, 60]
    assert seconds == pytest.approx((9.0, 9.0)), "three calls and the pauses before them"
    assert [width.median for width in template.widths()] == [1] * 5
    assert workflow.forecast_calls == Forecast(3, 3)
    assert workflow.returns_at(103.5) == (106.0, 106.0)
    assert workflow.returns_at(107.0) == (107.0, 107.0), "late: any time now"
    assert workflow.projected_end(104.0) == pytest.approx(104.0 + 9.0)
    assert workflow.projected_end(111.0) == pytest.approx(111.0 + 7.0), "the pause is over, the calls are to come"
    assert workflow.end_allowed(104.0) == pytest.approx(100.0 + 1.5 * 13.0)
    book.call_arrived(CallArrived("x", "key", "m", "next", 100), 106.0)
    assert workflow.returns_at(106.0) is None
    node = book.tables.by_call.get("x")
    assert node is not None and node.tail_seconds == pytest.approx(node.seconds + 6.0)
    assert template.remainder(10_000).calls == (0, 0)


def test_shapes_and_levels_are_bounded() -> None:
    book = WorkflowBook()
    for run in range(SHAPES_KEPT + 4):
        agent(book, f"run{run}", LEVELS_MAX + 20 if run > SHAPES_KEPT else 3, 0.0)
        book.close("key", f"run{run}", 1e6)
    workflow = book.workflow("key", "run0")
    assert workflow is not None
    template = book.templates.of(workflow)
    assert template is not None
    assert len(template.shapes) == SHAPES_KEPT
    assert max(map(len, template.shapes)) == LEVELS_MAX
    assert template.widths()[-1].median == 21
    assert template.remainder(0).calls.upper == LEVELS_MAX + 19


def test_a_tools_time_is_learned() -> None:
    book = WorkflowBook()
    nodes = (NodeSpec("ask"), NodeSpec("search-1", ("ask",), tool=True), NodeSpec("say", ("search-1",)))
    for run in range(3):
        workflow = book.declare(WorkflowSpec("key", f"wf{run}", "agent", nodes=nodes), 0.0)
        book.call_arrived(CallArrived(f"c{run}", "key", "m", f"wf{run}", 10, node="ask"), 0.0)
        book.call_finished(CallFinished(f"c{run}", 10, 0, 5), 1.0)
        tool = workflow.graph.nodes["search-1"]
        assert (tool.started_at, tool.seconds) == (1.0, 6.0 if run else 1.0)
        assert workflow.projected_end(1.0) >= 1.0 + tool.seconds
        book.tool_finished("key", f"wf{run}", "search-1", 7.0)
        book.validate()


def test_a_client_that_thinks_before_a_declared_call_is_expected_to_think_again() -> None:
    book = WorkflowBook()
    spec = WorkflowSpec("key", "wf", "agent", nodes=(NodeSpec("a"), NodeSpec("b", ("a",), max_output_tokens=1)))
    for run in range(2):
        workflow = book.declare(spec._replace(workflow_id=f"wf{run}"), 0.0)
        book.call_arrived(CallArrived(f"a{run}", "key", "m", f"wf{run}", 10, node="a"), 0.0)
        book.call_finished(CallFinished(f"a{run}", 10, 0, 5), 1.0)
        b = workflow.graph.nodes["b"]
        assert workflow.projected_end(1.0) == pytest.approx(1.0 + 8.0 * run + b.seconds)
        book.call_arrived(CallArrived(f"b{run}", "key", "m", f"wf{run}", 10, node="b"), 9.0)
        book.call_finished(CallFinished(f"b{run}", 10, 0, 1), 10.0)
        book.validate()
