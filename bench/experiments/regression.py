"""What is left of the effect once load is taken out, and does the order of the arms matter?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats

from bench.experiments.pairs import differences, value_of
from bench.experiments.ratio import Estimate
from scheduler.experiments.marks import excluded_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bench.experiments.pairs import PairTable
    from scheduler.experiments.rows import BlockRow

PAIRS_LEAST = 8


class Tested(NamedTuple):
    """A hypothesis about the method: `estimate` of what should be 0."""

    estimate: float
    low: float
    high: float
    p_value: float
    says: str


def _ols(outcome: NDArray[np.float64], columns: NDArray[np.float64]) -> Any:
    """Least squares with errors that hold whatever the spread of each observation (HC3)."""
    from statsmodels.regression.linear_model import OLS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of collinear columns: the caller looks at what comes out
        return OLS(outcome, columns).fit(cov_type="HC3", use_t=True)


def adjusted(table: PairTable) -> Estimate | None:
    """The mean difference of the pairs at equal load: regressed on the log ratios of arrivals and of their tokens,
    which users decide and not arms. None: too few pairs, or a block to which nobody came."""
    found = differences(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        loads = np.stack([np.log(part[:, 1] / part[:, 0]) for part in (table.began, table.offered)], axis=1)
    good = np.isfinite(found) & np.isfinite(loads).all(axis=1)
    if good.sum() < PAIRS_LEAST:
        return None
    columns = np.column_stack([np.ones(good.sum()), loads[good]])
    fit = _ols(found[good], columns)
    (low, high), center = fit.conf_int()[0].tolist(), float(fit.params[0])
    if not table.metric.is_share:
        center, low, high = np.expm1([center, low, high]).tolist()
    return Estimate(center, low, high, np.nan, np.nan, float(fit.bse[0]))


def order_effect(table: PairTable) -> Tested | None:
    """Do pairs differ in which the treatment came first? Welch's test. None: fewer than 3 of one order."""
    found = differences(table)
    good = np.isfinite(found)
    first, second = found[good & table.treatment_first], found[good & ~table.treatment_first]
    if min(len(first), len(second)) < 3:
        return None
    test: Any = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval()
    gap = float(first.mean() - second.mean())
    says = f"{len(first)} pairs began with the treatment, {len(second)} with the control"
    return Tested(gap, float(interval.low), float(interval.high), float(test.pvalue), says)


def carry_over(rows: Sequence[BlockRow], table: PairTable) -> Tested | None:
    """Does a block come out otherwise after a block of the other arm than after one of its own? Each block's log
    metric on its arm, on whether the arm has just changed, and on its load. None: not for this metric or design, or
    too few."""
    metric = table.metric
    if metric.kind != "ratio" or metric.is_share:
        return None
    by_number: dict[int, BlockRow] = {}
    for row in rows:
        if row.number in by_number:
            return None  # both arms in each block
        by_number[row.number] = row
    outcome, columns = [], []
    for row in rows:
        before = by_number.get(row.number - 1)
        if row.pair < 0 or before is None or excluded_by(row, metric) or min(row.began, row.offered_tokens) <= 0:
            continue
        up, down = (value_of(row, name, table.components) for name in (metric.numerator, metric.denominator))
        if min(up, down) <= 0:
            continue
        outcome.append(np.log(up / down))
        seconds = row.measured_seconds
        rate, tokens = np.log(row.began / seconds), np.log(row.offered_tokens / seconds)
        columns.append([1.0, row.arm, float(before.arm != row.arm), rate, rate**2, tokens, tokens**2])
    kept = np.array(columns)
    if len(outcome) < 2 * PAIRS_LEAST or kept[:, 2].min() == kept[:, 2].max():
        return None
    kept[:, 3:] -= kept[:, 3:].mean(axis=0)
    fit = _ols(np.array(outcome), kept)
    low, high = fit.conf_int()[2].tolist()
    says = f"{int(kept[:, 2].sum())} of {len(outcome)} blocks came after one of the other arm"
    return Tested(float(fit.params[2]), low, high, float(fit.pvalues[2]), says)
