"""What the scheduler sees now, as plain data for people and tools to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler.core import Scheduler
    from scheduler.energy.ledger import TokenAccount
    from scheduler.state import CallState

LISTED_MAX = 1000
"""Calls and workflows listed one by one; the counts beside the lists are always whole."""


def snapshot(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """Engines, calls, keys and tokens; times as seconds ago. None = not known."""
    ledger = scheduler.ledger
    recent = list(ledger.by_workflow.items())[-LISTED_MAX:]
    return {
        "policy": scheduler.policy.name,
        "draining": scheduler.draining,
        "engines": {name: _engine(scheduler, name, now) for name in scheduler.engines},
        "calls_held": scheduler.ready.count,
        "calls_running": len(scheduler.calls) - scheduler.ready.count,
        "calls": [_call(call, now) for call in list(scheduler.calls.values())[:LISTED_MAX]],
        "keys": {
            name: {
                "running": use.running,
                "budget_used_tokens": use.budget_used_tokens,
                "token_budget": use.quota.token_budget,
                "budget_ends_in_seconds": round(use.budget_ends_at - now, 1),
            }
            for name, use in scheduler.quotas.by_key.items()
        },
        "workflows_seen": len(ledger.by_workflow),
        "workflows": [
            {"key": key, "id": workflow_id, **_account(account, now)} for (key, workflow_id), account in recent[::-1]
        ],
        "workflows_closed": _account(ledger.closed_workflows, now),
    }


def _engine(scheduler: Scheduler, name: str, now: float) -> dict[str, Any]:
    engine = scheduler.engines[name]
    load = engine.load
    account = scheduler.ledger.by_engine.get(name)
    return {
        "in_flight": engine.in_flight,
        "max_in_flight": engine.max_in_flight,
        "breaker": engine.breaker.state,
        "failures_in_a_row": engine.breaker.failures,
        "models": sorted(engine.models) if engine.models is not None else None,
        "running": load.running if load else None,
        "waiting": load.waiting if load else None,
        "kv_cache_usage": load.kv_cache_usage if load else None,
        "removed": engine.removed,
        "ledger": _account(account, now) if account else None,
    }


def _call(call: CallState, now: float) -> dict[str, Any]:
    arrived = call.arrived
    return {
        "id": arrived.call_id,
        "key": arrived.key,
        "model": arrived.model,
        "workflow": arrived.workflow_id,
        "node": arrived.node,
        "parent": arrived.parent_id,
        "identity_source": arrived.identity_source,
        "engine": call.engine,
        "attempts": call.attempts,
        "answering": call.answering,
        "age_seconds": round(now - call.arrived_at, 3),
    }


def _account(account: TokenAccount, now: float) -> dict[str, Any]:
    return {
        "calls": account.calls,
        "calls_without_usage": account.calls_without_usage,
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "output_tokens": account.output_tokens,
        "last_used_seconds_ago": round(now - account.last_used_at, 1) if account.calls else None,
    }
