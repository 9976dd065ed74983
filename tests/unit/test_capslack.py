"""What `joule` offers the cap controller, and what it plans with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from scheduler.energy.model import EnergyModel
from scheduler.holding.capslack import AT_ONCE_RATIO, CapSlack, slower
from scheduler.holding.flow import AT_ONCE, Flow
from tests.unit.caps_scene import Scene

MODEL = EnergyModel(prior_of(calibrations.load("h200-llama-3.1-8b")))
STEP_SECONDS = 0.005


def flow(deadline: float, alone: float = 1.0, *, running: int = 1) -> Flow:
    """A workflow that takes so long alone."""
    made = Flow(("e", object()), None)
    made.deadline, made.held_tail, made.running = deadline, alone, running
    made.left_steps = alone / STEP_SECONDS
    return made


def test_without_a_workflow_nothing_is_offered() -> None:
    assert CapSlack().stretch(0.2, 0.1, 0) == 1.0


@given(st.lists(st.floats(0.5, 50.0), min_size=1, max_size=20), st.floats(0.0, 1.0), st.floats(0.0, 4.0))
def test_a_share_of_what_the_tightest_bears_is_offered(ratios: list[float], share: float, margin: float) -> None:
    slack = CapSlack()
    for ratio in ratios:
        slack.came(flow(10.0 + ratio), STEP_SECONDS, 10.0)
    expected = max(1.0, 1.0 + share * (min(ratios) / (1.0 + margin) - 1.0))
    assert slack.stretch(share, margin, len(ratios)) == pytest.approx(expected)


def test_who_is_not_to_be_held_keeps_the_engine_fast_while_it_is_there() -> None:
    slack, patient, hasty = CapSlack(), flow(100.0), flow(AT_ONCE)
    slack.came(patient, STEP_SECONDS, 0.0)
    slack.came(hasty, STEP_SECONDS, 0.0)
    assert slack.stretch(1.0, 0.0, 2) == pytest.approx(AT_ONCE_RATIO)
    hasty.running = 0
    assert slack.stretch(1.0, 0.0, 1) == pytest.approx(100.0)


def test_what_is_over_is_forgotten() -> None:
    slack = CapSlack()
    gone = [flow(100.0 + number) for number in range(5000)]
    for one in gone:
        slack.came(one, STEP_SECONDS, 0.0)
        one.running = 0
    slack.came(flow(2.0), STEP_SECONDS, 0.0)
    assert slack.stretch(1.0, 0.0, 1) == pytest.approx(2.0)
    assert len(slack._tightest) == 1


@given(st.floats(1.0, 256.0), st.floats(0.0, 8000.0), st.floats(200.0, 690.0))
def test_a_lower_limit_is_slower_for_all_steps(batch: float, context: float, watts: float) -> None:
    prices = MODEL.prices()
    low, high = slower(prices, batch, batch * context, watts), slower(prices, batch, batch * context, watts + 10.0)
    assert low.decode >= high.decode >= 1.0 and low.prefill >= high.prefill >= 1.0


def test_a_clock_that_we_have_locked_counts_as_the_limit_that_it_stands_for() -> None:
    from dataclasses import replace

    from tests.unit.caps_scene import ACTUATE

    scene = Scene(replace(ACTUATE, actuator="clock", budget_watts=400.0))
    scene.carried_out = False
    scene.run(6.0)
    caps = scene.scheduler.caps
    caps.fleet.controllers["e"].standing.asked(400.0, scene.now, down=True)
    sample = scene.telemetry._sample(scene.engine)
    assert sample.limit_watts == 700.0
    told = caps.as_limited("e", sample)
    assert (told.limit_watts, told.throttled) == (400.0, True)
    assert caps.as_limited("nobody", sample) == sample
