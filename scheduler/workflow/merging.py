"""A call's content says where it belongs: what changes in the graphs?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.growth import ORDER_ALONE, connect, name_for_unnamed
from scheduler.workflow.live import size_of
from scheduler.workflow.node import Edge

if TYPE_CHECKING:
    from scheduler.workflow.node import Node
    from scheduler.workflow.tables import WorkflowTables
    from scheduler.workflow.workflow import Workflow


def place(
    tables: WorkflowTables, node: Node, found: list[tuple[str, float]], fingerprint: str | None, now: float
) -> None:
    """Connect a call with the earlier ones that its content names, `found` with their confidences; merge the
    workflows of unnamed calls that turn out to be one."""
    if fingerprint is not None and node.workflow.origin == "content" and len(node.workflow.graph.nodes) == 1:
        node.workflow.known_as(None, fingerprint)
    sources: list[tuple[Node, float]] = []
    for call_id, confidence in found:
        other = tables.by_call.get(call_id)
        if other is None or other is node or other.workflow.key != node.workflow.key:
            continue
        if other.workflow is not node.workflow and not _merged(tables, node.workflow, other.workflow, now):
            continue
        sources.append((other, confidence))
    if not sources:
        return
    workflow = node.workflow
    graph = workflow.graph
    edges = graph.edge_count
    workflow.edges_max = tables.edges_allowed(workflow)
    surest = max(confidence for _, confidence in sources)
    others = {other for other, _ in sources}
    for before in list(graph.dag.predecessors(node)):
        edge = graph.edge(before, node)
        guessed = edge is not None and edge.kind == "inferred" and edge.confidence <= ORDER_ALONE.confidence < surest
        if guessed and before not in others:  # order alone had suggested it; now there is something better
            graph.disconnect(before, node)
            if before.state == "finished" and not graph.is_followed(before):
                workflow.loose_ends[before] = None
    for other, confidence in sources:
        connect(workflow, other, node, Edge("inferred", confidence))
    tables.count(workflow, 0, graph.edge_count - edges)


def _merged(tables: WorkflowTables, one: Workflow, other: Workflow, now: float) -> bool:
    """Make two workflows of unnamed calls one; False if they may not be or are too large together."""
    limits = tables.limits
    if one.origin != "content" or other.origin != "content":
        return False
    if len(one.graph.nodes) + len(other.graph.nodes) > limits.nodes_per_workflow:
        return False
    if one.graph.edge_count + other.graph.edge_count > limits.edges_per_workflow:
        return False
    older, younger = (one, other) if one.number < other.number else (other, one)
    tables.take(younger)
    graph, size = younger.graph, size_of(older)
    for whose in (older.graph, graph):  # all of their nodes are calls that have come: none becomes ready
        while whose.untold:
            whose.tell_on()
    for node in sorted(graph.nodes.values(), key=lambda node: node.order):
        node.workflow, node.name = older, name_for_unnamed(older)
    older.graph.absorb(graph, younger.arrived_at - older.arrived_at)
    _take_over(older, younger)
    tables.resize(older.key, size_of(older) - size)
    younger.closed_at, younger.outcome = now, "merged"
    tables.remember_alias(younger.key, younger.id, older.id)
    tables.touch(older, now)
    return True


def _take_over(older: Workflow, younger: Workflow) -> None:
    """Everything beside the graph."""
    older.live_calls += younger.live_calls
    if older.live_calls:
        older.acting_since = None
    elif younger.acting_since is not None and older.acting_since is not None:
        older.acting_since = max(older.acting_since, younger.acting_since)
    older.loose_ends.update(younger.loose_ends)
    older.latest.update(younger.latest)
    older.skipped_edges += younger.skipped_edges
    older.closing = older.closing or younger.closing
    if younger.deadline_at is not None:
        older.deadline_at = min(younger.deadline_at, older.deadline_at or younger.deadline_at)
    older.workflow_class = older.workflow_class or younger.workflow_class
    older.energy_budget_joules = older.energy_budget_joules or younger.energy_budget_joules
    last, other = older.last_finished, younger.last_finished
    if other is not None and (last is None or (other.finished_at or 0.0) >= (last.finished_at or 0.0)):
        older.last_finished = other
