"""How long is it still to the workflow's end, and along which nodes? Kept up to date at O(what is affected).

Each unfinished node keeps its *tail*: the longest predicted time from its own start to the end of the workflow. A
change goes up from a node to those unfinished ancestors whose tail it changes, each once, in reverse topological
order. The *frontier* is what could run or runs (ready, queued, running, acting); every other unfinished node has one of
those before it (or something that failed), so the workflow's end is the largest of the frontier's.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import sqrt
from typing import TYPE_CHECKING

from scheduler.workflow.lazyheap import LazyMaxHeap
from scheduler.workflow.node import STARTED_STATES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.workflow.dag import Dag
    from scheduler.workflow.node import Node

FRONTIER_STATES = frozenset(("ready", "queued", "running", "acting"))


class CriticalPath:
    """Tails of one graph's nodes, its frontier, and the ends that follow."""

    __slots__ = ("_behind", "dag", "done_seconds", "ends", "floors", "isolated")

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self._behind = dag.behind
        self.ends = LazyMaxHeap()
        """By start + tail: when the end comes if all lasts as predicted. Only of what has started or is expected to
        start later than it could: for the others `floors` says at least as much."""
        self.floors = LazyMaxHeap()
        """By what comes after this moment at least: the whole tail of what has not started, else the tail behind it."""
        self.isolated = LazyMaxHeap()
        """By head + tail: how long the workflow would take had nothing been held back. The frontier, and those planned
        nodes before which something has finished."""
        self.done_seconds = 0.0
        """Of the nodes that finished, the largest head + duration."""

    def enter(self, node: Node) -> None:
        """The node is in the frontier, now or still, and its numbers may have changed."""
        tail = node.tail_seconds
        if node.state in STARTED_STATES:
            self.ends.put(node, node.start_at + tail)
            self.floors.put(node, tail - node.seconds)
        else:
            if node.state == "ready" and node.start_at != node.ready_at:
                self.ends.put(node, node.start_at + tail)
            else:
                self.ends.drop(node)
            self.floors.put(node, tail)
        self.isolated.put(node, node.head_seconds + tail)

    def head_moved(self, node: Node) -> None:
        """The node, which is not over, could start later than was known."""
        if node.state in FRONTIER_STATES:
            self.enter(node)
        elif node.waiting_for:
            self.isolated.put(node, node.head_seconds + node.tail_seconds)

    def leave(self, node: Node) -> None:
        """The node is no longer in the frontier."""
        self.ends.drop(node)
        self.floors.drop(node)
        self.isolated.drop(node)

    def recompute(self, node: Node) -> bool:
        """The node's tail from its successors' tails; whether it changed."""
        tail = mean = variance = 0.0
        upper = -1.0
        own = node.variance
        behind = self._behind[node]
        for successor in behind:
            if successor.over:
                continue
            if successor.tail_seconds > tail:  # noqa: PLR1730  (max() is a call, once an edge)
                tail = successor.tail_seconds
            candidate = successor.tail_mean + sqrt(own + successor.tail_variance)
            if candidate > upper:
                upper, mean, variance = candidate, successor.tail_mean, successor.tail_variance
        if not behind:
            tail = mean = node.remainder_seconds
            variance = node.remainder_variance
        tail += node.seconds
        mean += node.seconds
        variance += own
        if tail == node.tail_seconds and mean == node.tail_mean and variance == node.tail_variance:
            return False
        node.tail_seconds, node.tail_mean, node.tail_variance = tail, mean, variance
        return True

    def compute(self, nodes: Iterable[Node]) -> None:
        """`recompute` for all nodes of a new graph, of which none is over or has a remainder; the last come first."""
        behind = self._behind
        for node in nodes:
            tail = mean = variance = 0.0
            own = node.variance
            if followers := behind[node]:
                upper = -1.0
                for successor in followers:
                    if successor.tail_seconds > tail:  # noqa: PLR1730  (max() is a call, once an edge)
                        tail = successor.tail_seconds
                    candidate = successor.tail_mean + sqrt(own + successor.tail_variance)
                    if candidate > upper:
                        upper, mean, variance = candidate, successor.tail_mean, successor.tail_variance
            seconds = node.seconds
            node.tail_seconds, node.tail_mean, node.tail_variance = tail + seconds, mean + seconds, variance + own

    def refresh(self, *changed: Node) -> None:
        """These nodes' predictions or successors changed: bring their tails and those of their ancestors up to date."""
        heap = [(-node.order, node.number, node) for node in changed]
        heap.sort()
        seen = set(changed)
        while heap:
            node = heappop(heap)[2]
            if node.over or not self.recompute(node):
                continue
            if node.state in FRONTIER_STATES:
                self.enter(node)
            elif node.head_seconds:
                self.isolated.put(node, node.head_seconds + node.tail_seconds)
            if node.waiting_for:
                for before in self.dag.predecessors(node):
                    if not before.over and before not in seen:
                        seen.add(before)
                        heappush(heap, (-before.order, before.number, before))

    def projected_end(self, now: float) -> float | None:
        """When the last node will have finished, by medians; None if nothing is in the frontier."""
        longest = self.floors.top()
        if longest is None:
            return None
        end = now + self.floors.keys[longest]
        last = self.ends.top()
        return end if last is None else max(end, self.ends.keys[last])

    def isolated_seconds(self) -> float:
        """How long the whole workflow would take had nothing been held back; what is to come as predicted."""
        longest = self.isolated.top()
        if longest is None:
            return self.done_seconds
        return max(self.done_seconds, self.isolated.keys[longest])

    def path(self, now: float) -> list[Node]:
        """The nodes that decide when the workflow ends, those that finished included, in order; [] for an empty graph.

        Where nothing runs or could run, the way to the node that finished last.
        """
        middle = self._deciding(now)
        if middle is None:
            return []
        path = [middle]
        while (before := self._latest_finished(path[-1])) is not None:
            path.append(before)
        path.reverse()
        while (behind := self._longest_behind(path[-1])) is not None:
            path.append(behind)
        return path

    def _deciding(self, now: float) -> Node | None:
        last, longest = self.ends.top(), self.floors.top()
        if longest is None:
            ended = [node for node in self.dag if node.finished_at is not None]
            return max(ended, key=lambda node: (node.finished_at or 0.0, node.order), default=None)
        return last if last is not None and self.ends.keys[last] >= now + self.floors.keys[longest] else longest

    def _latest_finished(self, node: Node) -> Node | None:
        ended = [before for before in self.dag.predecessors(node) if before.finished_at is not None]
        return max(ended, key=lambda before: (before.finished_at or 0.0, -before.number), default=None)

    def _longest_behind(self, node: Node) -> Node | None:
        if node.over:
            return None
        alive = [after for after in self.dag.successors(node) if not after.over]
        return max(alive, key=lambda after: (after.tail_seconds, -after.number), default=None)

    def validate(self) -> None:
        """Tails are what their successors' tails make them; the frontier is whole. AssertionError otherwise."""
        frontier = {node for node in self.dag if node.state in FRONTIER_STATES}
        assert self.floors.keys.keys() == frontier, "the frontier is not what the states say"
        begun = {node for node in self.dag if node.state == "planned" and node.head_seconds}
        assert self.isolated.keys.keys() == frontier | begun, "a planned node's head is lost"
        started = {node for node in frontier if node.state in STARTED_STATES}
        assert started <= self.ends.keys.keys() <= frontier
        for heap in (self.ends, self.floors, self.isolated):
            heap.validate()
        for node in self.dag:
            if not node.over:
                assert not self.recompute(node), f"the tail of {node} was out of date"
                assert node.tail_upper_seconds >= node.tail_seconds - 1e-9 * (1.0 + node.tail_seconds)
        for node in frontier:
            tail = node.tail_seconds
            if node in self.ends.keys:
                assert self.ends.keys[node] == node.start_at + tail
            assert self.floors.keys[node] == (tail - node.seconds if node.state in STARTED_STATES else tail)
        for node, key in self.isolated.keys.items():
            assert key == node.head_seconds + node.tail_seconds
