"""A call names its workflow: which node is it, and what does it follow?

What the client says (`after`) is an edge as `declared`. Where it says nothing, order says something. A call without a
name that comes when nothing is live follows all that nothing follows so far; while others run, the latest call of the
workflow's main agent, else the latest that finished. A call with a name follows the latest call of that name (its
agent's next turn); an agent's first call follows the agent that started it, as far as that is said; else a name without
`after` waits for nothing. Such edges are `inferred`: forecasts alone use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.forecasts import pattern_of
from scheduler.workflow.node import Edge, Node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.events import CallArrived
    from scheduler.workflow.book import WorkflowBook
    from scheduler.workflow.workflow import Workflow

DECLARED = Edge("declared")
SAME_AGENT = Edge("inferred", 0.9)
"""The agent's next call comes behind its last one."""
ALL_DONE = Edge("inferred", 0.9)
"""Nothing else was live: it had to wait for all there was."""
STARTED_BY = Edge("inferred", 0.8)
"""An agent's first call comes behind what its parent had said by then."""
ORDER_ALONE = Edge("inferred", 0.5)
"""Others were live: it follows the latest finished, or something else."""
UNNAMED_PATTERN = pattern_of("call-1")
FOLLOWS_MAX = 256
"""Edges that one call gets without saying so: the latest."""


def node_of(workflow: Workflow, event: CallArrived) -> Node:
    """The node of a call that arrived: declared, or failed and tried again, or new (with its edges)."""
    name = event.node
    if name is None:
        only = _only_ready(workflow) if workflow.origin == "declared" else None
        return only or _grown(workflow, event, name_for_unnamed(workflow))
    known = workflow.graph.nodes.get(name)
    if known is None:
        return _grown(workflow, event, name)
    latest = workflow.latest.get(name, known)
    for node in (known, latest):
        if not node.tool and (node.state in {"planned", "ready"} or (node.over and node.state != "finished")):
            _follow_said(workflow, node, event)
            return node
    return _grown(workflow, event, _next_name(workflow, latest, name))


def _only_ready(workflow: Workflow) -> Node | None:
    """The declared node that an unnamed call must be, because no other's time has come."""
    only: Node | None = None
    for node in workflow.graph.critical.floors.keys:
        if node.state == "ready":
            if only is not None:
                return None
            only = node
    return only


def name_for_unnamed(workflow: Workflow) -> str:
    """`call-3`."""
    while True:
        workflow.calls_named += 1
        if (name := f"call-{workflow.calls_named}") not in workflow.graph.nodes:
            return name


def _next_name(workflow: Workflow, latest: Node, name: str) -> str:
    """`name#2` for the second call of that name."""
    last = latest.name.removeprefix(f"{name}#")
    number = int(last) + 1 if last != latest.name and last.isdecimal() else 2
    while (free := f"{name}#{number}") in workflow.graph.nodes:
        number += 1
    return free


def _grown(workflow: Workflow, event: CallArrived, name: str) -> Node:
    node = Node(workflow, name, UNNAMED_PATTERN if event.node is None else pattern_of(name))
    guessed = () if event.after else _guessed(workflow, event)
    workflow.graph.add(node)
    for before, edge in guessed:
        connect(workflow, before, node, edge)
    if event.after:
        _follow_said(workflow, node, event)
    connect_waiting(workflow, node)
    return node


def connect_waiting(workflow: Workflow, node: Node) -> None:
    """Calls that said they come after a node of this name, before there was one."""
    if workflow.pending and (waiting := workflow.pending.pop(node.name, None)) is not None:
        workflow.pending_count -= len(waiting)
        for after in waiting:
            connect(workflow, node, after, DECLARED)


def _follow_said(workflow: Workflow, node: Node, event: CallArrived) -> None:
    """The edges of `after`. A name stands for the latest call that had it; one that no call has had so far may belong
    to a call that comes later, so it is kept, as far as there is room."""
    nodes, latest, pending, most = (
        workflow.graph.nodes,
        workflow.latest,
        workflow.pending,
        workflow.limits.pending_names,
    )
    for name in event.after:
        before = latest.get(name) or nodes.get(name)
        if before is not None:
            if before is not node:
                connect(workflow, before, node, DECLARED)
            continue
        waiting = pending.get(name)
        if waiting is None and len(pending) < most:
            waiting = pending[name] = []
        if waiting is None or len(waiting) >= most or workflow.edges_left <= 0:
            workflow.skipped_edges += 1
        elif node not in waiting:
            waiting.append(node)
            workflow.pending_count += 1


def connect(workflow: Workflow, before: Node, after: Node, edge: Edge) -> None:
    """An edge, if there is room and it closes no cycle; else it is counted as left out."""
    graph = workflow.graph
    if workflow.edges_left <= 0 or not graph.connect(before, after, edge):
        workflow.skipped_edges += 1
    else:
        workflow.loose_ends.pop(before, None)


def _guessed(workflow: Workflow, event: CallArrived) -> list[tuple[Node, Edge]]:
    """What a call follows that says nothing about it, and how sure that is."""
    latest = workflow.latest
    if event.node is not None:
        own = latest.get(event.node)
        if own is not None:
            return [(own, SAME_AGENT)] if own.state == "finished" else []
        parent = latest.get("" if event.parent_id == workflow.id else event.parent_id) if event.parent_id else None
        return [(parent, STARTED_BY)] if parent is not None and parent.state == "finished" else []
    if not workflow.live_calls and workflow.origin != "declared":
        ends: Iterable[Node] = workflow.loose_ends
        if len(workflow.loose_ends) > FOLLOWS_MAX:
            ends = list(ends)[-FOLLOWS_MAX:]
        return [(before, ALL_DONE) for before in ends]
    own = latest.get("")
    before = own if own is not None and own.state == "finished" else workflow.last_finished
    return [] if before is None else [(before, ORDER_ALONE)]


def note_hints(workflow: Workflow, event: CallArrived, now: float) -> None:
    """What a call says of its whole workflow. Of several deadlines the tightest holds, until it has passed."""
    if event.deadline_ms is not None:
        deadline_at = now + event.deadline_ms / 1000.0
        if workflow.deadline_at is None or deadline_at < workflow.deadline_at or workflow.deadline_at < now:
            workflow.deadline_at = deadline_at
    if event.workflow_class is not None:
        workflow.workflow_class = event.workflow_class
    if event.energy_budget_joules is not None:
        workflow.energy_budget_joules = event.energy_budget_joules
    if event.final and not workflow.run_here:  # else whoever runs it says when it is over
        workflow.closing = True


def judge_deadline(workflow: Workflow, needed_seconds: float, now: float) -> None:
    """A deadline was given: could what is left of the workflow be done by then, were it alone on the engine?"""
    if workflow.deadline_at is not None:
        missing = needed_seconds - (workflow.deadline_at - now)
        workflow.too_short_by_seconds = missing if missing > 0.0 else None


def judge_hint(workflow: Workflow, node: Node, event: CallArrived, now: float) -> None:
    """The same, if it was this call that gave the deadline in force."""
    if event.deadline_ms is not None and workflow.deadline_at == now + event.deadline_ms / 1000.0:
        judge_deadline(workflow, node.tail_seconds, now)


def tools_before(node: Node) -> list[Node]:
    """The tools that a node waits for, and those that they wait for, in an order in which they can have ended."""
    dag = node.workflow.graph.dag
    tools: dict[Node, None] = {}
    stack = [node]
    while stack:
        for before in dag.predecessors(stack.pop()):
            if before.tool and not before.over and before not in tools:
                tools[before] = None
                stack.append(before)
    return sorted(tools, key=lambda tool: tool.order)


def bind(book: WorkflowBook, node: Node, event: CallArrived, now: float) -> None:
    """A call of the node has come."""
    workflow, by_call = node.workflow, book.tables.by_call
    if node.call_id is not None:
        by_call.pop(node.call_id, None)
    node.call_id = event.call_id
    by_call[event.call_id] = node
    node.attempts += 1
    node.model = event.model
    node.prompt_tokens_estimate = event.prompt_tokens_estimate
    if event.max_output_tokens is not None:
        node.max_output_tokens = event.max_output_tokens
    if event.expected_output_tokens is not None:
        node.expected_output_tokens = event.expected_output_tokens
    if workflow.acting_since is not None:
        if workflow.last_finished is not None:
            book.templates.learn_pause(workflow, now - workflow.acting_since)
        workflow.acting_since = None
    if node.state == "ready" and node.ready_at is not None:
        book.forecasts.learn_pause(node, now - node.ready_at)
    elif node.ready_at is None and not node.waiting_for:
        ended = [before.finished_at or now for before in workflow.graph.dag.predecessors(node)]
        node.ready_at = max(ended, default=workflow.arrived_at)
    if node.ready_at is not None and node.attempts == 1:
        node.head_seconds += now - node.ready_at  # the client's own time is no holding back
