"""A call that very many wait for has finished: they learn of it some at a time, and nobody sees a difference."""

from __future__ import annotations

import pytest

from scheduler.actions import WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EngineSpec, Tick, WorkflowDeclared
from scheduler.workflow import NodeSpec, WorkflowBook, WorkflowSpec
from scheduler.workflow.graph import TOLD_AT_ONCE

COUNT = 2 * TOLD_AT_ONCE + 10


def fan_out() -> WorkflowSpec:
    nodes = [NodeSpec("root"), *[NodeSpec(f"n{number}", ("root",)) for number in range(COUNT)]]
    return WorkflowSpec("key", "wf", nodes=(*nodes, NodeSpec("join", tuple(f"n{number}" for number in range(COUNT)))))


def finished() -> WorkflowBook:
    """The root has."""
    book = WorkflowBook()
    book.declare(fan_out(), 0.0)
    book.call_arrived(CallArrived("c", "key", "m", "wf", 10, node="root"), 1.0)
    book.call_started("c", 1.0)
    change = book.call_finished(CallFinished("c", 10, 1, 5), 2.0)
    assert change is not None and [node.name for node in change.ready] == [f"n{n}" for n in range(TOLD_AT_ONCE)]
    book.validate()
    return book


def states(book: WorkflowBook) -> dict[str, int]:
    workflow = book.workflow("key", "wf")
    assert workflow is not None
    found: dict[str, int] = {}
    for node in workflow.graph.nodes.values():
        found[node.state] = found.get(node.state, 0) + 1
    return found


def test_all_are_told_in_their_order() -> None:
    book = finished()
    told = []
    while book.untold:
        told += [node.name for node in book.tell_on(2.1)]
        book.validate()
    assert told == [f"n{number}" for number in range(TOLD_AT_ONCE, COUNT)]
    assert states(book) == {"finished": 1, "ready": COUNT, "planned": 1}


def test_one_whose_call_comes_is_told_first() -> None:
    book = finished()
    name = f"n{COUNT - 1}"
    node = book.call_arrived(CallArrived("d", "key", "m", "wf", 10, node=name), 2.1)
    assert node is not None and node.name == name and not node.waiting_for and node.ready_at == 2.1
    book.validate()
    while book.untold:
        assert name not in [other.name for other in book.tell_on(2.2)]
    book.validate()


@pytest.mark.parametrize("end", ["cancelled", "forgotten"])
def test_nobody_is_told_once_it_is_over(end: str) -> None:
    book = finished()
    book.cancel("key", "wf", 3.0)
    book.validate()
    if end == "forgotten":
        book.expire(90_000.0)
        assert book.workflow("key", "wf") is None
    assert not book.tell_on(3.0) and not book.untold
    book.validate()


def test_the_scheduler_wakes_itself_until_all_are_told() -> None:
    scheduler = Scheduler(SchedulerConfig((EngineSpec("e", 64),)), 0.0)
    scheduler.handle(WorkflowDeclared("ask", fan_out()), 0.0)
    scheduler.handle(CallArrived("c", "key", "m", "wf", 10, node="root"), 1.0)
    actions = scheduler.handle(CallFinished("c", 10, 1, 5), 2.0)
    ticks = 0
    while WakeAt(2.0) in actions:
        actions = scheduler.handle(Tick(), 2.0)
        ticks += 1
    assert ticks and states(scheduler.workflows) == {"finished": 1, "ready": COUNT, "planned": 1}
