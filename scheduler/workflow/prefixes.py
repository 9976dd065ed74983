"""Which nodes begin with the same text? Those of one group pay for their common prefix once, if they run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.workflow.node import Node

HASHES_PER_NODE = 16


class PrefixGroups:
    """Unfinished nodes by the hashes of their leading text, never across keys. O(1) a node, bounded in all.

    A hash that one node alone has holds that node, not a table of one: most have no company.
    """

    __slots__ = ("_keys", "hashes", "hashes_max")

    def __init__(self, hashes_max: int) -> None:
        self.hashes_max = hashes_max
        self.hashes = 0
        """Entered in all, each node counting its own."""
        self._keys: dict[str, dict[int, Node | dict[Node, None]]] = {}

    def add(self, node: Node) -> None:
        """Enter a node by its `prefix`, cut to 16 hashes; where there is no room it is left out."""
        prefix = node.prefix
        if len(prefix) > HASHES_PER_NODE or len(set(prefix)) < len(prefix):
            prefix = node.prefix = tuple(dict.fromkeys(prefix))[:HASHES_PER_NODE]
        if self.hashes + len(prefix) > self.hashes_max:
            node.prefix = ()
            return
        groups = self._keys.setdefault(node.workflow.key, {})
        for value in prefix:
            group = groups.get(value)
            if group is None:
                groups[value] = node
            elif isinstance(group, dict):
                group[node] = None
            else:
                groups[value] = {group: None, node: None}
        self.hashes += len(prefix)

    def remove(self, node: Node) -> None:
        """Take a node out; one that is not in changes nothing."""
        key = node.workflow.key
        groups = self._keys.get(key, {})
        for value in node.prefix:
            group = groups.get(value)
            if isinstance(group, dict):
                if node not in group:
                    return
                del group[node]
                if len(group) == 1:
                    groups[value] = next(iter(group))
            elif group is node:
                del groups[value]
            else:
                return
        self.hashes -= len(node.prefix)
        if not groups:
            self._keys.pop(key, None)

    def company(self, node: Node) -> tuple[int, Iterable[Node]]:
        """The nodes that share the longest prefix with this one (which is among them), and its place in `node.prefix`;
        (-1, ()) where there are none."""
        groups = self._keys.get(node.workflow.key, {})
        for place in range(len(node.prefix) - 1, -1, -1):
            group = groups.get(node.prefix[place])
            if isinstance(group, dict) and node in group:
                return place, group.keys()
        return -1, ()

    def validate(self, nodes: Iterable[Node]) -> None:
        """Exactly these nodes are in, by all their hashes. AssertionError otherwise."""
        wanted: dict[tuple[str, int], set[Node]] = {}
        count = 0
        for node in nodes:
            count += len(node.prefix)
            for value in node.prefix:
                wanted.setdefault((node.workflow.key, value), set()).add(node)
        held = {(key, value): group for key, groups in self._keys.items() for value, group in groups.items()}
        found = {name: set(group) if isinstance(group, dict) else {group} for name, group in held.items()}
        assert found == wanted, "a prefix group holds other nodes than it should"
        assert all(not isinstance(group, dict) or len(group) > 1 for group in held.values())
        assert all(self._keys.values()), "an empty table was left behind"
        assert self.hashes == count <= self.hashes_max
