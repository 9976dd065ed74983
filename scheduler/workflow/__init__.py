"""What belongs together and what waits for what: the graph behind the calls."""

from __future__ import annotations

from scheduler.workflow.book import Change, WorkflowBook
from scheduler.workflow.node import Edge, Node
from scheduler.workflow.objective import TaskGroup
from scheduler.workflow.spec import GraphFault, NodeSpec, WorkflowLimits, WorkflowSpec
from scheduler.workflow.workflow import Workflow

__all__ = [
    "Change",
    "Edge",
    "GraphFault",
    "Node",
    "NodeSpec",
    "TaskGroup",
    "Workflow",
    "WorkflowBook",
    "WorkflowLimits",
    "WorkflowSpec",
]
