"""Arms with cap modes of their own, experiments side by side, and errors: in the scheduler, in virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from scheduler.actions import ResetPrefixCache, SetCap
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import (
    CallArrived,
    CallFinished,
    CapResumed,
    EnginesChanged,
    EngineSpec,
    EngineStatus,
    Event,
    ExperimentStarted,
    ExperimentStopped,
    ExperimentTick,
    PrefixCacheReset,
)
from scheduler.experiments import ExperimentError, definition_of, resume, saved
from scheduler.policies import POLICIES
from scheduler.policies.base import Choice
from scheduler.policies.passthrough import Passthrough
from tests.sim.test_experiments_desk import WALL, Recorder
from tests.unit.caps_scene import ACTUATE, Scene

RULES = replace(ACTUATE, floor_share=0.8)


def capped(control: str, treatment: str, **changes: Any) -> dict[str, Any]:
    arms = [{"policy": "passthrough", "cap_mode": mode} for mode in (control, treatment)]
    values = {
        "id": "caps", "arms": arms, "engines": ["e"], "block_seconds": 100.0, "washout_seconds": 45.0, "pairs": 6,
        "seed": 2,
    }  # fmt: skip
    return definition_of({**values, **changes}).as_json()


class CappedScene(Scene):
    """With an experiment that is told the time."""

    def begin(self, wanted: dict[str, Any]) -> None:
        self.world.tell(ExperimentStarted(wanted, WALL + self.now))

    def seconds(self, count: float) -> None:
        until = self.now + count
        while self.now < until:
            self.world.time.run(until=min(self.now + 1.0, until))
            self.world.tell(ExperimentTick(WALL + self.now))


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_caps_come_with_the_treatments_blocks_and_go_with_them(mode: str) -> None:
    scene = CappedScene(RULES, batch=48)
    scene.seconds(60.0)
    assert scene.limit_watts < 700.0, "the gateway sets caps where no experiment runs"
    scene.begin(capped(mode, "actuate"))
    scene.seconds(2.0)
    assert scene.limit_watts == 700.0, "not for the control, from the first moment on"
    scene.seconds(197.0)
    assert scene.limit_watts == 700.0
    assert [action.watts for action in scene.set][-1] == 700.0
    running = scene.scheduler.experiments.running["caps"]
    assert running.experiment.schedule.block(1).arm == 1
    scene.seconds(46.0)
    settled = scene.limit_watts
    assert settled < 700.0, "the treatment's block, behind the wash-out"
    decided = scene.scheduler.caps.describe("e")
    assert decided["mode"] == "actuate"
    scene.seconds(58.0)
    assert scene.limit_watts == 700.0, "the control's block"
    before = len(scene.set)
    scene.seconds(40.0)
    assert len(scene.set) == before
    last = scene.scheduler.caps.fleet.controllers["e"].last
    assert last is not None and (last.why == "arm") == (mode == "off")
    scene.world.tell(ExperimentStopped("caps", "enough"))
    assert scene.scheduler.caps.describe("e")["mode"] == "actuate", "as it was before"
    scene.seconds(90.0)
    assert scene.limit_watts < 700.0


def test_a_guardrail_goes_back_to_the_controls_mode_until_an_operator_says_otherwise() -> None:
    scene = CappedScene(RULES, batch=48)
    scene.seconds(60.0)
    scene.begin(capped("observe", "actuate", guardrails=["errors:+1pp"]))
    scene.seconds(250.0)
    assert scene.limit_watts < 700.0, "the treatment's block"
    [running] = scene.scheduler.experiments.running.values()
    experiment = running.experiment
    known = {"blocks": [[[], 0, 100]] * 3, "varied": [], "waiting": {}, "sum": 0.0, "squares": 0.0, "pairs": 0}
    experiment.guards[0].restore(known)
    experiment.counts[0][:] = [50, 60]
    scene.seconds(2.0)
    assert experiment.state == "stopped" and "errors" in str(experiment.stopped_why)
    assert scene.limit_watts == 700.0 and scene.scheduler.caps.describe("e")["mode"] == "observe"
    scene.seconds(60.0)
    assert scene.limit_watts == 700.0, "what did harm does not come back by itself"
    scene.world.tell(CapResumed("e"))
    assert scene.scheduler.caps.describe("e")["mode"] == "actuate"


def test_a_limit_that_did_not_go_back_is_tried_again_and_its_block_marked() -> None:
    scene = CappedScene(RULES, batch=48)
    scene.begin(capped("observe", "actuate", seed=3))
    running = scene.scheduler.experiments.running["caps"]
    assert [running.experiment.schedule.block(number).arm for number in (0, 1)] == [1, 0]
    scene.seconds(160.0)
    assert scene.limit_watts < 700.0
    scene.carried_out = False
    scene.seconds(41.0)
    wishes = [action for action in scene.set if isinstance(action, SetCap) and action.watts == 700.0]
    assert len(wishes) == 1 and scene.limit_watts < 700.0
    scene.carried_out = True
    scene.seconds(20.0)
    assert scene.limit_watts == 700.0, "asked for again when the first wish came to nothing"


def test_the_wash_out_must_be_as_long_as_a_cap_takes() -> None:
    assert RULES.descent_seconds == pytest.approx(42.5)
    assert ACTUATE.descent_seconds == pytest.approx(142.5)


# --- two at once ---


class Pools(Recorder):
    """Two engines with a model each."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SchedulerConfig((EngineSpec("a", 4), EngineSpec("b", 4), EngineSpec("c", 4))), 0.0)
        for name in "abc":
            self.handle(EngineStatus(name, True, (f"model-{name}",)), 0.0)

    def begin(self, name: str, treatment: str = "fifo", **changes: Any) -> None:
        values = {
            "id": f"on-{name}", "arms": ["passthrough", {"policy": treatment}], "engines": [name], "pool": name,
            "models": [f"model-{name}"], "block_seconds": 12.0, "washout_seconds": 3.0, "pairs": 6, "seed": 2,
        }  # fmt: skip
        self.handle(ExperimentStarted(definition_of({**values, **changes}).as_json(), WALL), 0.0)

    def send(self, call: str, model: str | None, at: float) -> None:
        self.handle(CallArrived(call, "-", model, "", 10), at)

    def handle(self, event: Event, now: float) -> list[Any]:
        found = super().handle(event, now)
        self.scheduler.validate()
        return found


def test_two_experiments_on_two_pools_run_side_by_side_and_the_rest_is_the_gateways() -> None:
    world = Pools()
    world.begin("a")
    world.send("held over", "model-b", 0.5)
    world.begin("b", "las", seed=3)
    desk = world.scheduler.experiments
    assert list(desk.running) == ["on-a", "on-b"]
    with pytest.raises(ValueError, match="on-a"):
        world.begin("a")
    world.tick(13.0)  # a: the control's block; b: the treatment's
    for number, name in enumerate("abc"):
        world.send(f"to {name}", f"model-{name}", 16.0)
        sent = world.scheduler.calls[f"to {name}"].sent
        assert sent is not None
        assert (sent.engine, sent.policy) == (name, ("passthrough", "las", "passthrough")[number])
    assert [len(running.experiment.live) for running in desk.running.values()] == [1, 1]
    for name in "abc":
        world.handle(CallFinished(f"to {name}", 10, 0, 20), 17.0)
    for second in range(18, 40):
        world.tick(float(second))
    rows = {(closed.experiment, row["number"]): row for closed in world.closed for row in closed.rows}
    assert rows["on-a", 0]["timed"] == rows["on-b", 0]["timed"] == 1
    assert (rows["on-a", 0]["arm"], rows["on-b", 0]["arm"]) == (0, 1)
    world.handle(ExperimentStopped("on-a", "enough"), 41.0)
    assert list(desk.running) == ["on-b"] and world.scheduler.policy.name == "experiment"
    world.send("after", "model-a", 42.0)
    assert world.scheduler.calls["after"].engine == "a"
    world.handle(CallFinished("held over", 10, 0, 20), 43.0)
    world.handle(ExperimentStopped("on-b", "enough"), 44.0)
    assert world.scheduler.policy.name == "passthrough"
    assert [status["state"] for status in desk.statuses(45.0)] == ["stopped", "stopped"]


def test_a_policy_sees_no_engine_of_another_pool() -> None:
    world = Pools()
    for engine in "abc":
        world.begin(engine, "joule")
    world.tick(30.0)
    for number in range(9):
        world.send(f"{number}", f"model-{'abc'[number % 3]}", 30.5)
    assert {call.arrived.model: call.engine for call in world.scheduler.calls.values()} == {
        "model-a": "a", "model-b": "b", "model-c": "c"
    }  # fmt: skip
    world.send("no model", None, 31.0)
    assert world.scheduler.calls["no model"].engine == "a", "all engines are taken: the first experiment has it"


def broken(hook: str) -> type[Passthrough]:
    """A policy that raises there."""

    def fails(*args: Any) -> Any:
        raise RuntimeError("no")

    return type("Broken", (Passthrough,), {"name": "broken", hook: fails})


@pytest.mark.parametrize("hook", ["begin", "arrived", "next", "sent", "ended"])
def test_a_policy_that_fails_ends_its_own_experiment(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, and the gateway's policy on the rest, go on."""
    monkeypatch.setitem(POLICIES, "broken", broken(hook))
    world = Pools()
    world.begin("b")
    world.begin("a", "broken", seed=3)
    world.tick(13.0)
    world.send("one", "model-a", 14.0)
    if hook != "begin":
        world.handle(CallFinished("one", 10, 0, 20), 15.0)
    [ended] = world.ended
    assert (ended.experiment, ended.state) == ("on-a", "stopped")
    assert ended.why == f"a policy failed in {hook}: RuntimeError: no"
    desk = world.scheduler.experiments
    assert list(desk.running) == ["on-b"] and world.scheduler.policy.name == "experiment"
    for name in "abc":
        world.send(f"to {name}", f"model-{name}", 16.0)
        assert world.scheduler.calls[f"to {name}"].engine == name
    assert world.scheduler.deciding.failed is None, "nobody stands in for the gateway's policy"
    world.handle(ExperimentStopped("on-b", "enough"), 17.0)
    assert world.scheduler.policy.name == "passthrough"


def test_a_choice_that_cannot_be_is_the_fault_of_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Passthrough):
        name = "full"

        def next(self, ready: Any, engines: Any, now: float) -> Any:
            """Of a call that it does not hold."""
            return Choice(next(iter(world.scheduler.calls.values())), engines[0])

    monkeypatch.setitem(POLICIES, "full", Full)
    world = Pools()
    world.begin("a", "full", seed=3)
    world.begin("b")
    world.send("elsewhere", "model-b", 1.0)
    world.tick(13.0)
    world.send("one", "model-a", 14.0)
    assert [ended.experiment for ended in world.ended] == ["on-a"]
    assert "ImpossibleChoiceError" in str(world.ended[0].why)
    assert world.scheduler.calls["one"].engine == "a"


def test_the_gateways_policy_that_fails_on_the_rest_ends_no_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "broken", broken("next"))
    world = Pools()
    world.scheduler.deciding.change("broken", {}, 0.0)
    world.begin("a")
    world.begin("b")
    world.tick(13.0)
    world.send("one", "model-c", 14.0)
    assert world.scheduler.calls["one"].engine == "c"
    assert not world.ended and len(world.scheduler.experiments.running) == 2
    failed = world.scheduler.deciding.failed
    assert failed is not None and failed.hook == "next", "/ready says it"


def test_an_experiment_ends_whose_engines_are_all_gone_and_one_that_comes_is_no_part_of_it() -> None:
    world = Recorder(seed=2)
    world.start()
    world.handle(EnginesChanged((EngineSpec("a", 4), EngineSpec("new", 4))), 20.0)
    world.tick(21.0)
    world.handle(EnginesChanged((EngineSpec("new", 4),)), 22.0)
    world.tick(23.0)
    [ended] = world.ended
    assert ended.why is not None and "none of its engines" in ended.why
    [row] = [row for row in world.rows if row.number == 0]
    assert {"engine_added", "engine_lost", "stopped"} <= set(row.marks)
    world.call("1", "w", 24.0)
    assert world.scheduler.calls["1"].engine == "new"


# --- errors ---


def test_an_engines_error_is_the_arms_and_a_bad_request_is_the_clients() -> None:
    world = Recorder(seed=2)
    world.start()
    for number, status in enumerate((200, 400, 404, 429, 500, 503)):
        world.call(str(number), "", 16.0)
        world.handle(CallFinished(str(number), None, None, None, 0, status), 17.0)
    world.call("a stream", "", 16.0)
    world.handle(CallFinished("a stream", 10, 0, 5, has_error=True), 17.0)
    for second in range(18, 35):
        world.tick(float(second))
        world.scheduler.validate()
    row = next(row for row in world.rows if row.number == 0)
    assert (row.began, row.timed, row.failed, row.client_faults, row.ended) == (7, 5, 4, 2, 1)


# --- prefix caches ---


def resets(actions: list[Any]) -> list[str]:
    return [action.engine for action in actions if isinstance(action, ResetPrefixCache)]


@pytest.mark.parametrize("wanted", ["required", "if_possible"])
def test_caches_are_emptied_at_the_beginning_of_each_block(wanted: str) -> None:
    world = Recorder(seed=2, reset_prefix_cache=wanted)
    world.handle(ExperimentStarted(world.definition, WALL), 0.0)
    world.handle(PrefixCacheReset("a", done=True), 0.1)
    asked: list[float] = []
    for second in range(1, 61):
        at = float(second)
        if resets(world.handle(ExperimentTick(WALL + at), at)):
            asked.append(at)
            world.handle(PrefixCacheReset("a", done=not 24 <= at < 36, detail="no"), at + 0.1)
    assert asked == [12.0, 24.0, 25.0, 26.0, 36.0, 48.0, 60.0], (
        "in the block of 24 s it is tried until the wash-out ends"
    )
    experiment = world.scheduler.experiments.running["one"].experiment
    assert experiment.cache_resets == [4, 1]
    marked = {row.number: "cache_not_reset" in row.marks for row in world.rows}
    assert marked == {-1: False, 0: False, 1: wanted == "required", 2: False}
    assert resume(json.loads(json.dumps(saved(experiment, WALL + 60.0))), WALL + 60.0).cache_resets == [4, 1]


def test_no_wash_out_no_reset() -> None:
    with pytest.raises(ExperimentError, match="reset_prefix_cache"):
        Recorder(washout_seconds=0.0, reset_prefix_cache="required").start()
