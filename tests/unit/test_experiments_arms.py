"""Two policies behind one pool: each decides for its own calls, on its own engines, and both are asked."""

from __future__ import annotations

from scheduler.actions import Dispatch
from scheduler.breaker import Breaker, BreakerRule
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EngineSpec
from scheduler.experiments import ArmPolicies
from scheduler.policies import make_policy
from scheduler.policies.base import Choice, Policy, View
from scheduler.policies.passthrough import Passthrough
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


def holding(both: ArmPolicies, *names: str) -> list[CallState]:
    held = [call(name, sequence) for sequence, name in enumerate(names)]
    for each in held:
        both.arrived(each, 0.0)
    return held


def engine(name: str, in_flight: int = 0) -> EngineState:
    return EngineState(name, 100, Breaker(BreakerRule()), in_flight=in_flight)


def arm_of(call: CallState, now: float) -> int:
    return int(call.arrived.call_id.startswith("t"))


def chosen(both: ArmPolicies, engines: list[EngineState], now: float) -> str | None:
    choice = both.next(ReadyCalls(), engines, now)
    return choice.call.arrived.call_id if isinstance(choice, Choice) else None


def test_the_arm_whose_turn_it_is_comes_first_and_the_other_is_not_forgotten() -> None:
    policies = (make_policy("passthrough", {}), make_policy("fifo", {"max_in_flight": 2}))
    both = ArmPolicies(policies, arm_of, lambda now: int(now >= 10.0))
    first, treated, second = holding(both, "c1", "t1", "c2")
    one = engine("a", 1)
    assert (chosen(both, [one], 0.0), chosen(both, [one], 20.0)) == ("c1", "t1")
    # fifo has its two in flight: what is left is the other arm's.
    assert chosen(both, [engine("a", 2)], 20.0) == "c1"
    both.sent(first, one, 20.0)
    assert chosen(both, [engine("a", 2)], 20.0) == "c2"
    both.ended(second, 20.0)
    assert chosen(both, [engine("a", 2)], 20.0) is None
    assert chosen(both, [one], 20.0) == "t1"
    treated.engine = "a"
    both.sent(treated, one, 20.0)
    # The attempt failed: it is held again, before the others of its arm.
    treated.attempts = 1
    both.ended(treated, 21.0)
    treated.engine = None
    late = call("t2", 9)
    both.arrived(late, 21.0)
    both.arrived(treated, 21.0)
    assert next(iter(both.ready[1])).arrived.call_id == "t1"


class Told(Passthrough):
    """Notes what it is told."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self.said: list[str] = []

    def begin(self, view: View, now: float) -> None:
        """Its own calls."""
        self.said.append(f"begin {sorted(view.calls)} {[each.arrived.call_id for each in view.ready]}")

    def arrived(self, call: CallState, now: float) -> None:
        """A call."""
        self.said.append(f"arrived {call.arrived.call_id}")


def test_each_is_told_of_its_own_calls_alone_also_of_those_that_were_there() -> None:
    scheduler = Scheduler(SchedulerConfig((EngineSpec("a", 1),), "passthrough"), 0.0)
    for number, name in enumerate(("c1", "t1", "c2")):
        scheduler.handle(CallArrived(name, "-", None, name, 1), float(number))
    policies = (Told({}), Told({}))
    scheduler.deciding.policy = ArmPolicies(policies, arm_of, lambda now: 0)
    scheduler.policy.begin(scheduler.view, 3.0)
    scheduler.handle(CallArrived("t2", "-", None, "t2", 1), 4.0)
    assert policies[0].said == ["begin ['c1', 'c2'] ['c2']"]
    assert policies[1].said == ["begin ['t1'] ['t1']", "arrived t2"]
    order = []
    for name in ("c1", "c2", "t1", "t2"):
        order += [action.call_id for action in scheduler.handle(CallFinished(name, 1, 0, 1), 5.0)
                  if isinstance(action, Dispatch)]  # fmt: skip
        scheduler.validate()
    assert order == ["c2", "t1", "t2"]
    assert [part.count for part in scheduler.policy.ready] == [0, 0]


def test_the_earlier_of_two_times_is_waited_for() -> None:
    both = ArmPolicies((Waits({"seconds": 5}), Waits({"seconds": 3})), arm_of, lambda now: 0)
    control, treated = holding(both, "c1", "t1")
    assert both.next(ReadyCalls(), [engine("a")], 100.0) == 103.0
    both.ended(treated, 100.0)
    assert both.next(ReadyCalls(), [engine("a")], 100.0) == 105.0
    both.ended(control, 100.0)
    assert both.next(ReadyCalls(), [engine("a")], 100.0) is None


def test_each_side_has_its_own_engines() -> None:
    policies = (make_policy("passthrough", {}), make_policy("passthrough", {}))
    sides = ArmPolicies(policies, arm_of, lambda now: 0, lambda arm, now: frozenset({"b" if arm else "a"}))
    for name, wanted in (("c1", "a"), ("t1", "b"), ("c2", "a"), ("t2", "b")):
        (held,) = holding(sides, name)
        choice = sides.next(ReadyCalls(), [engine("a"), engine("b")], 0.0)
        assert isinstance(choice, Choice)
        assert choice.engine.name == wanted
        sides.sent(held, choice.engine, 0.0)
