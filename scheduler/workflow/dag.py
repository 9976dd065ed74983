"""The networkx graph under a workflow, and what networkx would do edge by edge and call by call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import EdgeKind

    Reason = dict[str, Any]
    Base = nx.DiGraph[Node]
else:
    Base = nx.DiGraph

_SAID: dict[EdgeKind, Reason] = {kind: {"kind": kind, "confidence": 1.0} for kind in ("declared", "data", "inferred")}
"""What stands at an edge that a client said: one table for all such edges, which nobody may write to."""


class Dag(Base):
    """A DiGraph that can be filled at once. An edge's attributes are never changed in place: many edges share them."""

    # What networkx describes for subclasses; its stubs leave them out.
    _succ: dict[Node, dict[Node, Reason]]
    _pred: dict[Node, dict[Node, Reason]]
    _node: dict[Node, dict[str, Any]]

    @property
    def behind(self) -> dict[Node, dict[Node, Reason]]:
        """By node what waits for it: the table itself, for reading; it stays the same as long as the graph is there."""
        return self._succ

    def fill(self, nodes: Mapping[str, Node], edges: Mapping[str, Mapping[str, EdgeKind]]) -> int:
        """Into an empty graph: all nodes, each behind those it waits for, and by name their edges; counts the edges.

        Notes in each node what it waits for, and its level.
        """
        successors, predecessors, attributes = self._succ, self._pred, self._node
        count = 0
        for name, node in nodes.items():
            attributes[node] = {}
            successors[node] = {}
            predecessors[node] = own = {}
            if before := edges[name]:
                level = 0
                for other, kind in before.items():
                    producer = nodes[other]
                    own[producer] = successors[producer][node] = _SAID[kind]
                    if producer.level >= level:
                        level = producer.level + 1
                node.level = level
                node.waiting_for = len(before)
                count += len(before)
        return count

    def give_reason(self, before: Node, after: Node, kind: EdgeKind, confidence: float) -> None:
        """Another reason for an edge that is there."""
        self._succ[before][after] = self._pred[after][before] = {"kind": kind, "confidence": confidence}
