"""What the scheduler is told of submitted workflows, and what it knows of all workflows."""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING, Any

from scheduler.events import NodeEnded, WorkflowDeclared, WorkflowEnded
from scheduler.workflow.describe import status
from scheduler.workflow.draw import to_dot, to_mermaid
from scheduler.workflow.spec import WorkflowSpec

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.workflows.run import NodeRun, WorkflowRun
    from proxy.workflows.submission import Submission
    from scheduler.workflow.workflow import Workflow

_DATA_FROM = re.compile(r"\.data_from\b.*")


class Mind:
    """The scheduler's graphs, seen from the door: each key sees its own workflows."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def declare(self, call_id: str, key_name: str, workflow_id: str, submission: Submission) -> None:
        """Announce the whole graph. RequestFault if it cannot be."""
        spec = WorkflowSpec(
            key_name,
            workflow_id,
            submission.name,
            submission.workflow_class,
            None if submission.deadline_ms is None else submission.deadline_ms / 1e3,
            submission.energy_budget_joules,
            submission.specs,
            submission.outputs,
            run_here=not submission.declared,
        )
        if (refusal := self._gateway.ask(WorkflowDeclared(call_id, spec), call_id)) is not None:
            if refusal.param is not None:  # here such edges stand in the texts of requests
                refusal.param = _DATA_FROM.sub(".request", refusal.param)
            raise refusal

    def changed(self, run: WorkflowRun, event: str, node: NodeRun) -> None:
        """A node that the scheduler sees no call of has ended."""
        if event == "node.finished" and node.spec.tool:
            self._gateway.tell(NodeEnded(run.key_name, run.id, node.spec.id, failed=False))
        elif event == "node.failed":
            reason = str((node.error or {}).get("code"))
            self._gateway.tell(NodeEnded(run.key_name, run.id, node.spec.id, failed=True, reason=reason))

    def ended(self, key_name: str, workflow_id: str, outcome: str) -> None:
        """Nothing more of it will come."""
        self._gateway.tell(WorkflowEnded(key_name, workflow_id, outcome))

    def knows(self, key_name: str, workflow_id: str) -> bool:
        """Whether this key has a workflow of that id."""
        return self.get(key_name, workflow_id) is not None

    def idle_seconds(self, run: WorkflowRun, now: float) -> float:
        """Since when nothing has happened in it."""
        workflow = self.get(run.key_name, run.id)
        return now - (workflow.last_event_at if workflow is not None else run.started_at)

    def in_short(self, key_name: str, workflow_id: str) -> dict[str, Any] | None:
        """A workflow as it stands in a list; None for one that is not known."""
        workflow = self.get(key_name, workflow_id)
        return _listed(workflow, monotonic()) if workflow is not None else None

    def drawn(self, key_name: str, workflow_id: str, form: str) -> str | None:
        """The graph in the language of graphviz (`dot`) or mermaid."""
        workflow = self.get(key_name, workflow_id)
        if workflow is None:
            return None
        draw = to_dot if form == "dot" else to_mermaid
        return draw(workflow, monotonic())

    def listed(self, key_name: str, limit: int) -> list[dict[str, Any]]:
        """A key's latest workflows, in short."""
        now = monotonic()
        tables = self._gateway.scheduler.workflows.tables
        lines = (tables.closed, tables.unnamed, tables.named)
        found = [workflow for line in lines for (key, _), workflow in line.items() if key == key_name]
        found.sort(key=lambda workflow: workflow.arrived_at, reverse=True)
        return [_listed(workflow, now) for workflow in found[:limit]]

    def get(self, key_name: str, workflow_id: str) -> Workflow | None:
        """A workflow of this key."""
        return self._gateway.scheduler.workflows.workflow(key_name, workflow_id)


def _listed(workflow: Workflow, now: float) -> dict[str, Any]:
    return {
        "id": workflow.id,
        "object": "workflow",
        "name": workflow.name,
        "status": status(workflow),
        "origin": workflow.origin,
        "class": workflow.effective_class,
        "age_seconds": round(now - workflow.arrived_at, 3),
        "nodes": len(workflow.graph.nodes),
        "unfinished_nodes": workflow.graph.unfinished,
    }
