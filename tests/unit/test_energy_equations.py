"""The model's equations: what a power limit makes of steps, and of prompts that come together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from scheduler.energy.model.equations import Limits, forward, prior_values
from scheduler.energy.work import Work

PRIOR = prior_of(calibrations.load("h200-llama-3.1-8b"))


def test_a_prefill_that_is_over_before_the_limiter_knows_is_not_held_back() -> None:
    work = Work(400.0, 400.0, 4e5, 0.0, 1600.0, 1e6, 4.0)
    busy = []
    for seconds in (1e-6, 0.03, 0.3):
        values, _ = prior_values(replace(PRIOR, cap=PRIOR.cap._replace(average_seconds=seconds)))
        busy.append(float(forward(values[None, :], work, Limits(350.0, 350.0)).busy_seconds[0]))
    free = float(forward(values[None, :], work, Limits(None, None)).busy_seconds[0])
    assert busy[0] > busy[1] > busy[2] >= free * 0.999


def test_prompts_that_come_together_lose_more_to_a_limit_than_as_many_apart() -> None:
    values, _ = prior_values(PRIOR)
    tokens, steps = 16_000.0, 400.0
    apart = Work(steps, steps * 4, 4e6, 0.0, tokens, 8e6, 16.0, 16.0, tokens * 1000.0, 0.0)
    together = apart._replace(prompt_steps=2.0, crowded_tokens=tokens * 8000.0)
    uneven = together._replace(crowded_tokens=tokens * 8180.0)
    in_a_row = together._replace(late_tokens=tokens)
    limits = Limits(600.0, 600.0)
    free, *joules = (
        float(forward(values[None, :], work, of).above_idle_joules[0])
        for work, of in ((apart, Limits(None, None)), *((work, limits) for work in (apart, together, in_a_row)))
    )
    assert free > joules[0] > joules[1] > joules[2]
    assert forward(values[None, :], uneven, limits).above_idle_joules[0] < joules[1]


def test_blurred_and_sharp_limits_agree_far_from_the_limit() -> None:
    values, _ = prior_values(PRIOR)
    work = Work(500.0, 5000.0, 1e6)
    for limit in (200.0, 3000.0):
        sharp = forward(values[None, :], work, Limits(limit, limit), 0.0)
        blurred = forward(values[None, :], work, Limits(limit, limit), 0.1)
        assert np.allclose(sharp.busy_seconds, blurred.busy_seconds, rtol=0.01)
        assert np.allclose(sharp.above_idle_joules, blurred.above_idle_joules, rtol=0.02)
