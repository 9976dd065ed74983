"""What matters of a call: that it ends soon, or that all of its group end in little time?

As Parrot means it (OSDI'24, section 5.2): outputs that a user waits for are latency-oriented, and so is what leads to
them; calls that run side by side and only feed a join form a *task group*, of which only the last one counts, so they
are throughput-oriented up to the join's latest start. What a whole group waits for inherits from where its branches
meet.
Deduced when asked for, remembered until the graph changes; no question looks at more than `LOOKED_AT_MAX` nodes.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import Criterion
    from scheduler.workflow.workflow import Workflow

LOOKED_AT_MAX = 4096
"""Beyond it the answer is the cautious one: latency."""


class TaskGroup(NamedTuple):
    """All producers of one consumer that run side by side: those that are no direct step to another of them."""

    consumer: Node
    members: dict[Node, None]
    """An ordered set."""


def task_group(workflow: Workflow, consumer: Node) -> TaskGroup:
    """The group that feeds `consumer`; it may have one member or none. Remembered until the graph changes."""
    version = workflow.graph.version
    if consumer.group is not None and consumer.group_version == version:
        return consumer.group
    dag = workflow.graph.dag
    members = dict.fromkeys(dag.predecessors(consumer))
    looked_at = 0
    for producer in list(members) if len(members) > 1 else ():
        looked_at += dag.in_degree[producer]
        if looked_at > LOOKED_AT_MAX:
            break
        for before in dag.predecessors(producer):
            members.pop(before, None)
    consumer.group, consumer.group_version = TaskGroup(consumer, members), version
    return consumer.group


def task_groups(workflow: Workflow, node: Node) -> list[TaskGroup]:
    """The groups of two or more that the node is a member of."""
    groups = [task_group(workflow, consumer) for consumer in workflow.graph.dag.successors(node)]
    return [group for group in groups if len(group.members) > 1 and node in group.members]


def objective(workflow: Workflow, node: Node) -> Criterion:
    """The node's objective: what the client said, else what the graph says."""
    version = workflow.graph.version
    way: list[Node] = []
    looked_at = [0]
    found: Criterion | None = None
    step: Node | None = node
    while step is not None and found is None:
        if step.criterion is not None:
            found = step.criterion
        elif step.objective_version == version:
            found = step.objective
        else:
            way.append(step)
            found, step = _next_step(workflow, step, looked_at)
    for passed in way:
        passed.objective, passed.objective_version = found or "latency", version
    return found or "latency"


def _next_step(workflow: Workflow, node: Node, looked_at: list[int]) -> tuple[Criterion | None, Node | None]:
    """The node's objective, or the node from which it inherits."""
    dag = workflow.graph.dag
    looked_at[0] += 1
    if node.name in workflow.outputs or not workflow.graph.is_followed(node) or looked_at[0] > LOOKED_AT_MAX:
        return "latency", None
    alone_before: list[Node] = []
    member = False
    for consumer in dag.successors(node):
        looked_at[0] += 1
        if looked_at[0] > LOOKED_AT_MAX:
            return "latency", None
        members = task_group(workflow, consumer).members
        if node in members:
            member = member or len(members) > 1
            if len(members) == 1:
                alone_before.append(consumer)
    if not alone_before:
        return "throughput" if member else "latency", None
    if len(alone_before) == 1:
        return None, alone_before[0]
    meeting = _meeting(workflow, node, looked_at)
    return ("latency", None) if meeting is None else (None, meeting)


def _meeting(workflow: Workflow, node: Node, looked_at: list[int]) -> Node | None:
    """The first node that every way from `node` passes; None if some way ends before, or it is too far to look.

    Taken in topological order, the nodes that were reached and not left shrink to one exactly there.
    """
    dag = workflow.graph.dag
    open_nodes = [(after.order, after.number, after) for after in dag.successors(node)]
    open_nodes.sort()
    seen = set(dag.successors(node))
    while len(open_nodes) > 1:
        step = heappop(open_nodes)[2]
        looked_at[0] += 1
        if not workflow.graph.is_followed(step) or step.name in workflow.outputs or looked_at[0] > LOOKED_AT_MAX:
            return None
        for after in dag.successors(step):
            if after not in seen:
                seen.add(after)
                heappush(open_nodes, (after.order, after.number, after))
    return open_nodes[0][2]
