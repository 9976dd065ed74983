"""Prices of a bill: from the live model, under a power limit, and how far the meter says they are off."""

from __future__ import annotations

import pytest

from backends.twin.calibration import load
from backends.twin.prior import prior_of
from scheduler.energy.bill_limit import SteadyLimit, left_of
from scheduler.energy.bill_prices import Tariff, prefill_joules, price, tariff_of
from scheduler.energy.bill_scale import IdleWatch, Scale
from scheduler.energy.model import EnergyModel
from scheduler.energy.window import Energy
from scheduler.energy.work import Work
from tests.unit.bill_feed import TARIFF, decoded, prefilled, share, window


def model() -> EnergyModel:
    return EnergyModel(prior_of(load("h200-llama-3.1-8b")))


def test_a_model_that_has_seen_nothing_gives_its_prior_and_doubts_it() -> None:
    prior = prior_of(load("h200-llama-3.1-8b"))
    tariff = tariff_of(model())
    assert tariff.step == pytest.approx(prior.energy.step)
    assert tariff.prefill_token == pytest.approx(prior.energy.prefill_token)
    assert tariff.idle_watts == pytest.approx(prior.idle_watts)
    assert tariff.relative_error > 0.1
    assert (tariff.decode_left, tariff.prefill_left) == (1.0, 1.0)


def test_a_limit_that_binds_makes_prefill_cheaper_before_decoding() -> None:
    work = Work(100.0, 800.0, 800_000.0, 0.0, 40_000.0, 40_000.0 * 2000, 8.0)
    made = window(share("a", work), joules=900.0)
    loose, tight = (tariff_of(model(), made._replace(limit_watts=watts)) for watts in (2000.0, 350.0))
    assert loose.decode_left == pytest.approx(1.0, abs=0.01)
    assert loose.prefill_left == pytest.approx(1.0, abs=0.01)
    assert tight.prefill_left < 0.95
    assert tight.prefill_left <= tight.decode_left
    usual = tariff_of(model(), made._replace(limit_watts=600.0))
    left = [left_of(usual, tokens) for tokens in (10.0, 500.0, 1000.0, 3000.0, 1e5)]
    assert left == sorted(left, reverse=True), "the longer a prompt, the more of it the limit holds back"
    assert left[0] > left[-1] + 0.05
    assert left_of(loose, 3000.0) == pytest.approx(1.0, abs=0.01)


def test_a_window_without_work_says_nothing_of_a_limit() -> None:
    made = window(joules=200.0)._replace(limit_watts=200.0)
    assert tariff_of(model(), made) == tariff_of(model())


def test_a_price_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Tariff.of(TARIFF._replace(step=-1.0), 100.0)


def test_a_prefill_costs_the_same_in_one_piece_or_in_two() -> None:
    whole = prefill_joules(TARIFF, 0, 3000)
    assert prefill_joules(TARIFF, 0, 1000) + prefill_joules(TARIFF, 1000, 3000) == pytest.approx(whole)
    assert price(TARIFF, prefilled(3000)).prefill == pytest.approx(whole)


def test_the_scale_is_what_the_meter_says_over_the_last_minute() -> None:
    scale = Scale()
    assert scale.at(TARIFF, 100.0) == 1.0
    priced = price(TARIFF, decoded(100)).total
    for number in range(40):
        scale.saw(window(share("a", decoded(100)), joules=200.0 + 1.3 * priced, start=2.0 * number), TARIFF)
    assert scale.at(TARIFF, 100.0) == pytest.approx(1.3, rel=0.02)


def test_what_an_edge_cut_off_a_window_moves_the_scale_little() -> None:
    scale = Scale()
    priced = price(TARIFF, decoded(100)).total
    for number in range(40):
        cut = 0.2 * priced * (-1) ** number
        scale.saw(window(share("a", decoded(100)), joules=200.0 + priced + cut, start=2.0 * number), TARIFF)
        if number > 10:
            assert scale.at(TARIFF, 100.0) == pytest.approx(1.0, abs=0.03)


def test_windows_that_are_not_whole_do_not_move_the_scale() -> None:
    scale = Scale()
    scale.saw(window(share("a", decoded(100)), joules=9000.0, why=("bypass",)), TARIFF)
    scale.saw(window(share("a", decoded(100))), TARIFF)
    assert scale.at(TARIFF, 100.0) == 1.0


def test_the_scale_stays_within_reason() -> None:
    scale = Scale()
    scale.saw(window(share("a", decoded(10)), joules=1e9), TARIFF)
    assert scale.at(TARIFF, 100.0) == 5.0
    scale = Scale()
    scale.saw(window(share("a", decoded(10_000)), joules=200.0), TARIFF)
    assert scale.at(TARIFF, 100.0) == 0.2


def test_idle_power_is_what_empty_windows_drew() -> None:
    idle = IdleWatch()
    assert idle.saw(window(share("a"), joules=2000.0), TARIFF) == (100.0, None, None)  # the model's word
    assert idle.saw(window(joules=240.0), TARIFF).gpu_watts == pytest.approx(120.0)
    assert idle.saw(window(share("a"), joules=2000.0), TARIFF).gpu_watts == pytest.approx(120.0)


def test_idle_power_is_never_above_the_least_that_was_drawn() -> None:
    idle = IdleWatch()
    assert idle.saw(window(share("a"), joules=120.0), TARIFF).gpu_watts == pytest.approx(60.0)
    assert idle.saw(window(share("a"), joules=900.0), TARIFF).gpu_watts == pytest.approx(60.0)


def test_of_the_processor_the_least_is_taken_for_idle_until_a_window_was_empty() -> None:
    idle = IdleWatch()
    found = idle.saw(window(share("a"), energy=Energy(None, 100.0, 20.0)), None)
    assert found == (None, pytest.approx(50.0), pytest.approx(10.0))
    assert idle.saw(window(share("a"), energy=Energy(None, 60.0, None)), None).cpu_watts == pytest.approx(30.0)
    assert idle.saw(window(energy=Energy(None, 70.0, None)), None).cpu_watts == pytest.approx(35.0)


def test_what_a_limit_leaves_is_steady_until_the_limit_moves() -> None:
    steady = SteadyLimit()
    made = window(share("a", Work(100.0, 800.0, 8e5, 0.0, 4000.0, 4e6, 2.0)), joules=900.0)._replace(limit_watts=500.0)
    curve = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7) * 3
    assert steady.of(TARIFF._replace(prefill_curve=curve), made).prefill_curve == curve
    after = steady.of(TARIFF, made)  # this window alone would say that nothing is taken off
    assert 0.7 < after.prefill_curve[-1] < 0.8
    assert after.prefill_left == pytest.approx(left_of(after, 4000.0))
    assert steady.of(TARIFF, made._replace(limit_watts=700.0)) == TARIFF
