"""A workflow as plain data: the graph, states, times and tokens, as `GET /v1/workflows/{id}` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.workflow.objective import objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.workflow.node import Node
    from scheduler.workflow.workflow import Workflow

UNAVAILABLE = {"energy_joules": None, "energy_source": "unavailable"}
"""What cannot be told is not 0."""


def to_json(workflow: Workflow, now: float) -> dict[str, Any]:
    """Everything that is known of a workflow. Times are seconds since its arrival; None = not so far, or not known."""
    head = head_json(workflow, now)
    critical = frozenset(head["critical_path"])
    nodes = [node_json(workflow, node, now, critical) for node in workflow.graph.nodes.values()]
    return {**head, "nodes": nodes, "edges": list(edges_json(workflow))}


def head_json(workflow: Workflow, now: float) -> dict[str, Any]:
    """All but nodes and edges, of which there may be many."""
    graph, arrived_at = workflow.graph, workflow.arrived_at
    live = workflow.closed_at is None
    returns = workflow.returns_at(now)
    return {
        "id": workflow.id,
        "object": "workflow",
        "name": workflow.name,
        "status": status(workflow),
        "origin": workflow.origin,
        "class": workflow.effective_class,
        "age_seconds": _seconds(now - arrived_at),
        "deadline_seconds": _since(workflow.deadline_at, arrived_at),
        "deadline_too_short_by_seconds": None
        if workflow.too_short_by_seconds is None
        else _seconds(workflow.too_short_by_seconds),
        "ended_seconds": _since(workflow.closed_at, arrived_at),
        "projected_end_seconds": _seconds(workflow.projected_end(now) - arrived_at) if live else None,
        "isolated_seconds": _seconds(workflow.isolated_seconds()),
        "client_returns_seconds": None
        if returns is None
        else {"median": _seconds(returns.median - arrived_at), "upper": _seconds(returns.upper - arrived_at)},
        "expected_further_calls": {"median": workflow.forecast_calls.median, "upper": workflow.forecast_calls.upper},
        "energy_budget_joules": workflow.energy_budget_joules,
        **UNAVAILABLE,
        **_tokens(workflow),
        "critical_path": [node.name for node in workflow.critical_path(now)],
        "forgotten_nodes": graph.forgotten_nodes,
        "left_out_edges": workflow.skipped_edges,
    }


def _tokens(workflow: Workflow) -> dict[str, int | None]:
    """Of the calls that finished. None as soon as one's are not known: a sum without it would pass for the whole."""
    graph = workflow.graph
    calls = [node for node in graph.nodes.values() if node.state == "finished" and not node.tool]
    sums: dict[str, int | None] = {}
    for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
        counts = [getattr(node, name) for node in calls]
        sums[name] = None if graph.forgotten_nodes or None in counts else sum(counts)
    return sums


def status(workflow: Workflow) -> str:
    """`running` (a call is live), `acting` (the client's turn), or how it ended."""
    if workflow.outcome is not None:
        return workflow.outcome
    return "running" if workflow.live_calls else "acting"


def edges_json(workflow: Workflow) -> Iterator[dict[str, Any]]:
    """Node by node; the graph may change between one edge and the next."""
    dag = workflow.graph.dag
    for before in list(dag):
        if before in dag:
            for after, data in list(dag.succ[before].items()):
                yield {"from": before.name, "to": after.name, "kind": data["kind"], "confidence": data["confidence"]}


def node_json(workflow: Workflow, node: Node, now: float, critical: frozenset[str]) -> dict[str, Any]:
    """One node; `critical`: the names along the critical path."""
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
