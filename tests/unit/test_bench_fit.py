"""The slope of memory: found where there is one, and not where there is only noise."""

from __future__ import annotations

import random

import pytest

from bench.soak import judge
from bench.soak_fit import Slope, fit_slope


def test_exact_line() -> None:
    slope = fit_slope([1000 * i for i in range(10)], [50_000 + 7 * i for i in range(10)])
    assert slope is not None
    assert slope.kib_per_1000 == pytest.approx(7)
    assert slope.low == pytest.approx(7)
    assert slope.high == pytest.approx(7)


def test_flat_memory_has_no_slope() -> None:
    slope = fit_slope([100 * i for i in range(10)], [50_000] * 10)
    assert slope is not None
    assert (slope.low, slope.kib_per_1000, slope.high) == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("streams", [[], [1, 2, 3], [5] * 20])
def test_too_little_is_unknown(streams: list[int]) -> None:
    assert fit_slope(streams, [100.0] * len(streams)) is None


def test_interval_covers_the_true_slope_of_independent_noise() -> None:
    numbers = random.Random(1)
    covered = 0
    for _ in range(200):
        streams = [1000 * i for i in range(30)]
        slope = fit_slope(streams, [2 * x / 1000 + numbers.gauss(0, 5) for x in streams])
        assert slope is not None
        covered += slope.low <= 2 <= slope.high
    assert covered >= 180  # 95 % is 190; the seed is fixed, so this is no gamble


def test_a_step_widens_the_interval() -> None:
    """One arena in the middle is no leak: its residuals are correlated, and the samples worth less than they count."""
    streams = [1000 * i for i in range(80)]
    slope = fit_slope(streams, [40_000 + (256 if i >= 40 else 0) for i in range(80)])
    assert slope is not None
    assert slope.effective_samples < 20
    assert judge(slope, tolerance=4.0) != "grows"


def test_a_leak_of_one_call_in_a_hundred_grows() -> None:
    numbers = random.Random(2)
    streams = [2000 * i for i in range(40)]
    slope = fit_slope(streams, [40_000 + 10 * x / 1000 + numbers.gauss(0, 60) for x in streams])
    assert judge(slope, tolerance=4.0) == "grows"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-1, 1, "flat"), (1, 3, "inconclusive"), (2.5, 3, "grows"), (-9, -1, "flat")]
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert judge(Slope((low + high) / 2, low, high, 10, 10.0), tolerance=2.0) == verdict


def test_no_slope_is_inconclusive() -> None:
    assert judge(None, tolerance=2.0) == "inconclusive"
