"""The cap controller as the scheduler owns it: when it decides, what it sees, what leaves, what it hears back."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from scheduler.actions import SetCap, WakeAt
from scheduler.energy.caps import CapRules, CapRulesError, CardLimits
from scheduler.eventlog import replay
from scheduler.events import CapResumed, CardsRead, Draining, EnginesChanged, Tick
from tests.unit.caps_scene import ACTUATE, Scene

STEP_WATTS = 35.0
"""5 % of TDP."""


class TestWhen:
    def test_it_asks_to_be_woken_from_the_first_cards_on_and_again_after_each_tick(self) -> None:
        scene = Scene(batch=1)
        assert set(scene.woken) == {ACTUATE.interval_seconds}
        scene.run(1.0)
        assert scene.scheduler.handle(Tick(), 1.0) == [WakeAt(2.5)], "too early: nothing is decided, and the wish holds"
        assert scene.scheduler.caps.engines["e"].counts == {}
        scene.run(9.5)
        assert sum(scene.scheduler.caps.engines["e"].counts.values()) == 4
        assert {2.5, 5.0, 7.5, 10.0} <= set(scene.woken)

    def test_nothing_is_asked_for_where_no_engine_is_left(self) -> None:
        scene = Scene(batch=0)
        scene.telemetry.told = False
        scene.world.tell(EnginesChanged(()))
        assert scene.scheduler.handle(Tick(), 2.5) == []
        assert scene.scheduler.handle(Tick(), 9.0) == [] and scene.scheduler.caps.engines == {}

    def test_a_process_that_goes_down_decides_nothing_more(self) -> None:
        scene = Scene()
        scene.run(20.0)
        count = len(scene.set)
        assert count > 0
        scene.world.tell(Draining())
        scene.run(30.0)
        assert len(scene.set) == count


class TestWhat:
    def test_a_busy_engine_is_capped_step_by_step(self) -> None:
        scene = Scene()
        scene.run(60.0)
        watts = [700.0, *[action.watts for action in scene.set]]
        assert scene.limit_watts < 600.0
        assert all(one - other <= STEP_WATTS + 1e-6 for one, other in pairwise(watts))

    def test_observe_decides_alike_and_sets_nothing(self) -> None:
        advising = Scene(CapRules(ttft_seconds_p95=5.0, itl_seconds_p95=0.1))
        advising.run(20.0)
        history = advising.scheduler.caps.engines["e"].history
        assert advising.set == [] and advising.limit_watts == 700.0
        down = [decision for decision in history if decision.move == "down"]
        assert down and all(decision.action is None and decision.from_watts == 700.0 for decision in down)

    def test_cards_that_nobody_has_named_are_advised_on(self) -> None:
        scene = Scene()
        scene.telemetry.may_set = False
        scene.run(20.0)
        assert scene.set == [] and scene.scheduler.caps.describe("e")["mode"] == "observe"

    def test_stale_telemetry_brings_the_limit_back_at_once(self) -> None:
        scene = Scene()
        scene.run(40.0)
        assert scene.limit_watts < 700.0
        scene.telemetry.told = False
        scene.run(ACTUATE.stale_seconds + 5.0)
        assert scene.limit_watts == 700.0 and scene.set[-1].reason.startswith("stale")

    def test_a_growing_queue_brings_the_limit_back_at_once(self) -> None:
        scene = Scene()
        scene.run(40.0)
        assert scene.limit_watts < 700.0
        scene.waiting = 0.0
        for _ in range(ACTUATE.queue_looks + 2):
            scene.waiting += 10.0
            scene.run(ACTUATE.interval_seconds)
        assert any(action.reason.startswith("queue_grows") and action.watts == 700.0 for action in scene.set)

    def test_workflows_with_no_room_keep_the_cap_up(self) -> None:
        relaxed, pressed = Scene(deadline_ms=3_600_000.0), Scene(deadline_ms=1_900.0)
        for scene in (relaxed, pressed):
            scene.run(40.0)
        assert relaxed.limit_watts < pressed.limit_watts

    def test_a_policy_says_how_much_slack_is_left_for_the_cap(self) -> None:
        free, bound = Scene(), Scene()
        for scene, stretch in ((free, 3.0), (bound, 1.0)):
            for _ in range(6):
                scene.scheduler.caps.propose("e", stretch, scene.now)
                scene.run(10.0)
        assert free.limit_watts < 600.0 and bound.limit_watts > free.limit_watts
        bound.run(60.0)  # it says no more, so what it said is over
        assert bound.limit_watts < 600.0
        bound.scheduler.caps.propose("nobody", 2.0, bound.now)

    def test_a_policy_says_how_low_it_would_have_the_cap(self) -> None:
        scene = Scene()
        for _ in range(8):
            scene.scheduler.caps.propose("e", 3.0, scene.now, 560.0)
            scene.run(10.0)
        assert 560.0 <= scene.limit_watts < 600.0

    def test_what_a_policy_needs_at_once_does_not_wait_for_the_next_decision(self) -> None:
        scene = Scene()
        scene.run(60.0)
        assert scene.limit_watts < 600.0
        count = len(scene.set)
        scene.scheduler.caps.propose("e", 3.0, scene.now, 0.0, 640.0)
        scene.run(0.5)  # the next thing that happens is enough; a decision would come 2 s later
        [raised] = scene.set[count:]
        assert raised.watts == 640.0 and raised.reason.startswith("late")
        scene.scheduler.caps.propose("e", 3.0, scene.now)
        scene.run(30.0)
        assert scene.limit_watts < 640.0


class TestWhatComesBack:
    def test_somebody_else_has_the_limit_until_an_operator_says_otherwise(self) -> None:
        scene = Scene()
        scene.run(40.0)
        count = len(scene.set)
        scene.somebody_sets(550.0)
        scene.run(10.0)
        assert len(scene.set) == count and scene.why() == "yielded" and scene.limit_watts == 550.0
        assert "somebody else set 550 W" in scene.scheduler.caps.describe("e")["yielded"]
        scene.world.tell(CapResumed("e"))
        scene.run(40.0)
        assert len(scene.set) > count
        assert scene.scheduler.caps.fleet.controllers["e"].standing.prior_watts == 550.0

    def test_a_reading_from_before_our_own_change_is_nobody_else(self) -> None:
        scene = Scene()
        scene.run(30.0)
        standing = scene.scheduler.caps.fleet.controllers["e"].standing
        assert standing.ours and scene.limit_watts < 700.0
        scene.telemetry.told = False
        before = CardLimits(700.0, 700.0, 700.0, 200.0, 700.0)
        scene.world.tell(CardsRead("e", 1, before, standing.moved_at - 0.3, True))
        scene.run(3.0)
        assert not standing.yielded

    def test_changes_that_fail_are_given_up_after_a_few(self) -> None:
        scene = Scene()
        scene.carried_out = False
        answered = 0
        for _ in range(300):
            scene.run(0.5)
            if len(scene.set) > answered:
                answered = len(scene.set)
                scene.answer(scene.set[-1].watts, None)
        assert answered == ACTUATE.failures_max and scene.why() == "failing"

    def test_the_answer_to_an_earlier_wish_is_not_taken_for_that_to_the_last(self) -> None:
        scene = Scene()
        scene.run(30.0)
        standing = scene.scheduler.caps.fleet.controllers["e"].standing
        standing.asked(400.0, scene.now, down=True)
        standing.asked(700.0, scene.now, down=False)
        scene.answer(400.0, 400.0)
        scene.answer(700.0, 700.0)
        assert standing.current_watts == 700.0 and not standing.failures


def test_decisions_are_told_once_to_a_log() -> None:
    scene = Scene()
    seen: dict[str, int] = {}
    scene.run(30.0)
    first = scene.scheduler.caps.fresh(seen)
    assert first and scene.scheduler.caps.fresh(seen) == []
    json.dumps(scene.scheduler.caps.describe("e"))


def test_a_log_with_caps_replays() -> None:
    lines: list[str] = []
    scene = Scene(log=lines)
    scene.run(40.0)
    found = list(replay(lines))
    assert all(same for *_, same in found)
    assert any(isinstance(action, SetCap) for _, _, actions, _ in found for action in actions)


@pytest.mark.parametrize("name", ["ttft_seconds_p95", "itl_seconds_p95"])
def test_actuate_needs_its_targets(name: str) -> None:
    values = {"ttft_seconds_p95": 1.0, "itl_seconds_p95": 0.1}
    del values[name]
    with pytest.raises(CapRulesError, match=name):
        CapRules(mode="actuate", **values)  # type: ignore[arg-type]
