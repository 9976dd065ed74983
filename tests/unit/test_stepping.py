"""What an engine's steps are thought to be: how fast tokens come, and for whom there is room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from scheduler.holding.costs import StepCosts
from scheduler.holding.stepping import Stepping
from scheduler.holding.work import CallWork

COSTS = StepCosts(0.007, 1e-5, 0.0, 4e-5, 0.0)
FLOW = cast(Any, SimpleNamespace())


def call(number: int) -> Any:
    return cast(Any, f"c{number}")


def test_a_short_answer_with_a_long_prompt_goes_beside_others() -> None:
    stepping = Stepping(COSTS, 0.0)
    stepping.add(call(0), FLOW, CallWork(500.0, 0.0, 1e-4), 0.0)
    assert stepping.keeps(CallWork(1.0, 0.16, 1e-4), 0.05), "it has no gap between tokens itself"
    assert stepping.gap_seconds(CallWork(1.0, 0.16, 1e-4)) > stepping.gap_seconds(CallWork(1.0, 0.01, 1e-4))


def test_so_many_go_that_tokens_still_come_in_time_and_one_always() -> None:
    stepping = Stepping(COSTS, 0.0)
    work = CallWork(500.0, 0.0, 1e-3)
    assert stepping.keeps(work, 0.001), "nobody is there whom it would slow down"
    number = 0
    while stepping.keeps(work, 0.02):
        stepping.add(call(number), FLOW, work, 0.0)
        number += 1
    assert 0.85 * 0.02 - 1e-3 < stepping.step_seconds <= 0.85 * 0.02
    stepping.validate()


def test_prompts_that_come_all_the_time_count() -> None:
    stepping = Stepping(COSTS, 0.0)
    work = CallWork(500.0, 0.05, 0.0)
    for number in range(40):
        stepping.add(call(number), FLOW, work, 0.1 * number)
    stepping.advance(4.0)
    assert 0.3 < stepping.prefill_share < 0.7
    assert stepping.gap_seconds(work) > 1.5 * stepping.step_seconds
