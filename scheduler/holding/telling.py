"""What does `joule` say of a call that it holds or sends? Slack, and what either way is predicted to come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.decisions import Expected, Why
from scheduler.holding.flow import AT_ONCE

if TYPE_CHECKING:
    from scheduler.holding.room import Room
    from scheduler.state import CallState

HELD = "company"
"""The rule by which a call is held: it waits for company."""


def why_held(room: Room, call: CallState, now: float) -> Why:
    """At this moment: sent now beside what runs, or held as long as can be and then run beside those that are here.

    Joules are above idle power: the call's own terms, and its share of steps of so many sequences.
    """
    flow = room.flow_of[call]
    work = flow.held[call]
    costs, stepping = room.costs, room.stepping
    slack = hold = None
    if flow.deadline != AT_ONCE:
        slack = flow.deadline - now - flow.held_tail
        hold = max(slack - room.margin.value * flow.held_tail, 0.0)
    beside = len(stepping.running)
    company = min(room.held + beside, room.rules.full_batch)
    later = (hold or 0.0) + work.prefill_seconds + work.steps * (costs.step_seconds + company * work.token_seconds)
    if costs.step_joules is None:
        return Why(HELD, slack, hold, Expected(stepping.seconds_of(work)), Expected(later))
    shared = work.steps * costs.step_joules
    soon = Expected(stepping.seconds_of(work), work.joules + shared / (beside + 1))
    return Why(HELD, slack, hold, soon, Expected(later, work.joules + shared / company))


def why_sent(room: Room, call: CallState, rule: str, now: float) -> Why:
    """At this moment: sent beside what runs and is sent too, or held to its latest start and run alone."""
    flow = room.flow_of[call]
    work = flow.held[call]
    costs, stepping = room.costs, room.stepping
    slack = None if flow.deadline == AT_ONCE else flow.deadline - now - flow.held_tail
    alone = work.prefill_seconds + work.steps * (costs.step_seconds + work.token_seconds)
    if slack is not None and slack > 0.0:
        alone += slack
    if costs.step_joules is None:
        return Why(rule, slack, None, Expected(stepping.seconds_of(work)), Expected(alone))
    shared = work.steps * costs.step_joules
    soon = work.joules + shared / (len(stepping.running) + len(room.queued))
    return Why(rule, slack, None, Expected(stepping.seconds_of(work), soon), Expected(alone, work.joules + shared))
