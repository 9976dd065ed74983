"""The guard around a policy, and the log of decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scheduler.actions import Dispatch, PolicyFailed, WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.decisions import DecisionLog, Expected, Why, described, record_of
from scheduler.events import CallArrived, CallFailed, CallFinished, ClientGone, EngineSpec, PolicyChanged, Tick
from scheduler.policies import POLICIES, make_policy, option_problems, register, unknown_policy
from scheduler.policies.base import Choice, Policy
from scheduler.policies.options import Option

if TYPE_CHECKING:
    from collections.abc import Iterator

HOOKS = ("begin", "arrived", "sent", "ended", "next", "end")


class Faulty(Policy):
    """Sends at once while it is well, and raises where it is told to."""

    name = "faulty"
    options: ClassVar[Any] = {"fails": Option("", "where", choices=("", *HOOKS, "choice", "engine")), "hold": Option(0.0, "seconds")}

    def __init__(self, options: Any) -> None:
        self.fails, self.hold = options["fails"], options["hold"]

    def _maybe(self, hook: str) -> None:
        if hook == self.fails:
            raise ZeroDivisionError(hook)

    def begin(self, view: Any, now: float) -> None:
        self.view = view
        self._maybe("begin")

    def end(self, now: float) -> None:
        self._maybe("end")

    def arrived(self, call: Any, now: float) -> None:
        self._maybe("arrived")

    def sent(self, call: Any, engine: Any, now: float) -> None:
        self._maybe("sent")

    def ended(self, call: Any, now: float) -> None:
        self._maybe("ended")

    def next(self, ready: Any, engines: Any, now: float) -> Choice | float | None:
        self._maybe("next")
        call = next(iter(ready))
        if self.fails == "choice":
            gone = [call for call in self.view.calls.values() if call.engine is not None]
            return Choice(gone[0] if gone else call, engines[0])
        if self.fails == "engine" and len(self.view.calls) > 1:
            return Choice(call, None)  # type: ignore[arg-type]
        if now < call.arrived_at + self.hold:
            why = Why("slack", 9.0, self.hold, Expected(2.0, 5.0), Expected(3.0, 1.0))
            self.view.decisions.held(call, why, now)
            return call.arrived_at + self.hold
        return Choice(call, engines[0], 7, Why("free", 4.0, None, Expected(2.0, 5.0), Expected(3.0, 1.0)))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(Faulty)
    yield
    del POLICIES["faulty"]


def scheduler(**options: Any) -> Scheduler:
    return Scheduler(SchedulerConfig((EngineSpec("a", 100),), "faulty", tuple(sorted(options.items()))), 0.0)


def arrived(call_id: str) -> CallArrived:
    return CallArrived(call_id, "-", None, "w", 10, 10)


@pytest.mark.parametrize("hook", [*HOOKS, "choice", "engine"])
def test_a_policy_that_raises_is_relieved_and_no_call_is_lost(hook: str) -> None:
    mind, said = scheduler(fails=hook), []
    for number in range(4):
        said += mind.handle(arrived(f"c{number}"), float(number))
        mind.validate()
    said += mind.handle(CallFailed("c0", "engine_reset", True, False), 5.0)
    said += mind.handle(CallFinished("c1", 10, 0, 10), 6.0)
    said += mind.handle(ClientGone("c2"), 6.5)
    if hook == "end":
        assert mind.policy.name == "faulty"
        said += mind.handle(PolicyChanged("fifo"), 7.0)
        assert (mind.policy.name, mind.deciding.failed) == ("fifo", None)
    else:
        assert (mind.policy.name, mind.deciding.failures) == ("passthrough", 1)
        assert mind.deciding.failed is not None and mind.deciding.failed.policy == "faulty"
        assert mind.deciding.asked[0] == "faulty"
    assert len([action for action in said if isinstance(action, PolicyFailed)]) == 1
    sent = [action.call_id for action in said if isinstance(action, Dispatch)]
    assert sorted(sent) == ["c0", "c0", "c1", "c2", "c3"], "each once, and the retry"
    mind.handle(PolicyChanged("faulty"), 8.0)
    assert (mind.policy.name, mind.deciding.failed) == ("faulty", None), "setting it again tries it again"
    mind.validate()


def test_a_policy_with_impossible_options_changes_nothing() -> None:
    mind = scheduler()
    with pytest.raises(ValueError, match="fails: must be"):
        mind.handle(PolicyChanged("faulty", (("fails", 3),)), 1.0)
    with pytest.raises(KeyError):
        mind.handle(PolicyChanged("nobody"), 1.0)
    assert mind.policy.name == "faulty"
    assert [type(action) for action in mind.handle(arrived("c"), 1.0)] == [Dispatch]


def test_a_policy_that_wants_to_look_again_at_once_does_not_turn_in_circles() -> None:
    mind = scheduler(hold=1e-9)
    assert mind.handle(arrived("c"), 1.0) == [WakeAt(1.001)]


def test_what_was_decided_is_remembered_with_what_came_of_it_and_the_regret() -> None:
    mind = scheduler(hold=10.0)
    assert mind.handle(arrived("c"), 1.0) == [WakeAt(11.0)]
    assert described(record_of(mind.calls["c"]), 2.0)["state"] == "held"
    assert mind.handle(Tick(), 11.0) == [Dispatch("c", "a", 7)]
    mind.handle(CallFinished("c", 10, 0, 5), 14.0)
    record = mind.decisions.find("c")
    assert record is not None
    told = described(record, 20.0, 3.0)
    assert told["held"]["first"]["rule"] == "slack" and told["held"]["after_seconds"] == 0.0
    assert (told["sent"]["rule"], told["sent"]["after_seconds"], told["sent"]["priority"]) == ("free", 10.0, 7)
    assert told["came_of_it"] == {
        "outcome": "answered", "seconds_after_arrival": 13.0, "seconds_after_sending": 3.0, "prompt_tokens": 10,
        "output_tokens": 5, "joules": 3.0,
    }  # fmt: skip
    assert told["regret"] == {"seconds": 11.0, "joules": None}, "13 s where 2 had been predicted; no joules are known"
    assert mind.decisions.counts == {("faulty", "free"): 1}
    judged = mind.decisions.judged["faulty", "slack"]
    assert (judged.count, judged.seconds_more, judged.seconds_less, judged.joules_more) == (1, 11.0, 0.0, 0.0)


def test_of_a_call_sent_at_once_the_alternative_is_later() -> None:
    mind = scheduler()
    mind.handle(arrived("c"), 1.0)
    mind.handle(CallFinished("c", 10, 0, 5), 2.5)
    record = mind.decisions.find("c")
    assert record is not None and record.regret() == Expected(-1.5, None)
    assert mind.decisions.judged["faulty", "free"].seconds_less == 1.5
    mind.handle(arrived("d"), 3.0)
    mind.handle(ClientGone("d"), 4.0)
    record = mind.decisions.find("d")
    assert record is not None and record.outcome == "client_gone" and record.regret() is None


def test_the_log_is_bounded_and_the_newest_is_first() -> None:
    config = SchedulerConfig((EngineSpec("a", 100),), decisions=3)
    mind = Scheduler(config, 0.0)
    for number in range(8):
        mind.handle(arrived(f"c{number}"), 0.0)
        mind.handle(CallFinished(f"c{number}", 1, 0, 1), 1.0)
        mind.validate()
    names = [record.call_id for record in mind.decisions.newest_first()]
    assert names == ["c7", "c6", "c5"]
    mind.decisions.resize(2)
    assert [record.call_id for record in mind.decisions.newest_first()] == ["c7", "c6"]
    mind.decisions.resize(4)
    mind.handle(arrived("e"), 0.0)
    mind.handle(CallFinished("e", 1, 0, 1), 1.0)
    assert [record.call_id for record in mind.decisions.newest_first()] == ["e", "c7", "c6"]
    assert mind.decisions.find("c0") is None
    assert isinstance(mind.decisions, DecisionLog)


def test_options_are_typed_and_bounded() -> None:
    number = Option(0.5, "a probability", above=0, below=1)
    assert [number.takes(value) for value in (0.1, 0, 1, 1.0, True, "0.5", float("nan"))] == [True] + [False] * 6
    assert number.range_words() == "a number above 0 below 1"
    switch = Option(False, "a switch")
    assert [switch.takes(value) for value in (True, 1, "yes")] == [True, False, False]
    word = Option("a", "a word", choices=("a", "b"))
    assert [word.takes(value) for value in ("b", "c", 1)] == [True, False, False]
    whole = Option(3, "a count", least=1)
    assert [whole.takes(value) for value in (1, 0, 1.5, True)] == [True, False, False, False]
    assert option_problems("fifo", {"max_in_fligt": 1}) == [
        ("max_in_fligt", 'unknown option; did you mean "max_in_flight"?')
    ]
    assert option_problems("las", {"quantum_seconds": -1}) == [("quantum_seconds", "must be a number above 0, not -1")]
    assert make_policy("las", {"quantum_seconds": 2}).quantum_seconds == 2.0  # type: ignore[attr-defined]


def test_a_name_that_no_policy_has_is_answered_with_those_there_are() -> None:
    assert unknown_policy("fifi") == f"unknown policy 'fifi'; did you mean \"fifo\"? there are {', '.join(POLICIES)}"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (object, "no class derived"),
        (type("Bad", (Faulty,), {"name": "Bad Name"}), "lower-case"),
        (type("Twice", (Faulty,), {"name": "fifo"}), "there is a policy 'fifo' already"),
        (type("Odd", (Faulty,), {"name": "odd", "options": {"x": 3}}), "must be an Option"),
        (type("Odd", (Faulty,), {"name": "odd", "options": {"x": Option(0, "x", least=1)}}), "its own default"),
        (type("Half", (Policy,), {"name": "half"}), "lacks __init__, next"),
    ],
)
def test_what_cannot_be_a_policy_is_refused(kind: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        register(kind)
    assert sorted(POLICIES) == sorted({*POLICIES} - {"odd", "half", "Bad Name"})
