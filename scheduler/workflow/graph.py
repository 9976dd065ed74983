"""What waits for what in one workflow, and how its nodes come to their states. A networkx DAG of `Node` objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx

from scheduler.workflow.critical import FRONTIER_STATES, CriticalPath
from scheduler.workflow.dag import Dag
from scheduler.workflow.node import OVER_STATES, Edge
from scheduler.workflow.order import admit_edge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scheduler.workflow.node import Node, NodeState
    from scheduler.workflow.spec import NodeSpec

EDGE_RANK = {"inferred": 0, "declared": 1, "data": 2}
"""A stronger reason replaces a weaker one."""
TOLD_AT_ONCE = 1000
"""Nodes that are told that what they wait for has finished: 2 to 3 ms."""


class WorkflowGraph:
    """Nodes by name, edges with their reasons. Every change keeps tails, the frontier and a topological order."""

    __slots__ = (
        "_next_number", "critical", "dag", "edge_count", "forgotten_nodes", "nodes", "stopped_count",
        "unfinished", "untold", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.dag = Dag()
        self.nodes: dict[str, Node] = {}
        self.critical = CriticalPath(self.dag)
        self.edge_count = 0
        self.unfinished = 0
        """Nodes that are not over."""
        self.stopped_count = 0
        """Nodes that are over and have not finished."""
        self.version = 0
        """Changes with the structure: what was deduced from an older one is out of date."""
        self.forgotten_nodes = 0
        """Finished nodes that were taken out to make room."""
        self.untold: dict[Node, dict[Node, None]] = {}
        """Nodes that finished and that very many wait for, with those that still count them as unfinished; last first.
        """
        self._next_number = 0

    # --- structure ---

    def add(self, node: Node) -> None:
        """A new node without edges, behind all others in the order. Its name must be new."""
        assert node.name not in self.nodes, node.name
        node.number = node.order = self._next_number
        self._next_number += 1
        self.nodes[node.name] = node
        self.dag.add_node(node)
        self.unfinished += not node.over
        self.version += 1

    def fill(self, nodes: dict[str, Node], specs: Sequence[NodeSpec]) -> None:
        """Everything at once into an empty graph: nodes as specified, each behind those it waits for. Tails are the
        caller's to compute. KeyError, and the graph is empty, if they do not stand in such an order."""
        assert not self.nodes
        try:
            self.edge_count = self.dag.fill(nodes, specs)
        except KeyError:
            self.dag.clear()
            raise
        self._next_number = self.unfinished = len(nodes)
        self.nodes = nodes
        self.version += 1

    def edge(self, before: Node, after: Node) -> Edge | None:
        """The edge between two nodes."""
        data: dict[str, Any] | None = self.dag.get_edge_data(before, after)
        return None if data is None else Edge(**data)

    def edges(self) -> Iterator[tuple[Node, Node, Edge]]:
        """All edges with their reasons."""
        for before, after, data in self.dag.edges(data=True):
            yield before, after, Edge(**data)

    def is_followed(self, node: Node) -> bool:
        """Whether anything waits, or waited, for the node."""
        return next(self.dag.successors(node), None) is not None

    def connect(self, before: Node, after: Node, edge: Edge) -> bool:
        """`after` waits for `before`. False, and nothing has changed, if that would be a cycle.

        An edge that exists keeps the stronger of both reasons.
        """
        known = self.edge(before, after)
        if known is not None:
            if (EDGE_RANK[edge.kind], edge.confidence) > (EDGE_RANK[known.kind], known.confidence):
                self.dag.add_edge(before, after, kind=edge.kind, confidence=edge.confidence)
            return True
        if before.order >= after.order and not admit_edge(self.dag, before, after):
            return False
        self.dag.add_edge(before, after, kind=edge.kind, confidence=edge.confidence)
        self.edge_count += 1
        self.version += 1
        after.level = max(after.level, before.level + 1)
        if before.state == "finished":
            done = before.head_seconds + before.lasted_seconds
            if done > after.head_seconds:
                after.head_seconds = done
                if not after.over:
                    self.critical.head_moved(after)
            return True
        after.waiting_for += 1
        if after.state == "ready":  # not after all
            self.critical.leave(after)
            after.state, after.ready_at = "planned", None
            if after.head_seconds:
                self.critical.head_moved(after)
        self.critical.refresh(before)
        return True

    def disconnect(self, before: Node, after: Node) -> None:
        """Take an edge out again: a guess that turned out wrong. KeyError if there is none."""
        self.dag.remove_edge(before, after)
        self.edge_count -= 1
        self.version += 1
        if before.state != "finished" or self._untold(before, after):
            after.waiting_for -= 1
        if not before.over:
            self.critical.refresh(before)

    def forget(self, count: int) -> list[Node]:
        """Take out up to `count` nodes, oldest first, that are over and that nobody waits for; returns them."""
        old: list[Node] = []
        for node in self.nodes.values():
            if len(old) == count:
                break
            if node in self.untold:
                continue
            if node.state == "finished" or (node.over and all(after.over for after in self.dag.successors(node))):
                old.append(node)
        for node in old:
            self._remove(node)
        self.forgotten_nodes += len(old)
        return old

    def _remove(self, node: Node) -> None:
        dag = self.dag
        self.edge_count -= len(dag.pred[node]) + len(dag.succ[node])
        if node.state != "finished":
            self.stopped_count -= 1
            for after in dag.successors(node):
                after.waiting_for -= 1
        unfinished = [before for before in dag.predecessors(node) if not before.over]
        dag.remove_node(node)
        node.group = None
        del self.nodes[node.name]
        self.version += 1
        self.critical.refresh(*unfinished)

    def clear(self) -> None:
        """Let go of all nodes: without the circles through their workflow and groups they are freed at once."""
        for node in self.nodes.values():
            node.group = None
        self.nodes, self.untold = {}, {}
        self.dag.clear()
        self.critical = CriticalPath(self.dag)

    def absorb(self, other: WorkflowGraph, shift_seconds: float) -> None:
        """Take over all nodes of another graph, behind those that are here; names must differ. The other workflow came
        `shift_seconds` later. All in it must have been told what has finished."""
        for node in sorted(other.dag, key=lambda node: node.order):
            assert node.name not in self.nodes, node.name
            node.number = node.order = self._next_number
            self._next_number += 1
            node.head_seconds += shift_seconds
            self.nodes[node.name] = node
            self.dag.add_node(node)
            if node.state in FRONTIER_STATES:
                self.critical.enter(node)
        self.dag.add_edges_from(other.dag.edges(data=True))
        self.edge_count += other.edge_count
        self.unfinished += other.unfinished
        self.stopped_count += other.stopped_count
        self.forgotten_nodes += other.forgotten_nodes
        self.version += 1
        done = other.critical.done_seconds
        if done:
            self.critical.done_seconds = max(self.critical.done_seconds, done + shift_seconds)

    # --- a node's life ---

    def becomes_ready(self, node: Node, now: float, pause_seconds: float = 0.0) -> None:
        """All it waits for has finished: a tool acts from now on, a call is expected after the client's pause."""
        node.ready_at = node.start_at = now
        if node.tool:
            node.state, node.started_at = "acting", now
        else:
            node.state = "ready"
            node.start_at += pause_seconds
        self.critical.enter(node)

    def revived(self, node: Node) -> None:
        """It was over without a result and is tried again."""
        assert node.over and node.state != "finished", node
        node.state, node.over = "planned", False
        node.error = node.finished_at = node.started_at = None
        self.unfinished += 1
        self.stopped_count -= 1
        self.critical.refresh(node, *[before for before in self.dag.predecessors(node) if not before.over])

    def queued(self, node: Node, now: float) -> None:
        """Its call is here."""
        node.state, node.queued_at, node.start_at = "queued", now, now
        self.critical.enter(node)

    def started(self, node: Node, now: float) -> None:
        """Its call was sent to an engine."""
        node.state, node.started_at, node.start_at = "running", now, now
        self.critical.enter(node)

    def requeued(self, node: Node, now: float) -> None:
        """Its call is back here, to be sent once more."""
        node.state, node.started_at, node.start_at = "queued", None, now
        self.critical.enter(node)

    def finished(self, node: Node, now: float) -> list[Node]:
        """It is done; returns what waits for nothing any more (and is still `planned`). Of very many that wait for it,
        the first are told; `tell_on` tells the others."""
        node.finished_at = now
        self._ends(node, "finished")
        done = node.head_seconds + node.lasted_seconds
        self.critical.done_seconds = max(self.critical.done_seconds, done)
        behind = self.dag.behind[node]
        if len(behind) > TOLD_AT_ONCE:
            self.untold[node] = dict.fromkeys(reversed(behind))
            return self.tell_on()
        return [after for after in behind if self._told(after, done)]

    def tell_on(self) -> list[Node]:
        """Tell some more of those in `untold`; returns what waits for nothing any more."""
        free: list[Node] = []
        left = TOLD_AT_ONCE
        while self.untold and left:
            node, waiting = next(iter(self.untold.items()))
            behind, done = self.dag.behind[node], node.head_seconds + node.lasted_seconds
            while waiting and left:
                after, _ = waiting.popitem()
                left -= 1
                if after in behind and self._told(after, done):  # it may have been forgotten
                    free.append(after)
            if not waiting:
                del self.untold[node]
        return free

    def tell(self, after: Node) -> list[Node]:
        """Tell this one now, out of turn: something happens to it. Returns it if it waits for nothing any more."""
        free = False
        for node in [node for node, waiting in self.untold.items() if after in waiting]:
            del self.untold[node][after]
            if not self.untold[node]:
                del self.untold[node]
            free = self._told(after, node.head_seconds + node.lasted_seconds)
        return [after] if free else []

    def _told(self, after: Node, done: float) -> bool:
        """One that it waits for has finished; whether it is free now."""
        if done > after.head_seconds:
            after.head_seconds = done
            if not after.over:
                self.critical.head_moved(after)
        after.waiting_for -= 1
        return not after.waiting_for and after.state == "planned"

    def _untold(self, before: Node, after: Node) -> bool:
        """Whether `after` does not know that `before` has finished; it is told now, if so."""
        waiting = self.untold.get(before)
        if waiting is None or after not in waiting:
            return False
        del waiting[after]
        if not waiting:
            del self.untold[before]
        return True

    def stopped(self, node: Node, now: float, state: NodeState, error: str | None) -> None:
        """It is over without a result: failed, skipped or cancelled. What waits for it waits on."""
        node.finished_at, node.error = now, error
        self._ends(node, state)
        self.stopped_count += 1

    def stop_all(self, now: float, state: NodeState, error: str) -> list[Node]:
        """Everything that is not over ends without a result; returns it."""
        for before, waiting in self.untold.items():
            for after in waiting.keys() & self.dag.behind[before].keys():
                after.waiting_for -= 1
        self.untold.clear()
        stopped = [node for node in self.nodes.values() if not node.over]
        for node in stopped:
            self.critical.leave(node)
            node.state, node.over, node.finished_at, node.error = state, True, now, error
        self.unfinished -= len(stopped)
        self.stopped_count += len(stopped)
        return stopped

    def skip_behind(self, node: Node, now: float) -> list[Node]:
        """Skip everything that needs this node's result and has not come so far; returns what was skipped."""
        skipped: list[Node] = []
        stack = [node]
        while stack:
            for after in self.dag.successors(stack.pop()):
                if after.state in {"planned", "ready"}:
                    self.stopped(after, now, "skipped", f"{node.name} did not finish")
                    skipped.append(after)
                    stack.append(after)
        return skipped

    def _ends(self, node: Node, state: NodeState) -> None:
        self.critical.leave(node)
        node.state, node.over = state, True
        self.unfinished -= 1
        if node.waiting_for:  # it came before its time, or is skipped: those before it have less behind them now
            self.critical.refresh(*[before for before in self.dag.predecessors(node) if not before.over])

    # --- predictions ---

    def predicted(self, node: Node, seconds: float, spread_seconds: float) -> None:
        """Another prediction of the node's own duration: the median, and how far above it the upper quantile lies."""
        node.seconds, node.variance = seconds, spread_seconds * spread_seconds
        if node.waiting_for:
            self.critical.refresh(node)
        elif self.critical.recompute(node) and node.state in FRONTIER_STATES:
            self.critical.enter(node)

    def validate(self) -> None:
        """Every invariant of the structure, the states and the tails. AssertionError names what does not hold."""
        assert len(self.nodes) == self.dag.number_of_nodes()
        assert self.edge_count == self.dag.number_of_edges()
        assert self.unfinished == sum(not node.over for node in self.dag)
        assert self.stopped_count == sum(node.over and node.state != "finished" for node in self.dag)
        assert nx.is_directed_acyclic_graph(self.dag)
        for before, after, edge in self.edges():
            assert before.order < after.order, f"{before} is behind {after}"
            assert 0.0 < edge.confidence <= 1.0
            assert edge.kind == "inferred" or edge.confidence == 1.0
        for name, node in self.nodes.items():
            assert node.name == name and node in self.dag
            assert node.over == (node.state in OVER_STATES), node
            waits = [
                one
                for one in self.dag.predecessors(node)
                if one.state != "finished" or node in self.untold.get(one, ())
            ]
            assert node.waiting_for == len(waits), node
            assert node.seconds >= 0.0 and node.variance >= 0.0
            if node.state in {"ready", "acting"}:
                assert not node.waiting_for, node
            if node.state == "planned":
                assert node.waiting_for, f"{node} waits for nothing"
        self.critical.validate()
