"""Which workflows are known, which of them go when there is no room, and when?

Live ones stand in a line, those longest without an event first; unnamed calls (each a workflow of its own until its
content says otherwise) stand in a line apart, so that a flood of them pushes no named workflow out. Closed ones are
kept for reading, for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from scheduler.workflow.closed import ClosedWorkflows
from scheduler.workflow.live import Line, dispensable, size_of
from scheduler.workflow.prefixes import PrefixGroups
from scheduler.workflow.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import WorkflowLimits
    from scheduler.workflow.workflow import Outcome, Workflow

Name = tuple[str, str]
"""(key, workflow id)"""
FORGOTTEN_SHARE = 8
"""A workflow that has reached its limit of nodes forgets one in so many, oldest first."""


class WorkflowTables:
    """Live and closed workflows, the calls of the live ones, and what all of them take."""

    def __init__(self, limits: WorkflowLimits) -> None:
        self.limits = limits
        self.named = Line()
        self.unnamed = Line()
        self.closed = ClosedWorkflows()
        self.aliases: OrderedDict[Name, str] = OrderedDict()
        """Ids of workflows that became part of another, and that one's id."""
        self.by_call: dict[str, Node] = {}
        """The last call of each node of the live workflows."""
        self.node_count = 0
        self.edge_count = 0
        """Both of all workflows together, pending edges included."""
        self._sizes: dict[str, int] = {}
        """By key both together, of the live ones."""
        self._entered = 0
        self.prefixes = PrefixGroups(limits.prefix_hashes)
        self.templates = Templates(limits.templates)

    def live(self) -> Iterator[Workflow]:
        """All live workflows."""
        yield from self.named.values()
        yield from self.unnamed.values()

    def live_named(self, name: Name) -> Workflow | None:
        """A live workflow by key and id."""
        return self.named.get(name) or self.unnamed.get(name)

    def find(self, name: Name) -> Workflow | None:
        """A workflow, live or closed; ids that were merged lead to what they became part of."""
        while (merged := self.aliases.get(name)) is not None:
            name = (name[0], merged)
        return self.live_named(name) or self.closed.get(name)

    def _line(self, workflow: Workflow) -> Line:
        return self.unnamed if workflow.origin == "content" else self.named

    def enter(self, workflow: Workflow) -> None:
        """A new live workflow, with the nodes it has; a closed one of the same id makes way for it."""
        name = (workflow.key, workflow.id)
        if (before := self.closed.take(name)) is not None:
            self.drop(before)
        self.aliases.pop(name, None)
        self._entered += 1
        workflow.number = self._entered
        self._line(workflow).add(workflow)
        self.count(workflow, len(workflow.graph.nodes), workflow.graph.edge_count)
        for node in workflow.graph.nodes.values():
            if node.prefix:
                self.prefixes.add(node)

    def touch(self, workflow: Workflow, now: float) -> None:
        """Something was heard of it: it goes to the end of its line."""
        workflow.last_event_at = workflow.order_at = now
        self._line(workflow).touch(workflow)

    def count(self, workflow: Workflow, nodes: int, edges: int) -> None:
        """A live workflow has so many more, or less."""
        self.node_count += nodes
        self.edge_count += edges
        self.resize(workflow.key, nodes + edges)

    def resize(self, key: str, change: int) -> None:
        """What a key has in its live workflows is so much more, though there is no more in all."""
        self._sizes[key] = size = self._sizes.get(key, 0) + change
        if not size:
            del self._sizes[key]

    def take(self, workflow: Workflow) -> None:
        """It is live no more; its nodes and edges are kept, for now."""
        self._line(workflow).take(workflow)
        self.resize(workflow.key, -size_of(workflow))

    # --- room ---

    def has_room(self, key: str, origin: str, nodes: int, edges: int, workflows: int, now: float) -> bool:
        """Whether so much more of a key can be taken, once what is dispensable has gone."""
        limits = self.limits
        if nodes > limits.nodes or edges > limits.edges:
            return False
        while self.node_count + nodes > limits.nodes or self.edge_count + edges > limits.edges:
            if (closed := self.closed.dispensable(nodes=True)) is not None:
                self._drop_closed(closed)
            elif not self._displace(dispensable((self.unnamed, self.named), key, nodes + edges, self._size), now):
                return False
        line = self.unnamed if origin == "content" else self.named
        if len(line) + workflows <= limits.workflows:
            return True
        return self._displace(dispensable((line,), key, workflows, lambda key: len(line.of(key))), now)

    def _size(self, key: str) -> int:
        return self._sizes.get(key, 0)

    def edges_allowed(self, workflow: Workflow) -> int:
        """How many edges a workflow may have, with what the others have."""
        most, left = self.limits.edges_per_workflow, self.limits.edges - self.edge_count
        return most if left >= most else min(most, left + workflow.graph.edge_count + workflow.pending_count)

    def _displace(self, workflow: Workflow | None, now: float) -> bool:
        """Close and drop it, if there is one that can go."""
        if workflow is None:
            return False
        self.close(workflow, "displaced", now)
        if self.closed.take((workflow.key, workflow.id)) is not None:
            self.drop(workflow)
        return True

    def forget_oldest(self, workflow: Workflow) -> bool:
        """A workflow that grows call by call is at its limit: its oldest finished calls go. False: there are none."""
        graph = workflow.graph
        edges = graph.edge_count
        old = graph.forget(max(1, self.limits.nodes_per_workflow // FORGOTTEN_SHARE))
        self.count(workflow, -len(old), graph.edge_count - edges)
        gone = set(old)
        for node in old:
            self._forget_call(node)
            workflow.loose_ends.pop(node, None)
        for name, waiting in list(workflow.pending.items()):
            left = [node for node in waiting if node not in gone]
            workflow.pending_count -= len(waiting) - len(left)
            self.count(workflow, 0, len(left) - len(waiting))
            workflow.pending[name] = left
            if not left:
                del workflow.pending[name]
        workflow.latest = {name: node for name, node in workflow.latest.items() if node not in gone}
        if workflow.last_finished in gone:
            workflow.last_finished = None
        return bool(old)

    def _forget_call(self, node: Node) -> None:
        if node.call_id is not None:
            self.by_call.pop(node.call_id, None)
        if node.prefix:
            self.prefixes.remove(node)

    # --- the end ---

    def close(self, workflow: Workflow, outcome: Outcome, now: float) -> None:
        """It is over: what has not finished never will. It is kept for reading unless it is a lone unnamed call."""
        self.take(workflow)
        if outcome not in {"cancelled", "merged"}:
            self.templates.learn(workflow)
        for node in workflow.graph.nodes.values():
            self._forget_call(node)
        workflow.graph.stop_all(now, "cancelled", f"the workflow was closed ({outcome})")
        workflow.live_calls = 0
        workflow.acting_since = None
        workflow.closed_at, workflow.outcome = now, outcome
        self.edge_count -= workflow.pending_count
        workflow.pending.clear()
        workflow.pending_count = 0
        workflow.latest.clear()
        workflow.loose_ends.clear()
        workflow.last_finished = None
        if workflow.origin == "content" and len(workflow.graph.nodes) < 2:
            self.drop(workflow)
            return
        self.closed.add(workflow)
        while len(self.closed) > self.limits.closed_workflows:
            oldest = self.closed.dispensable(nodes=False)
            assert oldest is not None
            self._drop_closed(oldest)

    def _drop_closed(self, workflow: Workflow) -> None:
        self.closed.take((workflow.key, workflow.id))
        self.drop(workflow)

    def drop(self, workflow: Workflow) -> None:
        """Forget a closed workflow that stands in no table any more."""
        self.node_count -= len(workflow.graph.nodes)
        self.edge_count -= workflow.graph.edge_count
        workflow.graph.clear()
        workflow.last_finished = None

    def expire(self, now: float) -> list[Workflow]:
        """Close what has been silent for too long, forget what was kept long enough; returns what was closed."""
        expired: list[Workflow] = []
        for line in (self.named, self.unnamed):
            while (workflow := line.oldest()) is not None:
                if workflow.order_at + self.limits.idle_seconds > now:
                    break
                promised = workflow.deadline_at is not None and now < workflow.deadline_at and workflow.graph.unfinished
                # Whoever runs it here says when it is over; nodes may wait for their turn for hours.
                run_here = workflow.run_here and now - workflow.last_event_at < self.limits.batch_seconds
                if workflow.live_calls or promised or run_here:
                    workflow.order_at = now
                    line.touch(workflow)
                else:
                    self.close(workflow, "idle", now)
                    expired.append(workflow)
        while (oldest := self.closed.oldest()) is not None:
            assert oldest.closed_at is not None
            if oldest.closed_at + self.limits.closed_seconds > now:
                break
            self._drop_closed(oldest)
        return expired

    def next_expiry(self) -> float | None:
        """The earliest time at which `expire` may have something to do."""
        silent = [workflow for line in (self.named, self.unnamed) if (workflow := line.oldest()) is not None]
        times = [workflow.order_at + self.limits.idle_seconds for workflow in silent]
        if (oldest := self.closed.oldest()) is not None:
            assert oldest.closed_at is not None
            times.append(oldest.closed_at + self.limits.closed_seconds)
        return min(times, default=None)

    def remember_alias(self, key: str, merged_id: str, into_id: str) -> None:
        """A workflow became part of another of the same key."""
        self.aliases[key, merged_id] = into_id
        if len(self.aliases) > self.limits.workflows:
            self.aliases.popitem(last=False)

    def validate(self, touched_since: float = float("-inf")) -> None:
        """Every invariant of the tables, and of the workflows in them of which something was heard since then.
        AssertionError names what does not hold."""
        limits = self.limits
        nodes = edges = 0
        calls: dict[str, Node] = {}
        unfinished: list[Node] = []
        for line, origins in ((self.named, {"declared", "hinted"}), (self.unnamed, {"content"})):
            assert len(line) <= limits.workflows
            order = [workflow.order_at for workflow in line.values()]
            assert order == sorted(order), "the line is out of order"
            for name, workflow in line.items():
                assert (workflow.key, workflow.id) == name and workflow.origin in origins
                assert workflow.closed_at is None
                if workflow.last_event_at >= touched_since:
                    workflow.validate()
                nodes += len(workflow.graph.nodes)
                edges += workflow.graph.edge_count + workflow.pending_count
                calls.update((node.call_id, node) for node in workflow.graph.nodes.values() if node.call_id is not None)
                unfinished.extend(node for node in workflow.graph.nodes.values() if not node.over)
            line.validate()
        assert not dict(self.named.items()).keys() & dict(self.unnamed.items()).keys()
        sizes: dict[str, int] = {}
        for workflow in self.live():
            sizes[workflow.key] = sizes.get(workflow.key, 0) + size_of(workflow)
        assert self._sizes == {key: size for key, size in sizes.items() if size}
        for name, workflow in self.closed.items():
            assert (workflow.key, workflow.id) == name and self.live_named(name) is None
            assert not workflow.graph.unfinished
            if workflow.last_event_at >= touched_since:
                workflow.validate()
            nodes += len(workflow.graph.nodes)
            edges += workflow.graph.edge_count
        assert self.by_call == calls, "a call is lost or left behind"
        assert self.node_count == nodes <= limits.nodes, f"{self.node_count} nodes are counted, there are {nodes}"
        assert self.edge_count == edges <= limits.edges, f"{self.edge_count} edges are counted, there are {edges}"
        assert len(self.closed) <= limits.closed_workflows
        self.closed.validate()
        self.prefixes.validate([node for node in unfinished if node.prefix])
