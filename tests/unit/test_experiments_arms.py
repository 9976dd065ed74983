"""Two policies behind one pool: each decides for its own calls, on its own engines, and both are asked."""

from __future__ import annotations

from scheduler.breaker import Breaker, BreakerRule
from scheduler.events import CallArrived
from scheduler.experiments import ArmPolicies
from scheduler.policies import make_policy
from scheduler.policies.base import Choice, Policy
from scheduler.state import CallState, EngineState, ReadyCalls


class Waits(Policy):
    """Always wants to look again, so many seconds from now."""

    name = "waits"

    def __init__(self, options: dict[str, object]) -> None:
        self.seconds = float(str(options["seconds"]))

    def next(self, ready: ReadyCalls, engines: object, now: float) -> float:
        """Later."""
        return now + self.seconds


def call(name: str, sequence: int) -> CallState:
    return CallState(CallArrived(name, "-", None, name, 1), float(sequence), sequence)


def ready(*names: str) -> ReadyCalls:
    held = ReadyCalls()
    for sequence, name in enumerate(names):
        held.add(call(name, sequence))
    return held


def engine(name: str, in_flight: int = 0) -> EngineState:
    return EngineState(name, 100, Breaker(BreakerRule()), in_flight=in_flight)


def arm_of(call: CallState, now: float) -> int:
    return int(call.arrived.call_id.startswith("t"))


def test_the_arm_whose_turn_it_is_comes_first_and_the_other_is_not_forgotten() -> None:
    policies = (make_policy("passthrough", {}), make_policy("fifo", {"max_in_flight": 2}))
    both = ArmPolicies(policies, arm_of, lambda now: int(now >= 10.0))
    held, engines = ready("c1", "t1", "c2"), [engine("a", 1)]
    choices = [both.next(held, engines, now) for now in (0.0, 20.0)]
    assert [choice.call.arrived.call_id for choice in choices if isinstance(choice, Choice)] == ["c1", "t1"]
    # fifo has its two in flight: what is left is the other arm's.
    full = both.next(held, [engine("a", 2)], 20.0)
    assert isinstance(full, Choice)
    assert full.call.arrived.call_id == "c1"
    assert both.next(ready("t1"), [engine("a", 2)], 20.0) is None
    assert held.count == 3, "a policy changes nothing"


def test_the_earlier_of_two_times_is_waited_for() -> None:
    both = ArmPolicies((Waits({"seconds": 5}), Waits({"seconds": 3})), arm_of, lambda now: 0)
    assert both.next(ready("c1", "t1"), [engine("a")], 100.0) == 103.0
    assert both.next(ready("c1"), [engine("a")], 100.0) == 105.0
    assert both.next(ready(), [engine("a")], 100.0) is None


def test_each_side_has_its_own_engines() -> None:
    policies = (make_policy("passthrough", {}), make_policy("passthrough", {}))
    sides = ArmPolicies(policies, arm_of, lambda now: 0, lambda arm, now: frozenset({"b" if arm else "a"}))
    for name, wanted in (("c1", "a"), ("t1", "b"), ("c2", "a"), ("t2", "b")):
        choice = sides.next(ready(name), [engine("a"), engine("b")], 0.0)
        assert isinstance(choice, Choice)
        assert choice.engine.name == wanted
