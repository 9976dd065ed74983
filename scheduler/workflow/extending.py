"""How does a declared workflow grow whose nodes come to be known one after another?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.declaring import make_node, shown
from scheduler.workflow.growth import connect, connect_waiting
from scheduler.workflow.node import Edge
from scheduler.workflow.spec import GraphFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.workflow.book import WorkflowBook
    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import EdgeKind, NodeSpec


def extend(book: WorkflowBook, key: str, workflow_id: str, specs: Sequence[NodeSpec], now: float) -> list[Node]:
    """Add nodes, each behind those it waits for; returns them. So no cycle can come about.

    Raises GraphFault, and nothing has changed: 404 for a workflow that is not live, 400 for a name that is taken or is
    nobody's, 413 where the workflow would be too large, 503 where there is no room now.
    """
    tables = book.tables
    workflow = tables.live_named((key, workflow_id))
    if workflow is None:
        raise GraphFault(404, "unknown_workflow", f"there is no workflow {shown(workflow_id)}", "id")
    known = set(workflow.graph.nodes)
    edge_count = 0
    for index, spec in enumerate(specs):
        if spec.id in known:
            raise GraphFault(400, "duplicate_node", f"there is a node {shown(spec.id)} already", f"nodes[{index}].id")
        for name in (*spec.after, *spec.data_from):
            if name not in known:
                message = f"node {shown(spec.id)} waits for {shown(name)}, which is not there before it"
                raise GraphFault(400, "unknown_node", message, f"nodes[{index}].after")
        known.add(spec.id)
        edge_count += len({*spec.after, *spec.data_from})
    limits, graph = workflow.limits, workflow.graph
    if len(known) > limits.nodes_per_workflow or graph.edge_count + edge_count > limits.edges_per_workflow:
        message = f"the workflow would have {len(known)} nodes; at most {limits.nodes_per_workflow} are allowed"
        raise GraphFault(413, "too_many_nodes", message, "nodes")
    if not tables.has_room(workflow.key, "declared", len(specs), edge_count, 0, now) or workflow.closed_at is not None:
        raise GraphFault(503, "workflows_full", "too many workflows are under way; try again later")
    tables.touch(workflow, now)
    workflow.edges_max = tables.edges_allowed(workflow)
    edges = graph.edge_count + workflow.pending_count
    added = []
    for spec in specs:
        node = make_node(workflow, spec)
        graph.add(node)
        kinds: tuple[tuple[tuple[str, ...], EdgeKind], ...] = ((spec.after, "declared"), (spec.data_from, "data"))
        for names, kind in kinds:
            for name in names:
                connect(workflow, graph.nodes[name], node, Edge(kind))
        connect_waiting(workflow, node)
        graph.predicted(node, *book.forecasts.predict(node))
        if node.prefix:
            tables.prefixes.add(node)
        added.append(node)
    tables.count(workflow, len(added), graph.edge_count + workflow.pending_count - edges)
    book.become_ready([node for node in added if not node.waiting_for], now)
    return added
