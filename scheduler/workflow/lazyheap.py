"""Which node of a changing set has the largest key? A heap that forgets outdated entries when they come to the top."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.workflow.node import Node

SPARE_ENTRIES = 64
"""Outdated entries that are always allowed; beyond them at most as many as there are nodes."""


class LazyMaxHeap:
    """Nodes with a number each. Every change costs O(log n), the largest is at hand."""

    __slots__ = ("_heap", "keys")

    def __init__(self) -> None:
        self.keys: dict[Node, float] = {}
        self._heap: list[tuple[float, int, Node]] = []

    def put(self, node: Node, key: float) -> None:
        """Enter a node, or give it another key."""
        keys = self.keys
        if keys.get(node) == key:
            return
        keys[node] = key
        heappush(self._heap, (-key, node.number, node))
        if len(self._heap) > 2 * len(keys) + SPARE_ENTRIES:
            self.rebuild()

    def drop(self, node: Node) -> None:
        """Take a node out, if it is in."""
        if self.keys.pop(node, None) is not None and len(self._heap) > 2 * len(self.keys) + SPARE_ENTRIES:
            self.rebuild()

    def top(self) -> Node | None:
        """The node with the largest key; of equal ones the oldest."""
        heap, keys = self._heap, self.keys
        while heap:
            key, _, node = heap[0]
            if keys.get(node) == -key:
                return node
            heappop(heap)
        return None

    def rebuild(self) -> None:
        """Throw outdated entries away; needed, too, after nodes have got other numbers."""
        self._heap = [(-key, node.number, node) for node, key in self.keys.items()]
        heapify(self._heap)

    def validate(self) -> None:
        """Every node is found by its present key, and the outdated entries are bounded. AssertionError otherwise."""
        entries = {(node, -key) for key, _, node in self._heap}
        assert all(entry in entries for entry in self.keys.items()), "a node is missing from the heap"
        assert len(self._heap) <= 2 * len(self.keys) + SPARE_ENTRIES, "outdated entries pile up"
