"""The networkx graph under a workflow, and what networkx would do edge by edge and call by call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import EdgeKind, NodeSpec

    Reason = dict[str, Any]
    Base = nx.DiGraph[Node]
else:
    Base = nx.DiGraph

_SAID: dict[EdgeKind, Reason] = {kind: {"kind": kind, "confidence": 1.0} for kind in ("declared", "data", "inferred")}
"""What stands at an edge that a client said: one table for all such edges, which nobody may write to."""
_NO_ATTRIBUTES: dict[str, Any] = {}
"""Of every node that came so: all that is known of a node stands in itself."""


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

    def fill(self, nodes: Mapping[str, Node], specs: Iterable[NodeSpec]) -> int:
        """Into an empty graph: all nodes, in the order of their specifications, with their edges; counts the edges.

        Notes in each node its number, what it waits for, and its level. KeyError, and the graph is of no use, if one
        waits for a name that is not there, or that does not come before it.
        """
        successors, predecessors = self._succ, self._pred
        said, quoted = _SAID["declared"], _SAID["data"]
        behind: dict[str, tuple[Node, dict[Node, Reason]]] = {}
        """By name the nodes so far, each with what waits for it."""
        count = 0
        for number, (node, spec) in enumerate(zip(nodes.values(), specs, strict=True)):
            name, after, data_from = spec[:3]
            node.number = node.order = number
            predecessors[node] = own = {}
            if after or data_from:
                level = 0
                for other in after:
                    producer, followers = behind[other]
                    own[producer] = followers[node] = said
                    if producer.level >= level:
                        level = producer.level + 1
                for other in data_from:
                    producer, followers = behind[other]
                    own[producer] = followers[node] = quoted
                    if producer.level >= level:
                        level = producer.level + 1
                node.level = level
                node.waiting_for = len(own)
                count += len(own)
            successors[node] = followers = {}
            behind[name] = node, followers
        self._node.update(dict.fromkeys(successors, _NO_ATTRIBUTES))
        return count

    def give_reason(self, before: Node, after: Node, kind: EdgeKind, confidence: float) -> None:
        """Another reason for an edge that is there."""
        self._succ[before][after] = self._pred[after][before] = {"kind": kind, "confidence": confidence}
