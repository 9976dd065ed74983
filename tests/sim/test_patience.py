"""How long may a held call wait? As long as the queue allows, or until a later deadline of its own."""

from __future__ import annotations

from scheduler.actions import Reject, WakeAt
from scheduler.events import CallFinished, ClientGone, LimitsChanged, Tick, WorkflowDeclared
from scheduler.patience import SPARE_ENTRIES
from scheduler.workflow.spec import NodeSpec, WorkflowSpec
from tests.sim.test_scheduler import arrived, scheduler


def test_a_call_with_a_later_deadline_of_its_own_may_wait_until_then() -> None:
    mind = scheduler(queue_seconds=5.0)
    mind.handle(arrived("running"), 0.0)
    day = arrived("day")._replace(deadline_ms=86_400_000.0, workflow_class="batch")
    assert mind.handle(day, 0.0) == [WakeAt(86_400.0)]
    assert mind.handle(arrived("second")._replace(deadline_ms=2_000.0), 1.0) == [WakeAt(6.0)], "behind the patient one"
    said = mind.handle(Tick(), 6.0)
    assert isinstance(said[0], Reject) and (said[0].call_id, said[0].reason) == ("second", "queue_timeout")
    assert said[1:] == [WakeAt(86_400.0)]
    mind.validate()
    said = mind.handle(Tick(), 86_400.0)
    assert isinstance(said[0], Reject) and (said[0].call_id, said[0].reason, said[1:]) == ("day", "queue_timeout", [])
    assert list(mind.calls) == ["running"]


def test_a_call_of_a_workflow_with_a_later_deadline_may_wait_until_then() -> None:
    mind = scheduler(queue_seconds=5.0)
    mind.handle(arrived("running"), 0.0)
    spec = WorkflowSpec("-", "w", nodes=(NodeSpec("a"),), deadline_seconds=60.0)
    mind.handle(WorkflowDeclared("w", spec), 1.0)
    said = mind.handle(arrived("held")._replace(workflow_id="w", node="a", identity_source="joulegate-header"), 2.0)
    assert said[-1] == WakeAt(61.0)
    said = mind.handle(Tick(), 61.0)
    assert isinstance(said[0], Reject) and (said[0].call_id, said[0].reason) == ("held", "queue_timeout")


def test_another_limit_holds_for_those_that_wait_already() -> None:
    mind = scheduler(queue_seconds=5.0)
    for call_id in ("running", "held"):
        mind.handle(arrived(call_id), 0.0)
    mind.handle(LimitsChanged(6, 2.0, 4), 1.0)
    said = mind.handle(Tick(), 2.0)
    assert isinstance(said[0], Reject) and said[0].call_id == "held"


def test_what_is_kept_of_waits_does_not_grow_with_calls_that_are_over() -> None:
    mind = scheduler(queue_calls=6)
    mind.handle(arrived("running"), 0.0)
    mind.handle(arrived("stays"), 0.0)
    for number in range(1_000):
        mind.handle(arrived(str(number)), 0.0)
        mind.handle(ClientGone(str(number), 0), 0.0)
    assert len(mind.patience._ends) <= SPARE_ENTRIES + 3 * 2
    mind.validate()
    mind.handle(ClientGone("stays", 0), 0.0)
    assert mind.handle(CallFinished("running", 1, 0, 1), 0.0) == []
