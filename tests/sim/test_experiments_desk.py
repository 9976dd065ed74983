"""Experiments inside the scheduler: under random traffic and faults, and in virtual time before a metered twin."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.experiments.stage import mixed
from bench.load.virtual_meter import VirtualMeter
from bench.twin.play import Player
from scheduler.actions import Action, BlocksClosed, ExperimentEnded
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.eventlog import event_line, head_line, replay
from scheduler.events import (
    CallArrived,
    CallFinished,
    CapApplied,
    ClientGone,
    EnergyPrior,
    EngineSpec,
    Event,
    ExperimentStarted,
    ExperimentStopped,
    ExperimentTick,
)
from scheduler.experiments import METRICS, Definition, definition_of
from scheduler.experiments.marks import pairs_of
from scheduler.experiments.pools import PoolPolicies
from scheduler.experiments.rows import row_of
from scheduler.policies import POLICIES
from scheduler.policies.passthrough import Passthrough
from tests.sim.test_policies import FlowWorld

WALL = 1_000_000.0


def definition(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "one", "arms": ["passthrough", "joule"], "engines": ["a", "b"], "block_seconds": 12.0,
        "washout_seconds": 3.0, "pairs": 6,
    }  # fmt: skip
    return definition_of({**values, **changes}).as_json()


class TriedWorld(FlowWorld):
    """The same faults and traffic, with experiments that begin, end and are taken up again at any time."""

    experiments = 0

    def step(self) -> None:
        super().step()
        rng, desk, wall = self.random, self.scheduler.experiments, WALL + self.now
        if rng.random() < 0.02:
            wall += rng.choice([-30.0, 30.0])
        if not desk.running and not self.scheduler.draining and rng.random() < 0.2:
            self.experiments += 1
            self.begin(rng.choice(["switchback", "split_and_swap"]), wall)
        elif rng.random() < 0.02:
            states = json.loads(json.dumps(desk.saved(self.now)))
            if states and not self.scheduler.draining:
                state = states[0]
                self.tell(ExperimentStopped(f"e{self.experiments}", "for a restart"))
                self.tell(ExperimentStarted(state["definition"], wall + rng.choice([0.0, 40.0]), state))
        elif rng.random() < 0.03:
            self.tell(ExperimentStopped(f"e{self.experiments}", "enough"))
        else:
            self.tell(ExperimentTick(wall))

    def begin(self, design: str, wall: float) -> None:
        arms = [self.random.choice(sorted(POLICIES)), {"policy": "fifo", "options": {"max_in_flight": 1}}]
        guardrails = self.random.choice([[], ["p95_workflow_seconds:+5%", "errors:+1pp"]])
        more = {"design": design, "guardrails": guardrails, "guardrail_workflows": 5}
        self.tell(ExperimentStarted(definition(id=f"e{self.experiments}", arms=arms, **more), wall))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_no_call_is_lost_and_the_log_replays(seed: int) -> None:
    world = TriedWorld(seed, "passthrough", changes=False)
    for _ in range(150):
        world.step()
    world.tell(ExperimentStopped(f"e{world.experiments}", "enough"))
    world.finish()
    assert world.experiments
    for line, event, _, same in replay(world.log):
        assert same, f"line {line}: {type(event).__name__} led to other actions the second time"


class Recorder:
    """The scheduler, its log, and what it says of experiments."""

    def __init__(self, **changes: Any) -> None:
        config = SchedulerConfig((EngineSpec("a", 256),))
        self.scheduler = Scheduler(config, 0.0)
        self.log = [head_line(config, 0.0)]
        self.closed: list[BlocksClosed] = []
        self.ended: list[ExperimentEnded] = []
        self.definition = definition(engines=["a"], **changes)

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = self.scheduler.handle(event, now)
        self.log.append(event_line(event, now, actions))
        self.closed += [action for action in actions if isinstance(action, BlocksClosed)]
        self.ended += [action for action in actions if isinstance(action, ExperimentEnded)]
        return actions

    def start(self) -> None:
        self.handle(ExperimentStarted(self.definition, WALL), 0.0)

    def tick(self, now: float) -> None:
        self.handle(ExperimentTick(WALL + now), now)

    def call(self, name: str, workflow: str, at: float, **more: Any) -> None:
        self.handle(CallArrived(name, "-", None, workflow, 10, **more), at)

    def answered(self, name: str, at: float) -> None:
        self.handle(CallFinished(name, 10, 0, 20), at)

    @property
    def rows(self) -> list[Any]:
        return [row_of(row) for action in self.closed for row in action.rows]


def test_a_whole_experiment_before_a_metered_twin() -> None:
    recorder = Recorder(block_seconds=60.0, washout_seconds=10.0)
    engine = TwinEngine(calibrations.load("h200-llama-3.1-8b"))
    recorder.handle(EnergyPrior("a", prior_of(engine.calibration), simulated=True), 0.0)
    world = World(recorder, {"a": engine})
    VirtualMeter(world, engine, "a").start()
    Player(world).poisson(mixed(random.Random(1), "wf"), 1.6, 850.0, random.Random(2))
    recorder.start()
    seconds = 0.0
    while not recorder.ended and seconds < 900.0:
        seconds += 1.0
        world.time.run(until=seconds)
        world.tell(ExperimentTick(WALL + seconds))
    assert [(ended.state, ended.why) for ended in recorder.ended] == [("finished", None)]
    assert recorder.scheduler.policy.name == "passthrough"
    pairs, left = pairs_of(recorder.rows, METRICS["joules_per_workflow"])
    assert (len(pairs), [row.number for row in left]) == (6, [-1])
    assert {row.energy_source for row in recorder.rows} == {"simulated"}
    measured = sum(row.gpu_joules or 0.0 for row in recorder.rows)
    assert 0.7 * engine.meter.joules < measured < engine.meter.joules
    assert all(row.timed == row.began and row.unfinished <= 0.05 * row.began for row in recorder.rows)
    assert all(same for *_, same in replay(recorder.log))


def test_a_workflow_keeps_its_arm_over_the_edge_of_a_block() -> None:
    recorder = Recorder(seed=2)  # the control's block is first
    recorder.start()
    experiment = recorder.scheduler.experiments.running["one"]
    recorder.call("1", "w", 20.0)
    recorder.answered("1", 22.9)
    recorder.tick(23.5)
    recorder.call("2", "w", 24.2)
    recorder.tick(24.5)
    assert experiment.experiment.arm_at(WALL + 24.5) == 1
    assert experiment.experiment.live["-/w"].arm == 0
    recorder.answered("2", 25.0)
    recorder.tick(27.0)
    assert not experiment.experiment.live, "quiet for half of the wash-out: it is over"
    for second in range(28, 34):
        recorder.tick(float(second))
    row = next(row for row in recorder.rows if row.number == 0)
    assert (row.began, row.timed, row.unfinished, row.seconds) == (1, 1, 0, 5.0)


def test_a_client_that_leaves_is_no_failure_and_a_call_without_a_name_is_a_workflow() -> None:
    recorder = Recorder(seed=2)
    recorder.start()
    recorder.call("1", "", 16.0)
    recorder.call("2", "", 16.0, deadline_ms=500.0)
    recorder.handle(ClientGone("1"), 17.0)
    recorder.answered("2", 17.0)
    for second in range(18, 35):
        recorder.tick(float(second))
    row = next(row for row in recorder.rows if row.number == 0)
    assert (row.began, row.timed, row.failed, row.missed, row.output_tokens) == (2, 1, 0, 1, 20)
    assert row.gpu_joules is None and "energy_unavailable" in row.marks


def test_an_arm_whose_policy_raises_ends_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Passthrough):
        name = "broken"

        def next(self, *args: Any) -> Any:
            raise RuntimeError("no")

    monkeypatch.setitem(POLICIES, "broken", Broken)
    recorder = Recorder(seed=2, arms=["passthrough", "broken"])
    recorder.start()
    recorder.tick(24.5)
    recorder.call("1", "", 25.0)
    [ended] = recorder.ended
    assert ended.state == "stopped" and ended.why is not None and "RuntimeError: no" in ended.why
    assert recorder.scheduler.policy.name == "passthrough"
    assert recorder.scheduler.calls["1"].engine == "a", "the call was sent all the same"


def test_experiments_end_when_all_that_decides_is_relieved(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no pool")

    recorder = Recorder(seed=2, arms=["passthrough", "fifo"])
    recorder.start()
    recorder.tick(24.5)
    monkeypatch.setattr(PoolPolicies, "next", broken)
    recorder.call("1", "", 25.0)
    [ended] = recorder.ended
    assert ended.state == "stopped" and ended.why is not None and "RuntimeError: no pool" in ended.why
    assert recorder.scheduler.policy.name == "passthrough"
    assert recorder.scheduler.calls["1"].engine == "a", "the call was sent all the same"


def test_a_definition_round_trips_through_its_event() -> None:
    made = definition(guardrails=["errors:+1pp"])
    assert isinstance(definition_of(json.loads(json.dumps(made))), Definition)


def test_a_workflow_that_is_refused_since_too_many_are_held_has_failed() -> None:
    recorder = Recorder(seed=2, arms=["fifo", "passthrough"])
    recorder.start()
    recorder.scheduler.queue_calls = 0
    recorder.call("1", "w", 16.0)
    recorder.scheduler.queue_calls = 10
    recorder.handle(CapApplied("a", 300.0, 300.0, None, 17.0), 17.0)
    for second in range(18, 35):
        recorder.tick(float(second))
    row = next(row for row in recorder.rows if row.number == 0)
    assert (row.began, row.timed, row.failed) == (1, 1, 1)
    assert "cap_not_applied" in row.marks


def test_decisions_are_said_to_be_of_the_arms_policy() -> None:
    recorder = Recorder(seed=2)
    recorder.start()
    recorder.call("1", "", 16.0)
    recorder.tick(24.5)
    recorder.call("2", "", 25.0, deadline_ms=1.0)
    sent = [recorder.scheduler.calls[name].sent for name in ("1", "2")]
    assert [each and each.policy for each in sent] == ["passthrough", "joule"]


def test_split_and_swap_leaves_the_control_all_engines_until_its_pairs_begin() -> None:
    """In the lead-in all workflows are the control's, in the ramp-up most: half of the engines might not bear it."""
    recorder = Recorder(design="split_and_swap", ramp_up=[0.2], arms=["passthrough", "fifo"])
    recorder.scheduler = Scheduler(SchedulerConfig((EngineSpec("a", 256), EngineSpec("b", 256))), 0.0)
    recorder.definition = {**recorder.definition, "engines": ["a", "b"]}
    recorder.start()
    used: dict[str, set[tuple[str, str]]] = {}
    for name, begins in (("lead-in", 2.0), ("ramp-up", 14.0), ("first", 38.0), ("second", 50.0)):
        recorder.tick(begins)
        for number in range(60):
            call = f"{name} {number}"
            recorder.call(call, call, begins + 1.0)
            state = recorder.scheduler.calls[call]
            assert state.sent is not None
            used.setdefault(name, set()).add((state.sent.policy, state.sent.engine))
            recorder.answered(call, begins + 2.0)
    assert used["lead-in"] == {("passthrough", "a"), ("passthrough", "b")}
    [(_, side)] = [place for place in used["ramp-up"] if place[0] == "fifo"]
    assert used["ramp-up"] == {("passthrough", "a"), ("passthrough", "b"), ("fifo", side)}
    assert len(used["first"]) == len(used["second"]) == 2 and not used["first"] & used["second"], "halves, swapped"
