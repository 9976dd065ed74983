"""A submitted workflow in JSON, as its client is shown it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.energy.answer import sum_members
from proxy.workflows.run import NodeStatus

if TYPE_CHECKING:
    from proxy.workflows.run import NodeRun, WorkflowRun


def node_view(run: WorkflowRun, node: NodeRun) -> dict[str, Any]:
    """What a node gave, or why it gave nothing."""
    view: dict[str, Any] = {"state": node.status, "attempts": node.attempts}
    if node.output is not None:
        view["output"] = node.output
    if node.error is not None:
        view["error"] = node.error
    if node.status is NodeStatus.FINISHED and not node.spec.tool:
        view["usage"] = node.usage
        view.update(node.energy)
    return view


def summary(run: WorkflowRun) -> dict[str, Any]:
    """How the whole run stands: outputs, failures, tokens, joules."""
    nodes = run.nodes.values() if run.begun else ()
    failed, skipped = NodeStatus.FAILED, NodeStatus.SKIPPED
    finished = [node for node in nodes if node.usage is not None]
    return {
        "id": run.id,
        "object": "workflow",
        "name": run.submission.name,
        "status": run.status,
        "outputs": {
            name: run.nodes[name].output
            for name in (run.outputs if nodes else ())
            if run.nodes[name].output is not None
        },
        "failed": [node.spec.id for node in nodes if node.status is failed],
        "skipped": [node.spec.id for node in nodes if node.status is skipped],
        "created": int(run.created_unix_seconds),
        "usage": {
            name: _sum([node.usage[name] for node in finished if node.usage is not None])
            for name in ("prompt_tokens", "cached_tokens", "output_tokens")
        },
        **sum_members(node.energy for node in finished),
    }


def _sum(counts: list[int | None]) -> int | None:
    """None as soon as one is unknown."""
    return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)
