"""A workflow as plain data: the graph, states, times and tokens, as `GET /v1/workflows/{id}` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.workflow.objective import objective

if TYPE_CHECKING:
    from scheduler.workflow.node import Node
    from scheduler.workflow.workflow import Workflow

UNAVAILABLE = {"energy_joules": None, "energy_source": "unavailable"}
"""What cannot be told is not 0."""


def to_json(workflow: Workflow, now: float) -> dict[str, Any]:
    """Everything that is known of a workflow. Times are seconds since its arrival; None = not so far, or not known."""
    path = [node.name for node in workflow.critical_path(now)]
    critical = set(path)
    graph, arrived_at = workflow.graph, workflow.arrived_at
    live = workflow.closed_at is None
    returns = workflow.returns_at(now)
    calls = [node for node in graph.nodes.values() if not node.tool]
    return {
        "id": workflow.id,
        "object": "workflow",
        "name": workflow.name,
        "status": status(workflow),
        "origin": workflow.origin,
        "class": workflow.effective_class,
        "age_seconds": _seconds(now - arrived_at),
        "deadline_seconds": _since(workflow.deadline_at, arrived_at),
        "ended_seconds": _since(workflow.closed_at, arrived_at),
        "projected_end_seconds": _seconds(workflow.projected_end(now) - arrived_at) if live else None,
        "isolated_seconds": _seconds(workflow.isolated_seconds()),
        "client_returns_seconds": None
        if returns is None
        else {"median": _seconds(returns.median - arrived_at), "upper": _seconds(returns.upper - arrived_at)},
        "expected_further_calls": {"median": workflow.forecast_calls.median, "upper": workflow.forecast_calls.upper},
        "energy_budget_joules": workflow.energy_budget_joules,
        **UNAVAILABLE,
        "prompt_tokens": sum(node.prompt_tokens or 0 for node in calls),
        "cached_tokens": sum(node.cached_tokens or 0 for node in calls),
        "output_tokens": sum(node.output_tokens or 0 for node in calls),
        "critical_path": path,
        "nodes": [_node(workflow, node, now, critical) for node in graph.nodes.values()],
        "edges": [
            {"from": before.name, "to": after.name, "kind": edge.kind, "confidence": edge.confidence}
            for before, after, edge in graph.edges()
        ],
        "forgotten_nodes": graph.forgotten_nodes,
        "left_out_edges": workflow.skipped_edges,
    }


def status(workflow: Workflow) -> str:
    """`running` (a call is live), `acting` (the client's turn), or how it ended."""
    if workflow.outcome is not None:
        return workflow.outcome
    return "running" if workflow.live_calls else "acting"


def _node(workflow: Workflow, node: Node, now: float, critical: set[str]) -> dict[str, Any]:
    arrived_at = workflow.arrived_at
    return {
        "id": node.name,
        "kind": "tool" if node.tool else "call",
        "state": node.state,
        "error": node.error,
        "declared": node.declared,
        "objective": None if node.tool else objective(workflow, node),
        "critical": node.name in critical,
        "call_id": node.call_id,
        "attempts": node.attempts,
        "model": node.model,
        "ready_seconds": _since(node.ready_at, arrived_at),
        "queued_seconds": _since(node.queued_at, arrived_at),
        "started_seconds": _since(node.started_at, arrived_at),
        "finished_seconds": _since(node.finished_at, arrived_at),
        "predicted_seconds": _seconds(node.seconds),
        "slack_seconds": None if node.over else _seconds(workflow.slack_seconds(node, now)),
        "free_slack_seconds": None if node.over else _seconds(workflow.free_slack_seconds(node, now)),
        "prompt_tokens": node.prompt_tokens,
        "cached_tokens": node.cached_tokens,
        "output_tokens": node.output_tokens,
        "expected_output_tokens": None
        if node.tool
        else {"median": round(node.output_tokens_forecast), "upper": round(node.output_tokens_upper)},
        **UNAVAILABLE,
    }


def _seconds(value: float) -> float:
    return round(value, 4)


def _since(at: float | None, arrived_at: float) -> float | None:
    return None if at is None else _seconds(at - arrived_at)
