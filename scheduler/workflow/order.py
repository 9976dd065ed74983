"""How does a topological order stay one when an edge comes that goes against it? (Pearce and Kelly 2006)

Only nodes whose place lies between the edge's ends are looked at, so an edge that fits costs nothing, and a cycle
is found where it closes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import networkx as nx

    from scheduler.workflow.node import Node


def admit_edge(dag: nx.DiGraph[Node], before: Node, after: Node) -> bool:
    """Reorder so that `before` comes before `after`; False, and nothing has changed, if the edge closed a cycle."""
    if before.order < after.order:
        return True
    if before is after:
        return False
    behind = _reach(dag.successors, after, lambda node: node.order <= before.order)
    if before in behind:
        return False
    ahead = _reach(dag.predecessors, before, lambda node: node.order >= after.order)
    moved = sorted(ahead, key=_order) + sorted(behind, key=_order)
    for node, place in zip(moved, sorted(node.order for node in moved), strict=True):
        node.order = place
    return True


def _order(node: Node) -> int:
    return node.order


def _reach(step: Callable[[Node], Iterator[Node]], start: Node, inside: Callable[[Node], bool]) -> dict[Node, None]:
    found: dict[Node, None] = {start: None}
    stack = [start]
    while stack:
        for node in step(stack.pop()):
            if node not in found and inside(node):
                found[node] = None
                stack.append(node)
    return found
