"""A policy that only looks on: it changes nothing, agrees with itself, and is dropped when it raises."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.experiments.stage import mixed
from bench.load.virtual_meter import VirtualMeter
from bench.twin.play import Player
from scheduler.actions import BlocksClosed, ExperimentEnded
from scheduler.events import EnergyPrior, Event, ExperimentStarted, ExperimentTick, PolicyChanged
from scheduler.experiments.agreement import Agreement
from scheduler.policies import POLICIES
from scheduler.policies.passthrough import Passthrough
from tests.sim.test_experiments_desk import WALL, Recorder, definition
from tests.sim.test_policies import FlowWorld

if TYPE_CHECKING:
    from scheduler.actions import Action

POLICIES_HERE = sorted(POLICIES)


class WatchedWorld(FlowWorld):
    """All that the scheduler says of calls, caps and times."""

    def __init__(self, seed: int, control: str) -> None:
        super().__init__(seed, control, changes=False)
        self.said: list[tuple[float, Action]] = []

    def tell(self, event: Event) -> Any:
        self.seen = event
        return super().tell(event)

    def apply(self, action: Action) -> None:
        if isinstance(action, BlocksClosed | ExperimentEnded):
            return
        self.said.append((self.now, action))
        super().apply(action)


def played(seed: int, control: str, shadow: str | None) -> WatchedWorld:
    world = WatchedWorld(seed, control)
    if shadow is None:
        world.tell(PolicyChanged(control))
    else:
        arms = [control, {"policy": shadow, "name": "the other"}]
        world.tell(ExperimentStarted(definition(design="shadow", arms=arms, aa=shadow == control, pairs=10_000), WALL))
    for _ in range(120):
        world.step()
        world.tell(ExperimentTick(WALL + world.now))
    world.finish()
    return world


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.integers(0, 2**32), st.sampled_from(POLICIES_HERE), st.sampled_from(POLICIES_HERE))
@example(6, "las", "las")  # an engine is taken out and comes again while the shadow has calls there
@example(1_000_002, "joule", "passthrough")
def test_whatever_looks_on_the_same_is_done(seed: int, control: str, shadow: str) -> None:
    without, beside = played(seed, control, None), played(seed, control, shadow)
    assert beside.said == without.said
    desk = beside.scheduler.experiments
    [experiment] = [running.experiment for running in desk.running.values()]
    assert experiment.shadow_dropped is None
    before, after = without.scheduler.workflows.forecasts, beside.scheduler.workflows.forecasts
    assert list(before.places._entries) == list(after.places._entries), "nothing is kept longer for its looks"


def before_a_twin(control: Any, shadow: Any, deadline_ms: float | None = None, **more: Any) -> Agreement:
    recorder = Recorder(design="shadow", arms=[control, shadow], block_seconds=20.0, **more)
    engine = TwinEngine(calibrations.load("h200-llama-3.1-8b"))
    recorder.handle(EnergyPrior("a", prior_of(engine.calibration), simulated=True), 0.0)
    world = World(recorder, {"a": engine})
    VirtualMeter(world, engine, "a").start()
    Player(world).poisson(mixed(random.Random(1), "wf"), 1.6, 200.0, random.Random(2))
    recorder.start()
    for second in range(1, 290):
        world.time.run(until=float(second))
        world.tell(ExperimentTick(WALL + second))
        if recorder.ended:
            break
    recorder.scheduler.validate()
    rows = [row for row in recorder.rows if row.shadow is not None]
    total = Agreement(*(sum(values) for values in zip(*(row.shadow for row in rows), strict=True)))
    assert {row.arm for row in recorder.rows} == {0}
    experiment = recorder.scheduler.experiments.over_now["one"]
    assert experiment.shadow_dropped is None
    assert total.decisions <= experiment.shadow.decisions
    return experiment.shadow


def test_a_policy_agrees_with_itself_and_predicts_no_difference() -> None:
    found = before_a_twin("passthrough", "passthrough", aa=True)
    assert found.decisions > 300 and found.same == found.decisions == found.predicted
    assert (found.later_seconds, found.seconds, found.joules) == (0.0, 0.0, 0.0)
    assert found.joules_of_control > 0


def test_a_policy_that_holds_would_send_later_in_more_company() -> None:
    found = before_a_twin("passthrough", {"policy": "fifo", "options": {"max_in_flight": 1}})
    assert found.decisions > 200 and found.same < 0.9 * found.decisions
    assert found.same_engine == found.same_priority == found.decisions
    assert found.later_seconds > 0 and found.seconds > 0
    assert found.joules > 0, "one at a time shares its steps with nobody"


def test_one_that_raises_is_dropped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Passthrough):
        name = "broken"

        def next(self, *args: Any) -> Any:
            raise RuntimeError("no")

    monkeypatch.setitem(POLICIES, "broken", Broken)
    recorder = Recorder(design="shadow", arms=["passthrough", "broken"])
    recorder.start()
    recorder.call("1", "", 13.0)
    recorder.tick(14.0)
    assert recorder.scheduler.calls["1"].engine == "a"
    status = recorder.scheduler.experiments.status("one", 14.0)
    assert status is not None and status["state"] == "running"
    assert status["shadow_dropped"] == "arrived: RuntimeError: no"
    assert recorder.scheduler.deciding.failed is None
