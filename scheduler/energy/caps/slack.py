"""How much longer may what runs on an engine take? The tightest of the workflows that have calls there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.caps.view import Slack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.state import CallState
    from scheduler.workflow.workflow import Workflow

LOOKED_MAX = 512
"""Workflows looked at for a decision; the calls that came first go first, as theirs are the nearest ends."""

LOST_SHARE = 0.5
"""A workflow that will be late by more than this share of what remains is lost: no cap makes an engine twice as fast,
and it must not hold the others' cap for ever."""


def tightest(calls: Mapping[str, CallState], now: float) -> dict[str, Slack]:
    """By engine. Only workflows of which an end was promised count: a deadline, or a class that was named."""
    found: dict[str, Slack] = {}
    known: dict[int, Slack | None] = {}
    for call in calls.values():
        node, engine = call.node, call.engine
        if node is None or engine is None:
            continue
        workflow = node.workflow
        if (place := id(workflow)) not in known:
            if len(known) >= LOOKED_MAX:
                break
            known[place] = _of(workflow, now)
        slack = known[place]
        if slack is not None and (engine not in found or slack.bears < found[engine].bears):
            found[engine] = slack
    return found


def _of(workflow: Workflow, now: float) -> Slack | None:
    if workflow.deadline_at is None and workflow.workflow_class is None:
        return None
    end = workflow.projected_end(now)
    remaining, slack = end - now, workflow.end_allowed(now) - end
    return None if slack < -LOST_SHARE * remaining else Slack(remaining, slack)
