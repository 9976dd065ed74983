"""How large is the effect on a ratio of sums, and how sure is that? The delta method over pairs of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Estimate(NamedTuple):
    """An effect: relative to the control (0.1: 10 % more), or, for shares, a difference."""

    effect: float
    low: float
    high: float
    control: float
    treatment: float
    error: float
    """Standard error: of the log of the ratio, or of the difference."""


def paired(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], *, share: bool = False, confidence: float = 0.95
) -> Estimate:
    """Of the ratio of two ratios of sums. Columns: control, treatment; a row is a pair, and pairs are the units.

    The linearised ratio of an arm is (n_i - r d_i) / mean(d); what a pair adds to log(r_T / r_C) is the difference of
    both arms' over their r, so that what the two blocks of a pair have in common is in the variance as it should be.
    The interval is Student's with one degree less than pairs. ValueError for fewer than 2 pairs or an arm without
    anything."""
    count = len(numerator)
    if count < 2:
        raise ValueError(f"{count} pairs of blocks: an interval needs 2 or more")
    means = denominator.mean(axis=0)
    if not (means > 0).all():
        raise ValueError("there is nothing to divide by in one arm: no such workflow, or none at all")
    ratio = numerator.mean(axis=0) / means
    parts = (numerator - ratio * denominator) / means
    if share:
        adds, center = parts[:, 1] - parts[:, 0], float(ratio[1] - ratio[0])
    else:
        if not (ratio > 0).all():
            raise ValueError("one arm has a ratio of 0")
        adds, center = parts[:, 1] / ratio[1] - parts[:, 0] / ratio[0], float(np.log(ratio[1] / ratio[0]))
    error = float(adds.std(ddof=1) / np.sqrt(count))
    return around(center, error, count - 1, ratio, share=share, confidence=confidence)


def unpaired(
    control: NDArray[np.float64], treatment: NDArray[np.float64], *, confidence: float = 0.95
) -> Estimate:  # fmt: skip
    """The same for two independent samples; each has rows (numerator, denominator). Welch's degrees of freedom."""
    parts = []
    for sample in (control, treatment):
        mean = sample[:, 1].mean()
        ratio = sample[:, 0].mean() / mean
        parts.append(
            (ratio, ((sample[:, 0] - ratio * sample[:, 1]) / mean / ratio).var(ddof=1) / len(sample), len(sample))
        )
    (first, first_var, first_count), (second, second_var, second_count) = parts
    variance = first_var + second_var
    freedom = variance**2 / (first_var**2 / (first_count - 1) + second_var**2 / (second_count - 1))
    ratio = np.array([first, second])
    return around(float(np.log(second / first)), float(np.sqrt(variance)), freedom, ratio, confidence=confidence)


def around(
    center: float, error: float, freedom: float, ratio: NDArray[np.float64], *, share: bool = False,
    confidence: float = 0.95,
) -> Estimate:  # fmt: skip
    """An estimate of a log ratio (or, with `share`, of a difference) with Student's interval."""
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    low, high = center - reach, center + reach
    if not share:
        center, low, high = np.expm1([center, low, high]).tolist()
    return Estimate(center, low, high, float(ratio[0]), float(ratio[1]), error)
