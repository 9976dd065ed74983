"""How large is the effect on a quantile of workflow times? A bootstrap that draws whole pairs of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.experiments.randomise import CHUNK_CELLS, times_of, weighted_quantile
from bench.experiments.ratio import Estimate, around

if TYPE_CHECKING:
    from bench.experiments.pairs import PairTable

DRAWS = 1000


def bootstrapped(table: PairTable, seed: int, draws: int = DRAWS, confidence: float = 0.95) -> Estimate:
    """Pairs are drawn with replacement, with all workflows in them; the spread of the log ratio of the quantiles gives
    the standard error, Student's distribution the interval (percentiles of few pairs are too narrow). ValueError for
    fewer than 2 pairs or an arm without workflows."""
    count = len(table)
    if count < 2:
        raise ValueError(f"{count} pairs of blocks: an interval needs 2 or more")
    values, weights, pair, treated = times_of(table)
    if treated.all() or not treated.any():
        raise ValueError("one arm has no workflows")
    rng = np.random.default_rng(seed)
    often = np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), draws)])
    found = []
    step = max(1, CHUNK_CELLS // len(values))
    for start in range(0, len(often), step):
        drawn = often[start : start + step][:, pair] * weights
        found.append([weighted_quantile(values, drawn * arm, table.metric.quantile) for arm in (~treated, treated)])
    control, treatment = (np.concatenate([part[arm] for part in found]) for arm in (0, 1))
    logs = np.log(treatment / control)
    error = float(logs[1:].std(ddof=1) * np.sqrt(count / (count - 1)))
    ratio = np.array([control[0], treatment[0]])
    return around(float(logs[0]), error, count - 1, ratio, confidence=confidence)
