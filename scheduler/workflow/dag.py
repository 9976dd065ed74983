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

        Notes in each node what it waits for, and its level. KeyError, and the graph is of no use, if one waits for a
        name that is not there, or that does not come before it.
        """
        successors, predecessors, named = self._succ, self._pred, nodes.__getitem__
        declared, data = _SAID["declared"], _SAID["data"]
        count = 0
        for node, spec in zip(nodes.values(), specs, strict=True):
            _, after, data_from = spec[:3]
            own = dict.fromkeys(map(named, after), declared)
            if data_from:
                own.update(dict.fromkeys(map(named, data_from), data))
            if own:
                level = 0
                for producer, reason in own.items():
                    successors[producer][node] = reason  # it is not in there if it does not come before
                    if producer.level >= level:
                        level = producer.level + 1
                node.level = level
                node.waiting_for = len(own)
                count += len(own)
            predecessors[node] = own
            successors[node] = {}
        self._node.update(dict.fromkeys(successors, _NO_ATTRIBUTES))
        return count

    def give_reason(self, before: Node, after: Node, kind: EdgeKind, confidence: float) -> None:
        """Another reason for an edge that is there."""
        self._succ[before][after] = self._pred[after][before] = {"kind": kind, "confidence": confidence}
