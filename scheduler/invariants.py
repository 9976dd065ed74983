"""What holds of a scheduler between any two events?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.core import Scheduler

ATTEMPTS_MAX = 2
"""A call is sent once, and once more after a fault that the engine cannot have acted on."""


def validate(scheduler: Scheduler, touched_since: float = float("-inf")) -> None:
    """Check every invariant; those of a workflow's graph if something was heard of it since then. AssertionError names
    the one that does not hold."""
    calls, engines, ready, quotas = scheduler.calls, scheduler.engines, scheduler.ready, scheduler.quotas
    in_flight = dict.fromkeys(engines, 0)
    running = dict.fromkeys(quotas.by_key, 0)
    held = 0
    for call_id, call in calls.items():
        assert call.arrived.call_id == call_id
        assert 0 <= call.attempts <= ATTEMPTS_MAX
        if call.engine is None:
            held += 1
            assert call_id in ready.by_model[call.arrived.model], f"{call_id} is nowhere"
            assert not call.answering
        else:
            in_flight[call.engine] += 1
        if call.arrived.key in running:
            running[call.arrived.key] += 1
        assert call.node is None or call.node.call_id in (call_id, None) or call.node.over, f"{call_id} lost its node"
    assert held == ready.count == sum(len(group) for group in ready.by_model.values())
    assert all(ready.by_model.values()), "an empty group was left behind"
    for engine in engines.values():
        assert engine.in_flight == in_flight[engine.name], f"{engine.name} counts {engine.in_flight} in flight"
        assert not (engine.removed and engine.in_flight == 0), f"{engine.name} should be forgotten"
    for name, use in quotas.by_key.items():
        assert use.running == running[name] >= 0, f"key {name} counts {use.running} running"
        assert use.budget_used_tokens >= 0
    assert not (scheduler.draining and ready.count), "held while draining"
    for part in (
        scheduler.patience, scheduler.ledger, scheduler.energy, scheduler.caps, scheduler.decisions,
        scheduler.experiments, scheduler.parking,
    ):  # fmt: skip
        part.validate()
    scheduler.workflows.validate(touched_since)
    scheduler.policy.validate()
