"""Is a declared workflow a graph that can be run? Then it is made; if not, nothing of it is kept."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import networkx as nx

from scheduler.workflow.forecasts import pattern_of, patterns_of
from scheduler.workflow.node import Node
from scheduler.workflow.spec import GraphFault

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from scheduler.workflow.forecasts import Forecasts
    from scheduler.workflow.spec import EdgeKind, NodeSpec, WorkflowLimits, WorkflowSpec
    from scheduler.workflow.workflow import Workflow

SHOWN_NAMES = 8
SHOWN_CHARACTERS = 64


def shown(name: str) -> str:
    """A name as an error shows it: quoted, of bounded length."""
    return repr(name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 1] + "…")


def check(spec: WorkflowSpec, limits: WorkflowLimits) -> list[NodeSpec]:
    """All nodes in an order in which each comes behind those it waits for.

    Raises GraphFault: 413 for too many edges; 400 for duplicates, unknown names, self-edges, cycles.
    """
    by_name: dict[str, NodeSpec] = {}
    for index, node in enumerate(spec.nodes):
        if node.id in by_name:
            raise GraphFault(400, "duplicate_node", f"there are two nodes {shown(node.id)}", f"nodes[{index}].id")
        by_name[node.id] = node
    total = 0
    edges: dict[str, dict[str, EdgeKind]] = {}
    for index, node in enumerate(spec.nodes):
        edges[node.id] = own = _read_edges(node, index, by_name)
        total += len(own)
        if total > limits.edges_per_workflow:
            message = f"the workflow has more than {limits.edges_per_workflow} edges, which is the most that is allowed"
            raise GraphFault(413, "too_many_edges", message, "nodes")
    return [by_name[name] for name in _topological(edges)]


def _read_edges(node: NodeSpec, index: int, known: Container[str]) -> dict[str, EdgeKind]:
    own: dict[str, EdgeKind] = {}
    kinds: tuple[tuple[str, tuple[str, ...], EdgeKind], ...] = (
        ("after", node.after, "declared"),
        ("data_from", node.data_from, "data"),
    )
    for field, names, kind in kinds:
        for place, name in enumerate(names):
            if name not in known:
                message = f"node {shown(node.id)} waits for {shown(name)}, which does not exist"
                raise GraphFault(400, "unknown_node", message, f"nodes[{index}].{field}[{place}]")
            if name == node.id:
                message = f"node {shown(name)} waits for itself"
                raise GraphFault(400, "self_edge", message, f"nodes[{index}].{field}[{place}]")
            own[name] = kind
    return own


def _topological(edges: dict[str, dict[str, EdgeKind]]) -> list[str]:
    """Kahn's algorithm."""
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
    limits, count = workflow.limits, len(spec.nodes)
    if count > limits.nodes_per_workflow:
        message = f"the workflow has {count} nodes; at most {limits.nodes_per_workflow} are allowed"
        raise GraphFault(413, "too_many_nodes", message, "nodes")
    if not count and not spec.run_here:  # where the gateway runs it, it may add the nodes as they come to be known
        raise GraphFault(400, "no_nodes", "a workflow needs one node at least", "nodes")
    nodes, order = _filled(workflow, spec)
    forecasts.predict_all(nodes.values(), order)
    workflow.graph.critical.compute(reversed(nodes.values()))


def _filled(workflow: Workflow, spec: WorkflowSpec) -> tuple[dict[str, Node], Sequence[NodeSpec]]:
    """Most declarations are good, and each node stands behind those it waits for: so that is tried first. `check` finds
    the order of the others, or says what is wrong."""
    order: Sequence[NodeSpec] = spec.nodes
    nodes = _made(workflow, order)
    for index, name in enumerate(spec.outputs):
        if name not in nodes:
            raise GraphFault(400, "unknown_node", f"there is no node {shown(name)}", f"outputs[{index}]")
    most = sum([len(node[1]) + len(node[2]) for node in order])
    if len(nodes) == len(order) and most <= workflow.limits.edges_per_workflow:
        with suppress(KeyError):
            workflow.graph.fill(nodes, order)
            return nodes, order
    order = check(spec, workflow.limits)
    nodes = _made(workflow, order)
    workflow.graph.fill(nodes, order)
    return nodes, order


def _made(workflow: Workflow, specs: Sequence[NodeSpec]) -> dict[str, Node]:
    patterns = patterns_of([spec[0] for spec in specs])
    return {spec[0]: make_node(workflow, spec, pattern) for spec, pattern in zip(specs, patterns, strict=True)}


def make_node(workflow: Workflow, spec: NodeSpec, pattern: str | None = None) -> Node:
    """A node as specified, in no graph so far. `pattern`: of its name, where it is known."""
    name = spec[0]
    node = Node(workflow, name, pattern_of(name) if pattern is None else pattern)
    node.declared = True
    (  # a slice is a plain tuple, which is taken apart three times as fast as a named one
        node.expected_output_tokens, node.max_output_tokens, node.prompt_tokens_estimate, node.model,
        node.tool, node.expected_seconds, node.prefix, node.criterion,
    ) = spec[3:]  # fmt: skip
    return node
