"""Is a declared workflow a graph that can be run? All is checked before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from scheduler.workflow.forecasts import pattern_of
from scheduler.workflow.node import Node
from scheduler.workflow.spec import GraphFault

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from scheduler.workflow.forecasts import Forecasts
    from scheduler.workflow.spec import EdgeKind, NodeSpec, WorkflowLimits, WorkflowSpec
    from scheduler.workflow.workflow import Workflow

SHOWN_NAMES = 8
SHOWN_CHARACTERS = 64
_NO_EDGES: dict[str, EdgeKind] = {}
"""Of every node that waits for nothing; nobody writes to it."""


def shown(name: str) -> str:
    """A name as an error shows it: quoted, of bounded length."""
    return repr(name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 1] + "…")


def check(spec: WorkflowSpec, limits: WorkflowLimits) -> tuple[dict[str, dict[str, EdgeKind]], Sequence[NodeSpec]]:
    """Each node's edges (by the name of what it waits for), and all nodes in an order in which each comes behind those.

    Raises GraphFault: 413 for too many nodes or edges; 400 for none, duplicates, unknown names, self-edges, cycles.
    """
    count = len(spec.nodes)
    if count > limits.nodes_per_workflow:
        message = f"the workflow has {count} nodes; at most {limits.nodes_per_workflow} are allowed"
        raise GraphFault(413, "too_many_nodes", message, "nodes")
    if not count and not spec.run_here:  # where the gateway runs it, it may add the nodes as they come to be known
        raise GraphFault(400, "no_nodes", "a workflow needs one node at least", "nodes")
    edges: dict[str, dict[str, EdgeKind]] = dict.fromkeys([node.id for node in spec.nodes], _NO_EDGES)
    if len(edges) < count:
        raise _duplicate_fault(spec)
    total = 0
    in_order = True
    seen: set[str] = set()
    for index, node in enumerate(spec.nodes):
        node_id, after, data_from = node[:3]
        if after or data_from:
            own: dict[str, EdgeKind] = dict.fromkeys(after, "declared")
            if data_from:
                own.update(dict.fromkeys(data_from, "data"))
            if not seen.issuperset(own):
                in_order = False
                _check_names(node, index, edges)
            edges[node_id] = own
            total += len(own)
        seen.add(node_id)
        if total > limits.edges_per_workflow:
            message = f"the workflow has more than {limits.edges_per_workflow} edges, which is the most that is allowed"
            raise GraphFault(413, "too_many_edges", message, "nodes")
    for index, name in enumerate(spec.outputs):
        if name not in edges:
            raise GraphFault(400, "unknown_node", f"there is no node {shown(name)}", f"outputs[{index}]")
    if in_order:
        return edges, spec.nodes
    by_name = {node.id: node for node in spec.nodes}
    return edges, [by_name[name] for name in _topological(edges)]


def _duplicate_fault(spec: WorkflowSpec) -> GraphFault:
    seen: set[str] = set()
    for index, node in enumerate(spec.nodes):
        if node.id in seen:
            return GraphFault(400, "duplicate_node", f"there are two nodes {shown(node.id)}", f"nodes[{index}].id")
        seen.add(node.id)
    raise AssertionError(spec)


def _check_names(node: NodeSpec, index: int, known: Container[str]) -> None:
    """What does not wait for earlier nodes only: does it wait for others that there are?"""
    for field, names in (("after", node.after), ("data_from", node.data_from)):
        for place, name in enumerate(names):
            if name not in known:
                message = f"node {shown(node.id)} waits for {shown(name)}, which does not exist"
                raise GraphFault(400, "unknown_node", message, f"nodes[{index}].{field}[{place}]")
            if name == node.id:
                message = f"node {shown(name)} waits for itself"
                raise GraphFault(400, "self_edge", message, f"nodes[{index}].{field}[{place}]")


def _topological(edges: dict[str, dict[str, EdgeKind]]) -> list[str]:
    """Kahn's algorithm, for a declaration that does not stand in order, as most do."""
    waits_for = {name: len(before) for name, before in edges.items()}
    behind: dict[str, list[str]] = {name: [] for name in edges}
    for name, before in edges.items():
        for other in before:
            behind[other].append(name)
    order = [name for name, count in waits_for.items() if not count]
    for name in order:
        for after in behind[name]:
            waits_for[after] -= 1
            if not waits_for[after]:
                order.append(after)
    if len(order) < len(edges):
        rest: nx.DiGraph[str] = nx.DiGraph()
        rest.add_edges_from((before, name) for name in edges if waits_for[name] for before in edges[name])
        raise _cycle_fault([edge[0] for edge in nx.find_cycle(rest)], edges)
    return order


def _cycle_fault(cycle: list[str], edges: dict[str, dict[str, EdgeKind]]) -> GraphFault:
    """The cycle as the error shows it, from the node that was declared first."""
    places = {name: place for place, name in enumerate(edges)}
    first = cycle.index(min(cycle, key=places.__getitem__))
    cycle = cycle[first:] + cycle[:first]
    text = " → ".join(shown(name) for name in cycle[:SHOWN_NAMES])
    if len(cycle) > SHOWN_NAMES:
        text += f" → … ({len(cycle)} nodes in all)"
    message = f"the nodes wait for each other in a circle: {text} → {shown(cycle[0])}"
    field = "data_from" if edges[cycle[0]][cycle[-1]] == "data" else "after"
    return GraphFault(400, "cycle", message, f"nodes[{places[cycle[0]]}].{field}")


def build(workflow: Workflow, spec: WorkflowSpec, forecasts: Forecasts) -> None:
    """Fill an empty workflow with the nodes of a specification. Raises GraphFault and leaves it as it was."""
    edges, order = check(spec, workflow.limits)
    nodes = {node.id: make_node(workflow, node) for node in order}
    workflow.graph.fill(nodes, edges)
    forecasts.predict_all(nodes.values())
    recompute = workflow.graph.critical.recompute
    for node in reversed(nodes.values()):
        recompute(node)


def make_node(workflow: Workflow, spec: NodeSpec) -> Node:
    """A node as specified, in no graph so far."""
    node = Node(workflow, spec.id, pattern_of(spec.id))
    node.declared = True
    (  # a slice is a plain tuple, which is taken apart three times as fast as a named one
        node.expected_output_tokens, node.max_output_tokens, node.prompt_tokens_estimate, node.model,
        node.tool, node.expected_seconds, node.prefix, node.criterion,
    ) = spec[3:]  # fmt: skip
    return node
