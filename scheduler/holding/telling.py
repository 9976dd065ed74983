"""What does `joule` say of a call that it holds or sends? Slack, and what either way is predicted to come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.decisions import Expected, Why
from scheduler.holding.flow import AT_ONCE
from scheduler.holding.work import tokens_of_call

if TYPE_CHECKING:
    from scheduler.holding.costs import StepCosts
    from scheduler.holding.flow import Flow
    from scheduler.holding.room import Room
    from scheduler.holding.work import CallWork
    from scheduler.state import CallState
    from scheduler.workflow.forecasts import Forecasts

HELD = "company"
"""The rule by which a call is held: it waits for company."""


def why_held(room: Room, call: CallState, forecasts: Forecasts, now: float) -> Why:
    """At this moment: sent now beside what runs, or held as long as can be and then run beside those that are here."""
    flow = room.flow_of[call]
    work = flow.held[call]
    costs, stepping = room.costs, room.stepping
    slack = _slack(flow, now)
    hold = max((slack or 0.0) - room.margin.value * flow.held_tail, 0.0)
    company = min(room.held + len(stepping.running), room.rules.full_batch)
    return Why(
        HELD,
        slack,
        hold,
        Expected(stepping.seconds_of(work), _joules(call, forecasts, costs, len(stepping.running) + 1)),
        Expected(hold + _seconds_beside(work, costs, company), _joules(call, forecasts, costs, company)),
    )


def why_sent(room: Room, call: CallState, rule: str, forecasts: Forecasts, now: float) -> Why:
    """At this moment: sent beside what runs and is sent too, or held to its latest start and run alone."""
    flow = room.flow_of[call]
    work = flow.held[call]
    costs, stepping = room.costs, room.stepping
    slack = _slack(flow, now)
    company = len(stepping.running) + len(room.queued)
    alone = Expected(max(slack or 0.0, 0.0) + _seconds_beside(work, costs, 1), _joules(call, forecasts, costs, 1))
    return Why(rule, slack, None, Expected(stepping.seconds_of(work), _joules(call, forecasts, costs, company)), alone)


def _slack(flow: Flow, now: float) -> float | None:
    """How long the call could wait if its workflow ran alone; None: it has no deadline."""
    return None if flow.deadline == AT_ONCE else flow.deadline - now - flow.held_tail


def _seconds_beside(work: CallWork, costs: StepCosts, company: float) -> float:
    """From its start to its end, with calls like it."""
    return work.prefill_seconds + work.steps * (costs.step_seconds + company * work.token_seconds)


def _joules(call: CallState, forecasts: Forecasts, costs: StepCosts, company: float) -> float | None:
    """Above idle power: its own terms, and its share of steps of so many sequences. None: energy is not modelled."""
    if costs.step_joules is None:
        return None
    new, context, output = tokens_of_call(call, forecasts)
    token = costs.token_joules + costs.context_joules * (context + output / 2) + costs.step_joules / max(company, 1.0)
    before = max(context - new / 2, 0.0)
    return new * (costs.prefill_joules + costs.pair_joules * before) + output * token
