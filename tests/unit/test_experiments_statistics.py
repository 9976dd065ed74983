"""The analysis: against published libraries, against exact counts, and at its edges."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.cli import main
from bench.experiments import pairs, quantiles, randomise, ratio, sample_ratio, sequence
from scheduler.experiments import METRICS, Definition, evidence, hours, plan
from scheduler.experiments.rows import BlockRow
from tests.unit.experiment_rows import definition, rows_of

JOULES = METRICS["joules_per_workflow"]


def test_the_delta_method_is_tea_tastings() -> None:
    tt = pytest.importorskip("tea_tasting", reason="tests/requirements-dev.lock does not have it yet")
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(4)
    down = rng.integers(20, 60, (2, 80)).astype(float)
    up = down * rng.lognormal(0.0, 0.2, (2, 80)) * np.array([[1.0], [1.07]])
    frame = pandas.DataFrame({"variant": np.repeat([0, 1], 80), "up": up.ravel(), "down": down.ravel()})
    theirs: Any = tt.Experiment(ratio=tt.RatioOfMeans("up", "down", use_t=True, equal_var=False)).analyze(frame)[
        "ratio"
    ]
    ours = ratio.unpaired(*(np.stack([up[arm], down[arm]], axis=1) for arm in (0, 1)))
    assert ours.control == pytest.approx(theirs.control, rel=1e-9)
    assert ours.treatment == pytest.approx(theirs.treatment, rel=1e-9)
    assert ours.effect == pytest.approx(theirs.rel_effect_size, rel=1e-9)
    assert ours.low == pytest.approx(theirs.rel_effect_size_ci_lower, abs=1e-4)
    assert ours.high == pytest.approx(theirs.rel_effect_size_ci_upper, abs=1e-4)


def test_the_sample_ratio_of_coins_is_tea_tastings() -> None:
    tt = pytest.importorskip("tea_tasting", reason="tests/requirements-dev.lock does not have it yet")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"variant": np.repeat([0, 1], [480, 560])})
    theirs: Any = tt.Experiment(ratio=tt.SampleRatio(1, method="binom")).analyze(frame)["ratio"]
    assert sample_ratio.of_coins(480, 560).p_value == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("counts", [(100, 100), (300, 380), (10, 40)])
def test_the_always_valid_sample_ratio_is_savvis(counts: tuple[int, int]) -> None:
    multinomial = pytest.importorskip("savvi.multinomial", reason="tests/requirements-dev.lock does not have it yet")
    theirs = multinomial.Multinomial(0.05, np.array([0.5, 0.5]), 100)
    theirs.update(np.array(counts))
    assert sample_ratio.always_valid(*counts) == pytest.approx(min(1.0, theirs.calculate_p_value()), rel=1e-9)


def test_the_confidence_sequence_is_about_as_long_as_savvis() -> None:
    """Theirs supposes normal errors, ours nothing but symmetry: the price must be small."""
    regression = pytest.importorskip(
        "savvi.linear_regression", reason="tests/requirements-dev.lock does not have it yet"
    )
    values = np.random.default_rng(3).normal(0.05, 0.1, 150)
    theirs = regression.LinearRegression(0.05, 1, phi=20)
    for value in values:
        theirs.update(np.array([value, 1.0]))
    ((low, high),) = theirs.calculate_conf_int()
    lows, highs = sequence.confidence_sequence(values, evidence.sharpest_scale(0.1, 150))
    assert 0.7 < (highs[-1] - lows[-1]) / (high - low) < 1.3
    assert (lows[-1] + highs[-1]) / 2 == pytest.approx((low + high) / 2, abs=0.01)


def test_t_quantiles_and_the_planned_power_are_scipys() -> None:
    for freedom, share in product((3, 5, 11, 143), (0.6, 0.8, 0.975, 0.999)):
        assert plan.t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), abs=1e-5)
    # The power of a t-test, exactly: the plan's sum of two quantiles is a little careful for few pairs.
    for count in (12, 40, 144):
        shift = np.log1p(plan.detectable_effect(0.1, count)) / 0.1 * np.sqrt(count)
        reach = stats.t.ppf(0.975, count - 1)
        power = stats.nct.sf(reach, count - 1, shift) + stats.nct.cdf(-reach, count - 1, shift)
        assert power == pytest.approx(0.8, abs=0.02)


def test_the_field_notes_figure() -> None:
    """5-minute blocks, 10 % spread of paired differences, one day."""
    assert plan.detectable_effect(0.1, 144) == pytest.approx(0.0235, abs=0.001)
    assert plan.pairs_needed(0.1, plan.detectable_effect(0.1, 144)) == pytest.approx(144, abs=3)


def test_paired_intervals_are_those_of_the_differences() -> None:
    """With equal denominators and small effects, the delta method is the differences' t interval over the mean."""
    rng = np.random.default_rng(8)
    hour = rng.normal(100.0, 20.0, 30)
    up = np.stack([hour + rng.normal(0, 1, 30), hour + rng.normal(1.0, 1, 30)], axis=1)
    found = ratio.paired(up, np.ones((30, 2)))
    gap = up[:, 1] - up[:, 0]
    reach = stats.t.ppf(0.975, 29) * gap.std(ddof=1) / np.sqrt(30)
    assert found.low * up[:, 0].mean() == pytest.approx(gap.mean() - reach, abs=0.05)
    assert found.high * up[:, 0].mean() == pytest.approx(gap.mean() + reach, abs=0.05)
    unpaired = ratio.unpaired(*(np.stack([up[:, arm], np.ones(30)], axis=1) for arm in (0, 1)))
    assert unpaired.error > 5 * found.error, "what the hour does to both blocks of a pair is not noise"


def test_few_pairs_are_dealt_in_every_order() -> None:
    rng = np.random.default_rng(2)
    up, down = rng.lognormal(0, 0.2, (8, 2)) * 10, rng.integers(5, 9, (8, 2)).astype(float)
    found = randomise.ratio_test(up, down, 1)

    def log_ratio(swapped: tuple[bool, ...]) -> float:
        columns = [[1, 0] if swap else [0, 1] for swap in swapped]
        sums = [np.take_along_axis(part, np.array(columns), axis=1).sum(axis=0) for part in (up, down)]
        return float(np.log((sums[0] / sums[1])[1] / (sums[0] / sums[1])[0]))

    every = [abs(log_ratio(swapped)) for swapped in product((False, True), repeat=8)]
    assert found.exact
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12))


def test_p_values_of_equal_arms_are_uniform_even_with_heavy_tails() -> None:
    rng = np.random.default_rng(6)
    p_values = [
        randomise.ratio_test(rng.pareto(1.5, (10, 2)) + 0.1, np.ones((10, 2)), seed).p_value for seed in range(400)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    assert np.mean(np.array(p_values) <= 0.05) < 0.08


def test_the_confidence_sequence_holds_from_the_first_pair_on() -> None:
    """Symmetric differences of any kind, spreads that change, 300 looks: the truth is left out in at most 5 %."""
    rng = np.random.default_rng(7)
    ever = []
    for number in range(600):
        sizes = [rng.standard_cauchy(300), rng.normal(size=300), rng.lognormal(0, 2, 300)][number % 3]
        values = 0.3 + 0.1 * np.abs(sizes) * rng.choice([-1, 1], 300) * np.exp(np.sin(np.arange(300) / 20))
        low, high = sequence.confidence_sequence(values, evidence.sharpest_scale(0.1, 100))
        ever.append(((low > 0.3) | (high < 0.3)).any())
    assert np.mean(ever) <= 0.05


def test_the_confidence_sequence_says_nothing_before_it_can() -> None:
    values = np.full(40, 0.2) + np.tile([0.01, -0.01], 20)
    low, high = sequence.confidence_sequence(values, evidence.sharpest_scale(0.05, 40))
    assert np.isinf(low[:5]).all()
    assert np.isinf(high[:5]).all()
    assert 0.1 < low[-1] < 0.2 < high[-1] < 0.3
    finite = np.isfinite(low)
    assert (np.diff(finite.astype(int)) >= 0).all(), "once it speaks, it goes on"
    # Its ends are where the e-value reaches 1/error.
    scale = evidence.sharpest_scale(0.05, 40)
    for end in (low[-1], high[-1]):
        away = values - end
        assert evidence.log_evidence_of_sum(away.sum(), (away**2).sum(), scale) == pytest.approx(np.log(20), abs=1e-6)


def test_evidence_of_a_share_is_a_martingale_at_its_edge() -> None:
    """The mean of the e-value over all outcomes is 1 where the hypothesis is as true as can be, and below inside it."""
    for chance, mean in ((0.2, 1.0), (0.1, 0.5)):
        total = sum(
            stats.binom.pmf(bad, 30, chance) * np.exp(evidence.log_evidence_of_share(bad, 30, 0.2)) for bad in range(31)
        )
        assert total == pytest.approx(1.0, abs=1e-9) if mean == 1.0 else total < mean
    assert evidence.log_evidence_of_share(20, 30, 0.05) > 20


def table(defined: Definition, rows: list[BlockRow], name: str = "joules_per_workflow") -> pairs.PairTable:
    return pairs.table_of(rows, METRICS[name])


def test_a_p95_is_bootstrapped_by_whole_pairs() -> None:
    defined = definition(pairs=40)
    found = quantiles.bootstrapped(table(defined, rows_of(defined, effect=0.2), "p95_workflow_seconds"), 1)
    assert found.low < np.expm1(0.2) < found.high
    assert found.effect == pytest.approx(np.expm1(0.2), abs=0.1)
    test = randomise.quantile_test(table(defined, rows_of(defined, effect=0.2), "p95_workflow_seconds"), 1, 499)
    assert test.p_value == pytest.approx(1 / 500)
    null = randomise.quantile_test(table(defined, rows_of(defined), "p95_workflow_seconds"), 1, 499)
    assert null.p_value > 0.02


def test_a_weighted_quantile_is_numpys() -> None:
    rng = np.random.default_rng(1)
    values = np.sort(rng.normal(size=101))
    weights = rng.integers(0, 3, (5, 101)).astype(float)
    found = randomise.weighted_quantile(values, weights, 0.95)
    for row, value in zip(weights, found, strict=True):
        assert value == np.quantile(np.repeat(values, row.astype(int)), 0.95, method="inverted_cdf")


def test_arrivals_that_differ_are_an_alarm_and_waves_of_load_are_not() -> None:
    defined = definition(pairs=30)
    rows = rows_of(defined)
    assert not sample_ratio.of_blocks(table(defined, rows), 1).alarm
    less = [row._replace(began=row.began * 3 // 4 if row.arm else row.began) for row in rows]
    assert sample_ratio.of_blocks(table(defined, less), 1).alarm
    waves = [row._replace(began=row.began * (1 + row.number % 7)) for row in rows]
    assert not sample_ratio.of_blocks(table(defined, waves), 1).alarm
    began = table(defined, waves).began.sum(axis=0)
    assert sample_ratio.of_coins(int(began[0]), int(began[1])).p_value < 0.05, "a coin test takes the waves for a fault"


def recorded(count: int, every: float, seed: int = 1) -> list[plan.Recorded]:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(every, count))
    return [plan.Recorded(float(at), float(rng.lognormal(0.5, 0.4)), float(rng.lognormal(0, 0.8))) for at in times]


def test_a_plan_from_traffic_knows_its_spread() -> None:
    traffic = recorded(20_000, 2.0)
    found = plan.from_traffic(traffic, 86_400.0, cost_is="tokens")
    assert found.washout_seconds == np.ceil(
        np.quantile([each.seconds for each in traffic], 0.95, method="inverted_cdf")
    )
    assert found.block_seconds >= 4 * found.washout_seconds
    workflows = 0.5 * (found.block_seconds - found.washout_seconds)
    chance = np.sqrt(2 * np.expm1(0.8**2) / workflows)
    assert found.spread == pytest.approx(chance, rel=0.2)
    assert found.detectable == pytest.approx(plan.detectable_effect(found.spread, found.pairs))
    assert not found.warnings


def by_day(days: float, *, swing: float, seed: int = 1) -> list[plan.Recorded]:
    """Traffic of which the busiest hour has `swing` times the load of the quietest."""
    rng = np.random.default_rng(seed)
    at, found = 0.0, []
    while at < days * 86_400.0:
        level = np.sin(2 * np.pi * at / 86_400.0)
        at += float(rng.exponential(4.0 / swing ** (level / 2)))
        found.append(plan.Recorded(at, float(rng.lognormal(0.5, 0.4)), float(rng.lognormal(0, 0.8))))
    return found


def test_a_plan_of_less_than_a_day_says_what_it_leaves_out() -> None:
    swings, steady = by_day(2, swing=6.0), by_day(2, swing=1.0)
    length = 2 * 3600.0
    short = plan.from_traffic(swings, length, cost_is="tokens", effect=0.1)
    assert any("times the load of quiet ones" in text and "24 h have them all" in text for text in short.warnings)
    day = plan.pairs_of_a_day(short.block_seconds)
    assert any(f"{day} pairs are needed" in text for text in short.warnings), "fewer would do, if hours were alike"
    assert plan.pairs_needed(short.spread, 0.1) < day
    alike = plan.from_traffic(steady, length, cost_is="tokens", effect=0.1)
    assert not any("load" in text or "hours" in text for text in alike.warnings)
    assert any(f"{plan.pairs_needed(alike.spread, 0.1)} pairs" in text for text in alike.warnings)
    assert not plan.from_traffic(swings, 86_400.0, cost_is="tokens").warnings
    nights = [each for each in swings if each.began_at % 86_400.0 < 43_200.0]
    empty = plan.from_traffic(nights, length, cost_is="tokens")
    assert any("hours with nothing in them: what it finds" in text for text in empty.warnings), empty.warnings
    little = plan.from_traffic(by_day(0.2, swing=1.0), length, cost_is="tokens")
    assert any("whether other hours differ is not known" in text for text in little.warnings)


def test_a_short_experiment_has_the_spread_of_its_hours() -> None:
    """Quiet hours have few workflows, and hardly count in one sum over the day; an experiment in them has nothing
    else."""
    rng = np.random.default_rng(1)

    def some(count: int, load: float, spread: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        costs = load * (1 + spread / np.sqrt(2) * rng.normal(size=(count, 2)))
        return [((float(a), load), (float(b), load)) for a, b in costs]

    quiet, busy = some(2000, 1.0, 0.4), some(2000, 20.0, 0.1)
    assert hours.spread_of_sums(quiet + busy) == pytest.approx(20 / 10.5 * 0.1 / np.sqrt(2), rel=0.1)
    each = np.sqrt((0.4**2 + 0.1**2) / 2)
    assert hours.spread_of_stretches(quiet + busy, 50) == pytest.approx(each, rel=0.05)
    assert hours.spread_of_stretches(quiet + busy, 9999) == hours.spread_of_sums(quiet + busy)


def test_the_swing_of_the_load_is_that_of_stretches() -> None:
    day = [10.0 * 3 ** np.sin(2 * np.pi * block / 240) for block in range(480)]
    assert hours.load_swing(day, 10) > 6
    assert hours.load_swing(day, 240) == pytest.approx(1.0)
    assert hours.load_swing(day, 480) == 1.0, "there is only one"
    assert hours.load_swing([1.0, 20.0] * 100, 10) == 1.0, "from block to block only"
    assert hours.load_swing([0.0] * 50 + [1.0] * 50, 10) == np.inf


def test_a_plan_that_cannot_find_anything_says_so_with_numbers() -> None:
    found = plan.from_rate(0.05, 4 * 3600.0, p95_workflow_seconds=60.0, effect=0.02)
    assert any("only 9 workflows" in text for text in found.warnings)
    assert any("an effect of 2 % cannot be found in" in text and "pairs are needed" in text for text in found.warnings)
    hopeless = plan.from_rate(0.003, 4 * 3600.0, p95_workflow_seconds=60.0)
    assert any("% or more can be found" in text for text in hopeless.warnings)
    with pytest.raises(ValueError, match="pairs of blocks of 240 s; 6 are needed: 3120 s"):
        plan.from_rate(1.0, 1000.0, p95_workflow_seconds=60.0)
    with pytest.raises(ValueError, match="both must have 16 blocks"):
        plan.from_traffic(recorded(50, 2.0), 86_400.0, cost_is="tokens")
    with pytest.raises(ValueError, match="no workflow is known"):
        plan.from_traffic([], 86_400.0, cost_is="tokens")


def test_a_longer_plan_finds_less() -> None:
    found = [plan.detectable_effect(0.2, count) for count in (6, 12, 50, 200, 1000)]
    assert found == sorted(found, reverse=True)
    for effect in (0.5, 0.1, 0.02):
        count = plan.pairs_needed(0.2, effect)
        assert plan.detectable_effect(0.2, count) <= effect


@pytest.mark.parametrize("command", [["experiments"], ["experiment-report", "blocks.jsonl"]])
def test_without_the_extra_the_way_out_is_said(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main(command) == 2
    assert "scipy is missing: pip install 'joulegate[bench]'" in capsys.readouterr().err
