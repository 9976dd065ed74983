"""`joule` with the cap controller, in virtual time: cheaper, still in time, and the same each time."""

from __future__ import annotations

from bench.policies.capped import line
from bench.policies.cells import PROMISES, Cell
from bench.policies.lab import Run, play

THREE = next(promise for promise in PROMISES if promise.name == "3x")
INTERACTIVE = next(promise for promise in PROMISES if promise.name == "interactive")
RUN = Run(Cell("copilot", 2.0), THREE, "joule", seconds=150.0)


def test_slack_is_spent_on_slower_steps_too_and_deadlines_are_kept() -> None:
    free, capped = play(RUN), play(RUN._replace(caps=True))
    horizon = max(free.ended_at, capped.ended_at)
    assert capped.joules_until(horizon) < 0.97 * free.joules_until(horizon)
    assert capped.limit_watts < 600.0 and free.limit_watts == 700.0
    assert capped.missed <= free.missed + 0.02 * capped.workflows
    assert "copilot 2" in line(free, free, capped)[0]


def test_the_same_events_lead_to_the_same_caps() -> None:
    short = RUN._replace(seconds=60.0, caps=True, validate=True)
    one, other = play(short), play(short)
    assert (one.joules, one.limit_watts, one.stretches) == (other.joules, other.limit_watts, other.stretches)


def test_where_nobody_can_wait_no_step_is_slowed_by_more_than_next_to_nothing() -> None:
    run = RUN._replace(promise=INTERACTIVE, seconds=60.0)
    free, capped = play(run), play(run._replace(caps=True))
    slower = [after / before for before, after in zip(free.seconds, capped.seconds, strict=True)]
    assert sum(slower) / len(slower) < 1.03
