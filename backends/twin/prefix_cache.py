"""Which blocks of KV cache exist, who holds them, and which prefix of a new sequence is there already?"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from backends.twin.content import Run

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator


class Node:
    """Cached blocks that follow the parent's. `holders`: sequences that use it or a descendant of it now."""

    __slots__ = ("blocks", "children", "depth", "holders", "name", "offset", "parent", "stamp")

    def __init__(self, parent: Node | None, run: Run) -> None:
        self.parent = parent
        self.name, self.offset, self.blocks = run
        self.children: dict[tuple[Hashable, int], Node] = {}
        self.depth: int = run.blocks + (parent.depth if parent is not None else 0)
        """Blocks from the root to this node's end."""
        self.holders = 0
        self.stamp = 0
        """When its last holder let it go, in the cache's own count."""


class PrefixCache:
    """A tree of runs of blocks, as vLLM's hash chain makes one: a block is known by its tokens and all before it.

    Blocks are in use (held by a running sequence: in the tree, or `private` to it), cached (in the tree and held by
    nobody, evicted least recently used first and from the end of a chain) or free. Counts only: no tensor is here.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.root = Node(None, Run(None, 0, 0))
        self.private = 0
        """Blocks of running sequences outside the tree."""
        self.held = 0
        """Blocks of the tree that running sequences use."""
        self.shared = 0
        """Blocks that holders have in common, counted for each holder but the first."""
        self.cached = 0
        """Blocks of the tree that nobody uses."""
        self._stamps = 0
        self._unused: list[tuple[int, int, Node]] = []
        """Heap of (stamp, -depth, node): leaves nobody holds; entries that are out of date are skipped."""

    @property
    def available(self) -> int:
        """Blocks that could be given out now, cached ones included."""
        return self.blocks - self.private - self.held

    def match(self, runs: Iterable[Run], blocks_max: int) -> Node:
        """The node where the longest cached prefix of at most `blocks_max` blocks ends; made by a split if need be."""
        node = self.root
        left = blocks_max
        for name, offset, blocks in runs:
            while blocks and left:
                child = node.children.get((name, offset))
                if child is None:
                    return node
                common = min(blocks, left, child.blocks)
                node = child if common == child.blocks else self._split(child, common)
                blocks, offset, left = blocks - common, offset + common, left - common
            if not left:
                break
        return node

    def hold(self, node: Node) -> None:
        """A sequence begins to use all blocks up to this node's end."""
        while node.parent is not None:
            if not node.holders:
                self.cached -= node.blocks
                self.held += node.blocks
            else:
                self.shared += node.blocks
            node.holders += 1
            node = node.parent

    def let_go(self, node: Node) -> None:
        """A sequence uses them no longer: they stay, cached, until their place is needed."""
        self._stamps += 1
        if not node.children and node.holders == 1:
            node.stamp = self._stamps
            heappush(self._unused, (node.stamp, -node.depth, node))
        while node.parent is not None:
            node.holders -= 1
            if not node.holders:
                node.stamp = self._stamps
                self.held -= node.blocks
                self.cached += node.blocks
            else:
                self.shared -= node.blocks
            node = node.parent

    def extend(self, node: Node, runs: Iterable[Run], blocks: int) -> Node:
        """Enter a sequence's blocks up to `blocks` into the tree, taken from its private ones, and hold them instead
        of `node`, where its held prefix ended so far. What another sequence has entered meanwhile is shared."""
        end = self._insert(runs, blocks)
        if end is node:
            return node
        self.private -= end.depth - node.depth
        self.hold(end)
        self.let_go(node)
        return end

    def forget(self) -> None:
        """Nothing is cached any more. Nobody may hold a block."""
        assert not self.held and not self.private
        self.root = Node(None, Run(None, 0, 0))
        self.cached = self.shared = 0
        self._unused.clear()

    def make_room(self) -> None:
        """Evict cached blocks until those in use and those cached fit."""
        over = self.private + self.held + self.cached - self.blocks
        while over > 0:
            node = self._least_recently_used()
            gone = min(over, node.blocks)
            node.blocks -= gone
            node.depth -= gone
            self.cached -= gone
            over -= gone
            if node.blocks:
                heappush(self._unused, (node.stamp, -node.depth, node))
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[node.name, node.offset]
            node.stamp = -1
            if not parent.children and not parent.holders and parent.parent is not None:
                heappush(self._unused, (parent.stamp, -parent.depth, parent))

    def validate(self) -> None:
        """Every count is what the tree says. AssertionError otherwise."""
        held = cached = shared = 0
        for node in self._walk():
            parent = node.parent
            assert parent is not None and node.blocks > 0, (node.name, node.blocks)
            assert node.depth == parent.depth + node.blocks
            assert parent.parent is None or parent.holders >= sum(child.holders for child in parent.children.values())
            if node.holders:
                held += node.blocks
                shared += node.blocks * (node.holders - 1)
            else:
                cached += node.blocks
        assert (held, cached, shared) == (self.held, self.cached, self.shared), (held, cached, shared)
        assert self.private >= 0
        assert self.private + self.held + self.cached <= self.blocks

    def _walk(self) -> Iterator[Node]:
        nodes = list(self.root.children.values())
        while nodes:
            node = nodes.pop()
            yield node
            nodes.extend(node.children.values())

    def _split(self, node: Node, blocks: int) -> Node:
        """Cut a node in two behind its first `blocks` blocks; the front part. Its holders keep pointing at the rear."""
        parent = node.parent
        assert parent is not None
        front = Node(parent, Run(node.name, node.offset, blocks))
        front.holders, front.stamp = node.holders, node.stamp
        parent.children[front.name, front.offset] = front
        node.parent, node.offset, node.blocks = front, node.offset + blocks, node.blocks - blocks
        front.children[node.name, node.offset] = node
        return front

    def _insert(self, runs: Iterable[Run], blocks: int) -> Node:
        """The node where the first `blocks` blocks of the runs end; what is missing is made, held by nobody."""
        node, left = self.root, blocks
        for name, offset, count in runs:
            while count and left:
                take = min(count, left)
                child = node.children.get((name, offset))
                if child is None:
                    child = Node(node, Run(name, offset, take))
                    node.children[name, offset] = child
                    self.cached += take
                elif child.blocks > take:
                    child = self._split(child, take)
                node = child
                count, offset, left = count - child.blocks, offset + child.blocks, left - child.blocks
            if not left:
                break
        assert not left, "the runs are shorter than the blocks to enter"
        return node

    def _least_recently_used(self) -> Node:
        while True:
            stamp, depth, node = heappop(self._unused)
            if node.stamp == stamp and node.depth == -depth and not node.holders and not node.children:
                return node
