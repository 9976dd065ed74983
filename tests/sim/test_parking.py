"""Who is put to sleep, who is woken, and what becomes of calls meanwhile."""

from __future__ import annotations

import itertools

import pytest

from scheduler.core import Scheduler, SchedulerConfig
from scheduler.eventlog import event_line, head_line, replay
from scheduler.events import (
    BreakersChanged,
    Draining,
    EngineLoad,
    EnginesChanged,
    EngineStatus,
    PolicyChanged,
    Tick,
)
from scheduler.parking import ParkingRules
from scheduler.trend import Trend
from tests.sim.parking_desk import (
    IDLE_SECONDS,
    Desk,
    EngineAsleep,
    EngineParked,
    EngineWoken,
    parks,
    refused,
    sent,
    wakes,
)

POLICIES = ("passthrough", "fifo", "las", "parrot", "joule")


def test_until_an_engine_has_said_whether_it_sleeps_it_gets_no_calls() -> None:
    desk = Desk()
    call = desk.call()
    assert sent(desk.said) == [] and wakes(desk.said) == []
    desk.awake("b")
    assert sent(desk.said) == [(call, "b")]


def test_what_is_idle_is_parked_the_last_one_first_and_one_stays_awake() -> None:
    desk = Desk("abc")
    desk.awake()
    assert parks(desk.wait(IDLE_SECONDS - 1)) == []
    assert parks(desk.wait(2)) == ["c", "b"]
    for name in "cb":
        desk.tell(EngineParked(name, True, 1.0))
    assert parks(desk.wait(10 * IDLE_SECONDS)) == []
    assert [desk.state(name) for name in "abc"] == ["awake", "asleep", "asleep"]


def test_so_many_stay_awake_of_each_model() -> None:
    desk = Desk("abcd", rules=ParkingRules(awake_least=2), models={"d": ("other",)})
    desk.awake()
    assert parks(desk.wait(2 * IDLE_SECONDS)) == ["c"], "a, b serve m, d is the only one of the other model"


def test_what_does_something_or_may_do_something_is_not_parked() -> None:
    desk = Desk("abc")
    desk.awake()
    desk.load("c", running=1)  # somebody else's
    desk.load("b", running=None)  # nobody knows
    assert parks(desk.wait(2 * IDLE_SECONDS)) == ["a"]
    desk.tell(EngineParked("a", True, 1.0))
    desk.load("c")
    assert parks(desk.wait(IDLE_SECONDS + 1)) == ["c"], "since it was seen idle"


def test_a_call_starts_the_idle_time_anew() -> None:
    desk = Desk("ab", policy="passthrough")
    desk.awake()
    for _ in range(6):
        for _ in "ab":
            desk.done(desk.call())
        assert parks(desk.wait(IDLE_SECONDS - 2)) == []
    assert parks(desk.wait(4)) == ["b"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_that_finds_all_full_wakes_one_and_waits_for_it(policy: str) -> None:
    desk = Desk("ab", policy=policy, rules=ParkingRules(wake_from_calls=64))
    desk.park_all_but("a")
    calls = [desk.call() for _ in range(4)]
    assert wakes(desk.said) == []
    more = desk.call()
    assert sent(desk.said) == [(call, "a") for call in calls]
    assert wakes(desk.said)[0][0] == "b"
    desk.wait(3)
    desk.tell(EngineWoken("b", True, 3.0))
    assert sent(desk.said)[-1] == (more, "b")
    assert len(wakes(desk.said)) == 1
    newest = desk.call()
    assert sent(desk.said)[-1] == (newest, "b")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_whose_engines_all_sleep_is_woken_for_a_call(policy: str) -> None:
    desk = Desk("ab", policy=policy)
    for name in "ab":
        desk.tell(EngineAsleep(name, True))  # as after kill -9
    call = desk.call()
    assert [name for name, _ in wakes(desk.said)] == ["a"]
    held = desk.scheduler.calls[call].held
    assert held is not None and held.last.rule == "waking" and held.last.hold_seconds == 10.0
    desk.wait(2)
    desk.tell(EngineWoken("a", True, 2.0))
    assert sent(desk.said) == [(call, "a")]
    assert len(wakes(desk.said)) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_who_cannot_be_woken_is_tried_with_growing_pauses_then_calls_are_refused(policy: str) -> None:
    rules = ParkingRules(wake_tries=3, retry_seconds=2.0, rest_seconds=60.0)
    desk = Desk("a", policy=policy, rules=rules)
    desk.tell(EngineAsleep("a", True))
    call = desk.call()
    times = []
    for _ in range(3):
        while desk.state("a") != "waking":
            desk.wait(1)
        times.append(desk.now)
        desk.tell(EngineWoken("a", False, 0.5, "out of memory"))
    assert [later - sooner for sooner, later in itertools.pairwise(times)] == [2.0, 4.0]
    assert refused(desk.said) == [(call, "wake_failed")]
    assert "out of memory" in next(each.message for each in desk.said if getattr(each, "call_id", "") == call)
    second = desk.call()
    assert refused(desk.said)[-1] == (second, "wake_failed")
    assert wakes(desk.wait(59)) == []
    assert wakes(desk.wait(3))[:1] == [("a", "least")], "then it is tried again"
    desk.tell(EngineWoken("a", True, 1.0))
    third = desk.call()
    assert sent(desk.said)[-1] == (third, "a")


@pytest.mark.parametrize("policy", POLICIES)
def test_another_engine_is_woken_where_one_cannot_be(policy: str) -> None:
    desk = Desk("ab", policy=policy)
    for name in "ab":
        desk.tell(EngineAsleep(name, True))
    call = desk.call()
    desk.tell(EngineWoken("a", False, 0.5, "broken"))
    assert [name for name, _ in wakes(desk.said)] == ["a", "b"]
    desk.tell(EngineWoken("b", True, 0.5))
    desk.wait(1)
    assert sent(desk.said) == [(call, "b")]


def test_load_that_grows_wakes_ahead_of_it() -> None:
    """A call more every two seconds: at five calls an engine more is needed, and waking takes ten seconds."""
    desk = Desk("ab", rules=ParkingRules(wake_from_calls=20), most=1000)
    desk.park_all_but("a")
    while not wakes(desk.said):
        desk.wait(2)
        desk.call()
    assert wakes(desk.said) == [("b", "forecast")]
    in_flight = desk.scheduler.engines["a"].in_flight
    assert 10 < in_flight < 20, "before it was needed, and not long before"


def test_steady_load_wakes_nobody() -> None:
    desk = Desk("ab", rules=ParkingRules(wake_from_calls=20), most=1000)
    desk.park_all_but("a")
    running = [desk.call() for _ in range(15)]
    for _ in range(200):
        desk.wait(1)
        desk.done(running.pop(0))
        running.append(desk.call())
    assert wakes(desk.said) == []


def test_when_the_only_one_awake_is_lost_another_one_is_woken() -> None:
    desk = Desk("ab")
    desk.park_all_but("a")
    for _ in range(3):
        desk.tell(EngineStatus("a", False))
    assert wakes(desk.wait(2)) == [("b", "least")]


def test_an_engine_that_was_restarted_is_awake() -> None:
    desk = Desk("ab")
    desk.park_all_but("a")
    desk.tell(EngineAsleep("b", False))
    assert desk.state("b") == "awake"
    assert not desk.scheduler.engines["b"].resting


def test_what_it_says_while_it_is_moved_is_not_believed() -> None:
    desk = Desk("ab")
    desk.awake()
    desk.wait(IDLE_SECONDS + 1)
    assert desk.state("b") == "parking"
    desk.tell(EngineAsleep("b", False))
    assert desk.state("b") == "parking"
    desk.tell(EngineParked("b", True, 1.0))
    assert desk.state("b") == "asleep"


def test_one_without_sleep_mode_is_never_parked_and_serves() -> None:
    desk = Desk("ab")
    desk.awake("a")
    desk.tell(EngineAsleep("b", None, False, "404"))
    assert desk.state("b") == "unable"
    assert parks(desk.wait(3 * IDLE_SECONDS)) == ["a"], "b stays awake anyway"
    desk.tell(EngineParked("a", True, 1.0))
    call = desk.call()
    assert sent(desk.said) == [(call, "b")]


def test_a_failed_parking_is_found_out_by_asking_and_not_repeated_at_once() -> None:
    desk = Desk("ab", rules=ParkingRules(retry_seconds=60.0))
    desk.awake()
    desk.wait(IDLE_SECONDS + 1)
    desk.tell(EngineParked("b", False, 5.0, "timed out"))
    assert desk.state("b") == "unknown" and desk.scheduler.engines["b"].resting
    desk.tell(EngineAsleep("b", False))
    assert desk.state("b") == "awake"
    assert parks(desk.wait(58)) == ["a"], "the other one goes instead"


def test_what_can_never_be_parked_is_tried_for_ever_and_woken_at_once_if_it_sleeps_after_all() -> None:
    desk = Desk("ab")
    desk.awake()
    for _ in range(2200):
        (name,) = parks(desk.wait(2 * IDLE_SECONDS + 60))
        desk.tell(EngineParked(name, False, 1.0, "no answer in time"))
        desk.tell(EngineAsleep(name, False))
    (name,) = parks(desk.wait(2 * IDLE_SECONDS + 60))
    desk.tell(EngineParked(name, False, 1.0, "no answer in time"))
    desk.tell(EngineAsleep(name, True))
    for _ in range(desk.most + 1):
        desk.call()
    assert wakes(desk.said) == [(name, "full")], "that parking it failed is no reason to wait"


@pytest.mark.parametrize("policy", POLICIES)
def test_found_asleep_under_its_calls_it_is_woken(policy: str) -> None:
    desk = Desk("ab", policy=policy)
    desk.awake("a")
    call = desk.call()
    assert sent(desk.said) == [(call, "a")]
    desk.tell(EngineAsleep("a", True))
    desk.awake("b")
    assert ("a", "in_use") in wakes(desk.wait(2))


def test_parking_taken_out_of_the_configuration_wakes() -> None:
    desk = Desk("ab")
    desk.park_all_but("a")
    desk.tell(EnginesChanged(desk.specs("ab", park="")))
    assert wakes(desk.wait(2)) == [("b", "configuration")]
    desk.tell(EngineWoken("b", True, 1.0))
    desk.wait(2)
    assert not desk.scheduler.parking.sleepers


def test_an_engine_taken_out_while_it_sleeps_is_forgotten() -> None:
    desk = Desk("ab")
    desk.park_all_but("a")
    desk.tell(EnginesChanged(desk.specs("a")))
    assert "b" not in desk.scheduler.engines and "b" not in desk.scheduler.parking.sleepers
    desk.tell(EngineWoken("b", True, 1.0))
    desk.tell(EnginesChanged(desk.specs("ab")))
    assert desk.state("b") == "unknown"


def test_parking_put_into_the_configuration_takes_an_engine_as_awake() -> None:
    desk = Desk("ab")
    desk.awake()
    desk.tell(EnginesChanged(desk.specs("ab", park="")))
    desk.wait(2)
    desk.tell(EnginesChanged(desk.specs("ab")))
    assert desk.state("b") == "awake"


def test_nothing_is_decided_while_draining() -> None:
    desk = Desk("ab")
    desk.awake()
    desk.tell(Draining())
    assert parks(desk.wait(3 * IDLE_SECONDS)) == []


def test_without_engines_that_may_be_parked_nothing_is_asked_for() -> None:
    desk = Desk("ab")
    desk.awake()
    desk.tell(EnginesChanged(desk.specs("ab", park="")))
    desk.wait(2)
    before = len(desk.said)
    desk.tell(Tick())
    assert desk.said[before:] == []


def test_joule_holds_for_an_engine_that_is_not_parked_then() -> None:
    desk = Desk("ab", policy="joule")
    desk.awake()
    policy = desk.scheduler.policy
    assert not policy.holds_for("a") and not policy.holds_for("nobody")


def test_a_change_of_policy_while_one_sleeps() -> None:
    desk = Desk("ab", policy="fifo")
    for name in "ab":
        desk.tell(EngineAsleep(name, True))
    call = desk.call()
    for name in POLICIES:
        desk.tell(PolicyChanged(name))
    desk.tell(EngineWoken("a", True, 1.0))
    assert sent(desk.said) == [(call, "a")]


def test_a_breaker_that_opens_while_an_engine_sleeps_makes_it_of_no_use() -> None:
    desk = Desk("ab")
    desk.park_all_but("a")
    desk.tell(BreakersChanged(1, 5.0))
    desk.tell(EngineStatus("b", False))
    for _ in range(4):
        desk.call()
    more = desk.call()
    assert wakes(desk.said) == []
    assert desk.scheduler.calls[more].engine is None, "it waits for a"


def test_a_log_with_parking_in_it_replays() -> None:
    names = "ab"
    lines: list[str] = []

    def tell(event: object, seconds: float = 0.0) -> None:
        desk.now += seconds
        lines.append(event_line(event, desk.now, desk.tell(event)))  # type: ignore[arg-type]

    desk = Desk("")
    desk.scheduler = Scheduler(SchedulerConfig(desk.specs(names), parking=ParkingRules(wake_tries=1)), 100.0)
    lines.append(head_line(desk.scheduler.config, 100.0))
    for name in names:
        tell(EngineStatus(name, True, ("m",)))
        tell(EngineLoad(name, 0, 0, 0.0))
        tell(EngineAsleep(name, False))
    for _ in range(40):
        tell(Tick(), 1.0)
    tell(EngineParked("b", True, 1.5))
    tell(EngineWoken("b", False, 1.0, "why"))
    assert parks(desk.said) == ["b"]
    assert all(same for _, _, _, same in replay(lines))


class TestTrend:
    def test_a_line_is_followed(self) -> None:
        trend = Trend()
        for second in range(100):
            trend.saw(3.0 + 0.5 * second, float(second))
        assert trend.ahead(10.0) == pytest.approx(3.0 + 0.5 * 109, rel=0.02)

    def test_looks_at_one_time_count_once_and_nothing_is_under_zero(self) -> None:
        trend = Trend()
        trend.saw(10.0, 0.0)
        trend.saw(50.0, 0.0)
        assert trend.ahead(0.0) == 10.0
        for second in range(1, 20):
            trend.saw(0.0, float(second))
        assert trend.ahead(1000.0) == 0.0
