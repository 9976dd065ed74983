"""Workflows that grow call by call: which node a call is, what it follows, what its content adds, when it all ends."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import Node, NodeSpec, Workflow, WorkflowBook, WorkflowLimits, WorkflowSpec
from workloads.shapes import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable


class Caller:
    """Makes calls, one at a time or several at once."""

    def __init__(self, limits: WorkflowLimits | None = None) -> None:
        self.book = WorkflowBook(limits)
        self.now = 0.0

    def arrive(self, call: str, node: str | None = None, *, workflow: str = "wf", **hints: object) -> Node:
        event = CallArrived(call, "key", "m", workflow, 100, node=node, **hints)  # type: ignore[arg-type]
        found = self.book.call_arrived(event, self.now)
        assert found is not None
        self.book.validate()
        self.book.call_started(call, self.now)
        return found

    def finish(self, *calls: str) -> None:
        for call in calls:
            self.now += 1.0
            assert self.book.call_finished(CallFinished(call, 100, 0, 10), self.now) is not None
            self.book.validate()

    def one(self, call: str, node: str | None = None, *, workflow: str = "wf", **hints: object) -> Node:
        found = self.arrive(call, node, workflow=workflow, **hints)
        self.finish(call)
        return found

    def place(self, call: str, turn_of: str | None = None, data_from: Iterable[str] = (), **more: object) -> Workflow:
        data = [(other, 0.9) for other in data_from]
        workflow = self.book.placed(call, self.now, turn_of=turn_of, turn_confidence=0.99, data_from=data, **more)  # type: ignore[arg-type]
        self.book.validate()
        assert workflow is not None
        return workflow

    def workflow(self, name: str = "wf") -> Workflow:
        found = self.book.workflow("key", name)
        assert found is not None
        return found

    def edges(self, name: str = "wf") -> dict[tuple[str, str], tuple[str, float]]:
        graph = self.workflow(name).graph
        return {(before.name, after.name): (edge.kind, edge.confidence) for before, after, edge in graph.edges()}


# --- what hints imply ---


def test_one_agent_without_names_is_a_chain() -> None:
    caller = Caller()
    assert [caller.one(f"c{i}").name for i in range(3)] == ["call-1", "call-2", "call-3"]
    assert caller.edges() == {("call-1", "call-2"): ("inferred", 0.9), ("call-2", "call-3"): ("inferred", 0.9)}


def test_what_is_said_is_taken_and_nothing_is_guessed_beside_it() -> None:
    caller = Caller()
    caller.one("1", "a")
    caller.one("2", "b", after=("a",))
    caller.one("3", "c", after=("a", "b", "a"))
    assert caller.edges() == dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], ("declared", 1.0))


def test_calls_side_by_side_and_the_one_that_waits_for_all() -> None:
    caller = Caller()
    caller.one("plan")
    for call in ("x", "y", "z"):
        caller.arrive(call)
    caller.finish("z", "x", "y")
    caller.one("sum")
    found = caller.edges()
    assert {pair for pair, (_, confidence) in found.items() if confidence == 0.9} == {
        ("call-1", "call-2"), ("call-2", "call-5"), ("call-3", "call-5"), ("call-4", "call-5")
    }  # fmt: skip
    assert found["call-1", "call-3"] == found["call-1", "call-4"] == ("inferred", 0.5)


def test_a_name_that_comes_again_is_the_agents_next_turn() -> None:
    caller = Caller()
    for name in ("main", "helper"):
        caller.arrive(name, name)
    caller.finish("main")
    assert caller.arrive("main2", "main").name == "main#2"
    caller.finish("main2")
    assert caller.arrive("main3", "main").name == "main#3"
    assert caller.edges() == {("main", "main#2"): ("inferred", 0.9), ("main#2", "main#3"): ("inferred", 0.9)}
    caller.finish("main3")
    caller.one("next", "sum", after=("main",))
    assert ("main#3", "sum") in caller.edges(), "a name stands for the latest call that had it"


def test_a_name_that_failed_is_tried_again() -> None:
    caller = Caller()
    first = caller.arrive("1", "a")
    caller.book.call_failed("1", caller.now)
    assert caller.arrive("2", "a") is first and first.attempts == 2
    caller.finish("2")
    second = caller.arrive("3", "a")
    assert second.name == "a#2"
    caller.book.client_gone("3", caller.now)
    assert caller.arrive("4", "a") is second
    assert caller.arrive("5", "a").name == "a#3", "the other still runs"


def test_a_started_agent_follows_what_started_it() -> None:
    caller = Caller()
    caller.one("main")
    caller.one("other", "other")
    caller.arrive("running", "busy")
    caller.arrive("child", "child", parent_id="wf")
    caller.arrive("grandchild", "grandchild", parent_id="other")
    found = caller.edges()
    assert found["call-1", "child"] == found["other", "grandchild"] == ("inferred", 0.8)


def test_a_name_that_comes_later_is_waited_for() -> None:
    caller = Caller()
    last = caller.arrive("last", "last", after=("first", "second", "never"))
    assert caller.edges() == {} and last.waiting_for == 0
    caller.arrive("second", "second")
    caller.arrive("first", "first", after=("second",))
    assert caller.edges() == dict.fromkeys(
        [("second", "last"), ("first", "last"), ("second", "first")], ("declared", 1.0)
    )
    assert last.waiting_for == 2
    assert list(caller.workflow().pending) == ["never"]


def test_names_that_are_waited_for_and_circles_are_bounded() -> None:
    caller = Caller(WorkflowLimits(pending_names=2))
    caller.arrive("a", "a", after=("b", "x", "y"))
    assert list(caller.workflow().pending) == ["b", "x"]
    caller.arrive("b", "b", after=("a", "b"))
    assert caller.edges() == {("a", "b"): ("declared", 1.0)}, "the edge that came first stays"
    assert caller.workflow().skipped_edges == 2


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_hints_and_a_declaration_give_one_graph(kind: str) -> None:
    shape = KINDS[kind]("wf", random.Random(kind))
    hinted, declared = Caller(), WorkflowBook()
    for call in shape.calls:
        hinted.one(call.node, call.node, after=call.after)
    nodes = tuple(NodeSpec(call.node, call.after) for call in shape.calls)
    graph = declared.declare(WorkflowSpec("key", "wf", nodes=nodes), 0.0).graph
    assert set(hinted.edges()) == {(before.name, after.name) for before, after, _ in graph.edges()}
    assert set(hinted.workflow().graph.nodes) == set(graph.nodes)
    levels = {name: node.level for name, node in graph.nodes.items()}
    assert {name: node.level for name, node in hinted.workflow().graph.nodes.items()} == levels


def test_a_declared_workflow_may_grow() -> None:
    caller = Caller()
    caller.book.declare(WorkflowSpec("key", "wf", nodes=(NodeSpec("a"), NodeSpec("b", ("a",)))), 0.0)
    caller.one("1", "a")
    caller.arrive("2", "extra", after=("a",))
    caller.arrive("3", "b", after=("extra",))
    assert caller.edges() == dict.fromkeys([("a", "b"), ("a", "extra"), ("extra", "b")], ("declared", 1.0))


# --- promises, ends ---


def test_the_tightest_deadline_holds_until_it_has_passed() -> None:
    caller = Caller()
    for at, deadline_ms, expected in ((0.0, 60e3, 60.0), (10.0, 60e3, 60.0), (11.0, 9e3, 20.0), (30.0, 60e3, 90.0)):
        caller.now = at
        caller.one(f"c{at}", deadline_ms=deadline_ms)
        assert caller.workflow().deadline_at == expected
    caller.one("x", workflow_class="batch", energy_budget_joules=7.0)
    caller.one("y")
    assert (caller.workflow().workflow_class, caller.workflow().energy_budget_joules) == ("batch", 7.0)


def test_the_final_call_closes_when_all_are_over() -> None:
    caller = Caller()
    caller.arrive("1")
    caller.arrive("2", final=True)
    caller.finish("2")
    assert caller.workflow().outcome is None
    caller.finish("1")
    assert caller.workflow().outcome == "closed"
    before = caller.workflow()
    caller.one("3")
    assert caller.workflow() is not before, "the id begins anew"


def test_closing_waits_for_live_calls() -> None:
    caller = Caller()
    caller.arrive("1")
    workflow = caller.book.close("key", "wf", caller.now)
    assert workflow is not None and workflow.closed_at is None
    caller.finish("1")
    assert workflow.outcome == "closed"
    assert caller.book.close("key", "wf", caller.now) is None


def test_idle_workflows_close_and_are_kept_for_a_while() -> None:
    caller = Caller(WorkflowLimits(idle_seconds=100.0, closed_seconds=50.0))
    caller.one("1")
    caller.arrive("2", workflow="busy")
    caller.one("3", workflow="promised", deadline_ms=500e3, node="a")
    assert caller.book.next_expiry() == 101.0
    assert caller.book.expire(100.9) == []
    first = caller.workflow()
    assert caller.book.expire(101.0) == [first] and first.outcome == "idle"
    assert caller.workflow() is first
    caller.book.expire(102.0)
    assert caller.book.next_expiry() == 151.0
    assert [workflow.id for workflow in caller.book.expire(151.0)] == []
    assert caller.book.workflow("key", "wf") is None
    assert caller.workflow("busy").closed_at is None
    caller.book.validate()


def test_a_promise_keeps_a_silent_workflow() -> None:
    book = WorkflowBook(WorkflowLimits(idle_seconds=10.0))
    spec = WorkflowSpec("key", "wf", deadline_seconds=100.0, nodes=(NodeSpec("a"),))
    workflow = book.declare(spec, 0.0)
    assert book.expire(50.0) == []
    assert book.expire(99.0) == []
    assert book.expire(109.0) == [workflow]


# --- room ---


def test_an_endless_workflow_forgets_its_oldest_calls() -> None:
    caller = Caller(WorkflowLimits(nodes_per_workflow=16))
    for number in range(100):
        caller.one(f"c{number}")
    workflow = caller.workflow()
    assert len(workflow.graph.nodes) <= 16
    assert len(workflow.graph.nodes) + workflow.graph.forgotten_nodes == 100
    assert len(caller.book.tables.by_call) == len(workflow.graph.nodes)


def test_live_calls_are_never_forgotten() -> None:
    caller = Caller(WorkflowLimits(nodes_per_workflow=4))
    for number in range(4):
        caller.arrive(f"c{number}")
    assert caller.book.call_arrived(CallArrived("c4", "key", "m", "wf", 9), 0.0) is None
    caller.finish("c0")
    assert caller.book.call_arrived(CallArrived("c5", "key", "m", "wf", 9), 0.0) is not None
    assert caller.book.tables.by_call.get("c0") is None


def test_the_silent_make_room_first_and_unnamed_calls_push_out_no_named_workflow() -> None:
    caller = Caller(WorkflowLimits(workflows=3))
    caller.one("named")
    for number in range(20):
        caller.one(f"c{number}", workflow="")
    assert caller.workflow().outcome is None
    assert len(caller.book.tables.unnamed) == 3
    caller.arrive("busy", workflow="busy")
    for number in range(20):
        caller.one(f"d{number}", workflow=f"w{number}")
    assert caller.workflow("busy").live_calls == 1
    assert caller.book.workflow("key", "wf") is None
    caller.arrive("busy2", workflow="w18")
    caller.arrive("busy3", workflow="w19")
    assert caller.book.call_arrived(CallArrived("no", "key", "m", "w20", 9), caller.now) is None


# --- content ---


def test_unnamed_calls_become_one_workflow_by_their_content() -> None:
    caller = Caller()
    for call in ("first", "second", "third"):
        caller.one(call, workflow="")
    assert caller.workflow("second").id == "second"
    caller.place("third", turn_of="second")
    workflow = caller.place("second", turn_of="first", data_from=("first",))
    assert workflow.id == "first" and workflow.origin == "content"
    assert caller.workflow("second") is caller.workflow("third") is workflow
    assert caller.edges("first") == {("call-1", "call-2"): ("inferred", 0.99), ("call-2", "call-3"): ("inferred", 0.99)}
    assert len(caller.book.tables.unnamed) == 1
    assert workflow.graph.nodes["call-3"].head_seconds == pytest.approx(2.0)


def test_a_reduce_joins_its_maps() -> None:
    caller = Caller()
    for call in ("a", "b", "c"):
        caller.arrive(call, workflow="")
    caller.finish("c", "a", "b")
    caller.arrive("sum", workflow="")
    workflow = caller.place("sum", data_from=("c", "a", "b"))
    assert workflow.id == "a" and len(workflow.graph.nodes) == 4
    last = caller.book.tables.by_call.get("sum")
    assert last is not None
    assert [node.call_id for node in caller.book.task_group(last).members] == ["c", "a", "b"]


def test_content_never_joins_keys_and_never_changes_what_a_client_said() -> None:
    caller = Caller()
    caller.one("mine", workflow="")
    event = CallArrived("theirs", "other", "m", "", 9)
    assert caller.book.call_arrived(event, caller.now) is not None
    workflow = caller.book.placed("theirs", caller.now, turn_of="mine", turn_confidence=1.0)
    assert workflow is not None and (workflow.key, workflow.id) == ("other", "theirs")
    assert caller.book.workflow("other", "mine") is None
    caller.one("a", "a")
    caller.one("b", "b", after=("a",))
    caller.place("b", turn_of="a")
    caller.place("b", turn_of="mine")
    caller.one("elsewhere", workflow="two")
    caller.place("elsewhere", turn_of="b")
    assert caller.edges() == {("a", "b"): ("declared", 1.0)}
    assert caller.workflow("mine").id == "mine"


def test_content_replaces_what_order_alone_had_suggested() -> None:
    caller = Caller()
    caller.one("root")
    caller.one("left")
    caller.arrive("right")
    caller.finish("right")
    caller.arrive("busy")
    assert ("call-3", "call-4") in caller.edges()
    caller.arrive("late")
    assert caller.edges()["call-3", "call-5"] == ("inferred", 0.5)
    caller.place("late", turn_of="root")
    assert ("call-3", "call-5") not in caller.edges()
    assert caller.edges()["call-1", "call-5"] == ("inferred", 0.99)


def test_what_is_unknown_changes_nothing() -> None:
    caller = Caller()
    assert caller.book.placed("nobody", 0.0, turn_of="nothing", turn_confidence=1.0) is None
    assert caller.book.call_started("nobody", 0.0) is None
    assert caller.book.retried("nobody", 0.0) is None
    assert caller.book.call_failed("nobody", 0.0) is None
    assert caller.book.workflow("key", "wf") is None
    caller.arrive("1")
    caller.place("1", turn_of="nobody", data_from=("1", "nothing"))
    assert caller.edges() == {}


def test_runs_of_one_fingerprint_share_a_template() -> None:
    caller = Caller()
    for run in range(3):
        for turn in range(4):
            call = f"r{run}t{turn}"
            caller.arrive(call, workflow="")
            caller.place(call, turn_of=f"r{run}t{turn - 1}" if turn else None, fingerprint="agent")
            caller.finish(call)
        caller.book.close("key", f"r{run}t0", caller.now)
    caller.arrive("new", workflow="")
    workflow = caller.place("new", fingerprint="agent")
    template = caller.book.templates.of(workflow)
    assert template is not None
    assert template.forecast(workflow).calls == (3, 3)
    assert workflow.graph.nodes["call-1"].tail_seconds > 3.0
