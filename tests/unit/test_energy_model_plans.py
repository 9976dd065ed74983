"""What policies and caps are told of steps and plans: the short way and the long one, sane and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.model import EnergyModel
from scheduler.energy.work import Work
from tests.unit.test_energy_model import PRIOR, WINDOWS, World, shown

BATCH, CONTEXT = st.integers(1, 512), st.floats(1.0, 32_000.0)
LIMIT = st.one_of(st.none(), st.floats(100.0, 1000.0))


@given(WINDOWS, BATCH, CONTEXT, LIMIT)
def test_the_short_way_to_a_steps_price_says_what_the_long_one_says(
    windows: list[tuple],
    batch: int,
    context: float,
    limit: float | None,  # type: ignore[type-arg]
) -> None:
    model = EnergyModel(PRIOR)
    shown(model, windows)
    long = model.step(batch, batch * context, 0.0, limit)
    seconds, joules = model.prices().step(batch, batch * context, limit)
    assert seconds == pytest.approx(long.seconds.value, rel=1e-9, abs=1e-12)
    whole = joules + model.idle_watts.value * seconds
    assert whole == pytest.approx(long.joules.value, rel=1e-9, abs=1e-12)


def test_prices_are_kept_until_something_is_learned() -> None:
    world, model = World(PRIOR, 8), EnergyModel(PRIOR)
    first = model.prices()
    assert model.prices() is first
    model.learn(world.window())
    second = model.prices()
    assert second != first
    model.doubt()
    assert model.prices().energy_spread != second.energy_spread
    assert EnergyModel.restore(model.export(), PRIOR).prices() == model.prices()


@given(WINDOWS, BATCH, BATCH, CONTEXT, LIMIT)
def test_a_tokens_joules_do_not_rise_with_company(
    windows: list[tuple],
    one: int,
    other: int,
    context: float,
    limit: float | None,  # type: ignore[type-arg]
) -> None:
    model = EnergyModel(PRIOR)
    shown(model, windows)
    few, many = model.decode(min(one, other), context, limit), model.decode(max(one, other), context, limit)
    assert many.joules.value <= few.joules.high * (1 + 1e-9)
    assert many.seconds.value >= few.seconds.value * (1 - 1e-9)


@given(WINDOWS, st.tuples(*(st.floats(0, most) for most in (700, 2e4, 1e8, 1e8, 5e4, 1e8, 700))), LIMIT, LIMIT)
def test_nothing_gets_faster_under_a_lower_cap(
    windows: list[tuple],
    parts: tuple[float, ...],
    one: float | None,
    other: float | None,  # type: ignore[type-arg]
) -> None:
    model, work = EnergyModel(PRIOR), Work(*parts)
    shown(model, windows)
    low, high = sorted((one, other), key=lambda limit: limit or float("inf"))
    slow, fast = model.predict_window(work, 5.0, low), model.predict_window(work, 5.0, high)
    assert slow.busy_seconds.value >= fast.busy_seconds.value * (1 - 1e-9)
    for cost in (slow, fast):
        for figure in (cost.joules, cost.busy_seconds):
            assert 0 <= figure.low <= figure.value <= figure.high < float("inf")
    for limit in (low, high):
        step = model.step(8, 8000, 0.0, limit), model.step(8, 8000, 500.0, limit)
        assert step[1].seconds.value >= step[0].seconds.value
    assert model.step(8, 8000, 500, low).seconds.value >= model.step(8, 8000, 500, high).seconds.value * (1 - 1e-9)


def test_steps_tokens_and_calls() -> None:
    model = EnergyModel(PRIOR)
    small, large = model.step(1, 1000), model.step(64, 64_000)
    assert small.seconds.value < large.seconds.value
    assert small.watts.value < large.watts.value
    assert small.joules.value == pytest.approx(small.watts.value * small.seconds.value, rel=1e-6)
    alone, company = model.decode(1, 1000), model.decode(64, 1000)
    assert company.joules.value < alone.joules.value / 4
    assert company.seconds.value > alone.seconds.value
    call, shared = model.call(1000, 0, 200), model.call(1000, 900, 200, 16)
    assert shared.joules.value < call.joules.value / 3
    assert call.seconds.value == pytest.approx(1.04, rel=0.02)
    capped = model.step(64, 64_000, 0, 300.0)
    assert capped.watts.value == pytest.approx(0.989 * 300.0, rel=0.02)
    assert capped.seconds.value > large.seconds.value
    for wrong_batch in (model.decode, lambda batch, _: model.call(1, 0, 1, batch)):
        with pytest.raises(ValueError, match="batch must be at least 1"):
            wrong_batch(0, 1)
    with pytest.raises(ValueError, match="relative must be at least 0"):
        model.doubt(-1)


def test_work_that_does_not_fit_says_so_and_is_charged_for_the_time_there_is() -> None:
    model = EnergyModel(PRIOR)
    work = Work(2000.0, 20_000.0, 1e7)
    cost = model.predict_window(work, 5.0)
    assert cost.busy_seconds.value > 5.0
    assert cost.cap_state == "none"
    assert cost.joules.value < 5.0 * 1.1 * model.step(10, 5000).watts.value


@given(
    WINDOWS,
    st.floats(1.0, 5000.0),
    st.floats(0.0, 200.0),
    st.floats(0.0, 100_000.0),
    st.integers(0, 200),
    st.floats(1.0, 8000.0),
    st.floats(100.0, 1000.0),
    st.floats(1.0, 60.0),
    st.one_of(st.none(), st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 1.0))),
)
def test_means_of_a_window_are_the_values_of_its_prediction(
    windows: list[tuple],  # type: ignore[type-arg]
    steps: float,
    batch: float,
    context: float,
    prompts: int,
    prompt: float,
    limit: float,
    seconds: float,
    together: tuple[float, float] | None,
) -> None:
    model = EnergyModel(PRIOR)
    shown(model, windows)
    tokens = prompts * prompt
    work = Work(steps, steps * batch, steps * context, 0.0, tokens, tokens * prompt / 2, float(prompts))
    if together is not None:
        share, late = together
        work = work._replace(
            prompt_steps=prompts * share, crowded_tokens=2 * tokens * prompt / share, late_tokens=tokens * late
        )
    long, short = model.predict_window(work, seconds, limit), model.means(work).within(seconds, steps, limit)
    assert short.busy_seconds == pytest.approx(long.busy_seconds.value, rel=1e-6, abs=1e-9)
    assert short.joules == pytest.approx(long.joules.value, rel=1e-6, abs=1e-6)
    few = model.means(work._replace(steps=1.0)).within(seconds, steps, limit)
    assert few == pytest.approx(short, rel=1e-9), "steps are asked for, not taken from the work"


@given(BATCH, CONTEXT, st.floats(1.0, 16_000.0), st.floats(100.0, 1000.0))
def test_a_prompts_step_is_as_long_as_the_model_says(batch: int, context: float, prompt: float, limit: float) -> None:
    model = EnergyModel(PRIOR)
    long = model.step(batch, batch * context, prompt, limit).seconds.value
    short = model.prices().prompt_step(batch, batch * context, prompt, limit)
    assert short == pytest.approx(long, rel=0.15), "all but the doubt of its demand, near the limit"
