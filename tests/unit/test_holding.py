"""How long `joule` holds: when a workflow can wait no longer, who joins what runs, how margins follow what came."""

from __future__ import annotations

import random
from math import sqrt
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from scheduler.actions import Dispatch
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import (
    CallArrived,
    CallFailed,
    CallFinished,
    EnergyPrior,
    EngineSpec,
    KeyQuota,
    PolicyChanged,
    Tick,
    WorkflowDeclared,
)
from scheduler.holding.arrivals import FORGET_SECONDS, Arrivals
from scheduler.holding.board import Board, bucket_of, middle_of
from scheduler.holding.flow import Flow
from scheduler.holding.heaps import SPARE_ENTRIES, Sifted
from scheduler.holding.margin import Margin
from scheduler.holding.rules import Rules
from scheduler.holding.work import CallWork, IsolatedDurations
from scheduler.policies.joule import CHOICES_AT_ONCE, Joule
from scheduler.state import CallState
from scheduler.workflow.durations import LearnedDurations
from scheduler.workflow.spec import NodeSpec, WorkflowSpec

if TYPE_CHECKING:
    from scheduler.actions import Action

OUTPUT = 100


def mind() -> Scheduler:
    """`joule` over one engine whose steps cost what an H200's do."""
    scheduler = Scheduler(SchedulerConfig((EngineSpec("a", 512),), "joule"), 0.0)
    prior = prior_of(calibrations.load("h200-llama-3.1-8b"))
    scheduler.handle(EnergyPrior("a", prior, simulated=True), 0.0)
    return scheduler


def arrive(
    scheduler: Scheduler, name: str, now: float, *, deadline: float | None = None, kind: str | None = None,
    output: int = OUTPUT,
) -> list[Action]:  # fmt: skip
    """A declared workflow of one call, and the call."""
    node = NodeSpec("n", expected_output_tokens=output, max_output_tokens=output, prompt_tokens_estimate=200)
    spec = WorkflowSpec("-", name, name="w", workflow_class=kind, deadline_seconds=deadline, nodes=(node,))
    scheduler.handle(WorkflowDeclared(name, spec), now)
    return scheduler.handle(CallArrived(name, "-", None, name, 200, output, "n"), now)


def finish(scheduler: Scheduler, name: str, now: float, output: int = OUTPUT) -> list[Action]:
    """It is answered."""
    return scheduler.handle(CallFinished(name, 200, 0, output), now)


def sent(actions: list[Action]) -> list[str]:
    """The calls that go."""
    return [action.call_id for action in actions if isinstance(action, Dispatch)]


def with_company(scheduler: Scheduler) -> float:
    """Some workflows come and go, so that company is to be expected; returns the time after them."""
    for number in range(4):
        arrive(scheduler, f"before-{number}", 0.5 * number, kind="interactive")
        finish(scheduler, f"before-{number}", 0.5 * number + 0.4)
    return 2.0


class TestJoule:
    def test_interactive_calls_go_at_once(self) -> None:
        scheduler = mind()
        assert sent(arrive(scheduler, "w", 0.0, kind="interactive")) == ["w"]

    def test_one_is_held_until_it_can_wait_no_longer(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        assert sent(arrive(scheduler, "w", now, deadline=5.0)) == []
        room = scheduler.policy.rooms["a"]  # type: ignore[attr-defined]
        wake = room.decide(now)
        alone = scheduler.workflows.workflow("-", "w").graph.nodes["n"].tail_upper_seconds  # type: ignore[union-attr]
        assert now + 5.0 - 1.3 * alone < wake < now + 5.0 - alone
        assert sent(scheduler.handle(Tick(), wake - 0.01)) == []
        again = room.decide(wake)  # nothing came: less is expected than was
        assert wake <= again < wake + 0.05
        assert sent(scheduler.handle(Tick(), again + 1e-6)) == ["w"]

    def test_it_begins_earlier_where_what_comes_varies_more(self) -> None:
        """As much work in each second, in few lumps or in many."""
        wakes = []
        for lumps in (1, 10):
            arrivals, board, flow = Arrivals(0.0), Board(), Flow(("a", 0), None)
            for _ in range(lumps):
                arrivals.came(2.0 / lumps, 1.0 / lumps, 100.0, 0.0)
            flow.deadline = 60.0
            flow.held = {CallState(CallArrived("c", "-", None, "", 1), 0.0, 0): CallWork(400.0, 0.0, 0.0)}
            board.place(flow, 5.0, 5.0)
            due, wake = board.due(0.0, 0.1, 0.0, 0.0, 256.0, arrivals.newcomers(0.0), burst=2.0)
            assert not due
            wakes.append(wake)
        deviation = sqrt((1.0 + 1.0 + 1.0 / 3.0) / FORGET_SECONDS * middle_of(bucket_of(5.0)))
        assert wakes[1] - wakes[0] == pytest.approx(2.0 * deviation * (1.0 - 10.0**-0.5))

    def test_others_go_along_as_far_as_they_are_covered(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        arrive(scheduler, "first", now, deadline=4.0)
        arrive(scheduler, "short", now + 0.1, deadline=9.0, output=OUTPUT // 2)
        arrive(scheduler, "long", now + 0.2, deadline=60.0, output=20 * OUTPUT)
        room = scheduler.policy.rooms["a"]  # type: ignore[attr-defined]
        wake = room.decide(now + 0.2)
        assert sent(scheduler.handle(Tick(), wake + 1e-6)) == ["first", "short"]

    def test_who_cannot_bear_company_is_left_alone(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        arrive(scheduler, "first", now, deadline=2.0, output=300)
        went = sent(scheduler.handle(Tick(), now + 1.0))
        late = now + 1.0
        for number in range(200):
            went += sent(arrive(scheduler, f"more-{number}", late, deadline=60.0, output=300))
        assert "first" in went
        assert len(went) < 40, "two hundred prompts would make it miss its deadline"
        scheduler.validate()

    def test_a_lone_workflow_without_company_to_come_is_not_held(self) -> None:
        scheduler = mind()
        assert sent(arrive(scheduler, "w", 0.0, deadline=60.0)) == ["w"]

    @pytest.mark.parametrize("what", ["nothing", "which models are there", "a workflow of unknown length"])
    def test_so_many_that_steps_are_full_go_without_anyone_being_urgent(self, what: str) -> None:
        scheduler = mind()
        now = with_company(scheduler) + Rules().people_seconds
        if what != "nothing":  # it goes at once, and is not for people
            model, prompt, output, name, node = (
                ("m", 9, 2, "h", "n") if "workflow" in what else (None, 0, None, "", None)
            )
            assert sent(scheduler.handle(CallArrived("c", "-", model, name, prompt, output, node), now - 0.1)) == ["c"]
            scheduler.handle(CallFinished("c", prompt, 0, output), now - 0.1)
        went = []
        for number in range(600):
            went += sent(arrive(scheduler, f"w-{number}", now, deadline=500.0))
        assert len(went) == CHOICES_AT_ONCE, "the loop has other things to do, too"
        for tick in range(1, 20):
            went += sent(scheduler.handle(Tick(), now + tick / 1e3))
        assert len(went) == 256

    def test_so_many_do_not_go_where_people_come_who_would_wait_behind_them(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        went = []
        for number in range(600):
            went += sent(arrive(scheduler, f"w-{number}", now, deadline=500.0))
        went += sent(arrive(scheduler, "person", now + 1.0, kind="interactive"))
        assert "person" in went and len(went) < 40
        scheduler.validate()

    def test_what_nobody_knows_the_length_of_is_not_held(self) -> None:
        scheduler = mind()
        call = CallArrived("c", "-", None, "hinted", 200, OUTPUT, "step-1", deadline_ms=60_000.0)
        assert sent(scheduler.handle(call, 0.0)) == ["c"]

    def test_the_first_workflow_is_as_long_as_the_energy_model_has_it(self) -> None:
        scheduler = mind()
        arrive(scheduler, "w", 0.0, kind="interactive")
        node = scheduler.workflows.workflow("-", "w").graph.nodes["n"]  # type: ignore[union-attr]
        step = scheduler.policy.rooms["a"].costs.step_seconds  # type: ignore[attr-defined]
        assert OUTPUT * step < node.seconds < 1.2 * OUTPUT * step

    def test_who_needs_little_goes_before_those_that_are_queued(self) -> None:
        scheduler = mind()
        for number in range(300):  # more than go at once
            arrive(scheduler, f"w-{number}", 0.001 * number, kind="interactive", output=1000)
        assert sent(arrive(scheduler, "short", 0.4, kind="interactive", output=10)) == []
        assert sent(finish(scheduler, "w-0", 5.0, 1000)) == ["short"]

    def test_durations_are_as_before_when_another_decides(self) -> None:
        scheduler = mind()
        arrive(scheduler, "w", 0.0, kind="interactive")
        assert isinstance(scheduler.workflows.forecasts.durations, IsolatedDurations)
        scheduler.handle(PolicyChanged("fifo"), 1.0)
        assert isinstance(scheduler.workflows.forecasts.durations, LearnedDurations)

    def test_it_takes_over_what_is_held_and_runs(self) -> None:
        scheduler = mind()
        scheduler.handle(PolicyChanged("fifo", (("max_in_flight", 1),)), 0.0)
        for name in ("one", "two", "three"):
            arrive(scheduler, name, 0.0, kind="interactive")
        assert sent(scheduler.handle(PolicyChanged("joule"), 1.0)) == ["two", "three"]
        scheduler.validate()

    def test_the_log_of_decisions_hears_what_is_held_and_why(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        arrive(scheduler, "w", now, deadline=5.0)
        held = scheduler.calls["w"].held
        assert held is not None and held.first.rule == "company"
        soon, later = held.first.now, held.first.later
        assert soon is not None and later is not None
        assert soon.seconds < later.seconds < 5.0  # type: ignore[operator]
        assert 4.0 < held.first.hold_seconds < held.first.slack_seconds < 5.0  # type: ignore[operator]
        arrive(scheduler, "x", now + 1.0, deadline=5.0)
        second = scheduler.calls["x"].held
        assert second is not None and second.first.later.joules < 0.6 * second.first.now.joules  # type: ignore[operator, union-attr]
        for tick in range(40):
            scheduler.handle(Tick(), now + 1.0 + tick / 10)
        assert scheduler.calls["w"].engine == scheduler.calls["x"].engine == "a", "released as one"
        finish(scheduler, "w", now + 4.9)
        record = scheduler.decisions.find("w")
        assert record is not None and record.joules is not None and (regret := record.regret()) is not None
        assert abs(regret.seconds - (4.9 - soon.seconds)) < 1e-9  # type: ignore[operator]
        assert regret.joules == record.joules - soon.joules  # type: ignore[operator]
        assert scheduler.decisions.judged["joule", "company"].count == 1

    def test_what_is_sent_at_once_is_not_said_to_be_held(self) -> None:
        scheduler = mind()
        arrive(scheduler, "w", 0.0, kind="interactive")
        assert scheduler.calls["w"].held is None

    def test_the_work_of_a_call_that_is_tried_again_is_still_to_do(self) -> None:
        scheduler = mind()
        nodes = tuple(NodeSpec(name, expected_output_tokens=OUTPUT, prompt_tokens_estimate=200) for name in "xyz")
        scheduler.handle(WorkflowDeclared("w", WorkflowSpec("-", "w", workflow_class="interactive", nodes=nodes)), 0.0)
        for name in "xyz":
            scheduler.handle(CallArrived(name, "-", None, "w", 200, OUTPUT, name), 0.0)
        (flow,) = {id(flow): flow for flow in scheduler.policy.rooms["a"].flow_of.values()}.values()  # type: ignore[attr-defined]
        steps, marginal = flow.left_steps, flow.left_marginal
        scheduler.handle(CallFailed("y", "reset", retryable=True, engine_fault=False), 0.1)
        assert scheduler.calls["y"].attempts == 2
        assert abs(flow.left_steps - steps) < 1e-9
        assert abs(flow.left_marginal - marginal) < 1e-9, "the prompt is at the engine again"
        scheduler.validate()

    def test_an_impossible_deadline_is_taken_said_and_run_at_once(self) -> None:
        scheduler = mind()
        now = with_company(scheduler)
        assert sent(arrive(scheduler, "w", now, deadline=0.05)) == ["w"]
        workflow = scheduler.workflows.workflow("-", "w")
        assert workflow is not None and 0.1 < workflow.too_short_by_seconds < 2.0  # type: ignore[operator]
        arrive(scheduler, "x", now, deadline=5.0)
        assert scheduler.workflows.workflow("-", "x").too_short_by_seconds is None  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.floats(0.01, 500.0), st.floats(0.0, 10.0), st.booleans()), min_size=1, max_size=40))
def test_the_board_knows_what_all_together_compute(entries: list[tuple[float, float, bool]]) -> None:
    board, flows = Board(), []
    for number, (way, work, urgent) in enumerate(entries):
        flow = Flow(("a", number), None)
        flow.left_marginal, flow.running, flow.urgent = work, 1, urgent
        board.place(flow, way, way / 2)
        flows.append(flow)
    board.validate(flows)
    way = entries[0][0]
    company = board.present.company(bucket_of(way), way)
    exact = sum(work * min(1.0, way / other) for other, work, _ in entries)
    assert exact * 0.7 - 1e-9 <= company <= exact * 1.45 + 1e-9, "within half an octave of the ways' lengths"
    for flow in flows:
        board.leave(flow)
        flow.running = 0
    board.validate(flows)
    assert board.present.company(bucket_of(way), way) == 0.0


def test_the_margin_settles_where_as_many_miss_as_may() -> None:
    rng = random.Random(3)
    margin = Margin(0.05, 0.02, 0.0, 4.0)
    missed = 0
    for number in range(20_000):
        late = rng.gauss(0.0, 0.1) > margin.value
        (margin.missed if late else margin.kept)()
        missed += late and number > 2_000
    assert 0.03 < missed / 18_000 < 0.07


def test_options_are_checked() -> None:
    assert set(Joule.options) >= {"misses_share", "cover_share", "full_batch", "max_in_flight", "engine_priority"}
    for bad in (0, 1, 1.5, "x"):
        assert not Joule.options["misses_share"].takes(bad)


def test_nothing_is_left_behind_where_nobody_waits() -> None:
    scheduler = mind()
    room = None
    for number in range(6_000):
        arrive(scheduler, f"w-{number}", 0.01 * number, kind="interactive")
        if number >= 20:  # twenty are always under way, so that no heap is ever emptied for want of work
            finish(scheduler, f"w-{number - 20}", 0.01 * number)
        room = scheduler.policy.rooms["a"]  # type: ignore[attr-defined]
    assert room is not None and len(room.flow_of) == 20
    assert room.entries < 8 * (1024 + 5 * 21)
    scheduler.policy.validate()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1000)), min_size=1, max_size=3000))
def test_a_sifted_heap_has_the_smallest_true_entry_at_hand_and_does_not_grow(puts: list[tuple[int, int]]) -> None:
    keys: dict[int, int] = {}
    heap = Sifted(lambda entry: keys.get(entry[1]) == entry[0])
    for name, key in puts:
        keys[name] = key
        heap.push((key, name))
        assert heap.top()[0] == min(keys.values())
        assert len(heap) <= 2 * SPARE_ENTRIES + 8 * 31
    while keys:
        key, name = heap.top()
        assert keys.pop(name) == key
        heap.pop()
    assert heap.top() is None


def test_under_load_joule_shares_an_engine_by_the_weights_of_keys() -> None:
    quotas = (KeyQuota("big", weight=3.0), KeyQuota("small"))
    config = SchedulerConfig(
        (EngineSpec("a", 512),), "joule", (("keys_apart_seconds", 0.01), ("max_in_flight", 2)), quotas=quotas
    )
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior("a", prior_of(calibrations.load("h200-llama-3.1-8b")), simulated=True), 0.0)
    running: list[str] = []
    for number in range(200):
        for key in ("big", "small"):
            call = CallArrived(f"{key}/{number}", key, None, "", 200, OUTPUT)
            running += sent(scheduler.handle(call, 0.0))
    share = {"big": 0, "small": 0}
    for step in range(200):
        call_id = running.pop(0)
        share[call_id.partition("/")[0]] += 1
        running += sent(scheduler.handle(CallFinished(call_id, 200, 0, OUTPUT), 0.1 * step))
        scheduler.validate()
    assert 2.5 < share["big"] / share["small"] < 3.5


def test_nothing_starves_under_joule_however_many_come_that_need_less() -> None:
    """A bound: who is late or has no deadline is passed by nobody that comes `ageing_seconds` after it did."""
    config = SchedulerConfig((EngineSpec("a", 512),), "joule", (("max_in_flight", 1),), queue_seconds=1e6)
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior("a", prior_of(calibrations.load("h200-llama-3.1-8b")), simulated=True), 0.0)
    running = sent(scheduler.handle(CallArrived("busy/0", "-", None, "", 200, 50), 0.0))
    scheduler.handle(CallArrived("long", "-", None, "", 200, 100_000), 0.0)
    now = 0.0
    while running != ["long"]:
        now += 1.0
        assert float(running[0].partition("/")[2]) <= Rules().ageing_seconds, "one that came too late passes it"
        assert now < 1000.0
        for number in range(2):  # twice what the engine does
            assert not sent(scheduler.handle(CallArrived(f"{number}/{now}", "-", None, "", 20, 10), now))
        running = sent(scheduler.handle(CallFinished(running[0], 20, 0, 10), now))
    assert now > 100.0, "who needs less goes first, for a while"
    scheduler.validate()
