"""Did both arms get the traffic that they should have got? If not, something else differs than the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import betaln

from bench.experiments.randomise import ratio_test

if TYPE_CHECKING:
    from bench.experiments.pairs import PairTable

ALARM = 0.001
"""Below this p-value the report says not to trust the rest."""


class SampleRatio(NamedTuple):
    """Arrivals of each arm, what they should be in the same measure, and how surprising the gap is."""

    control: int
    treatment: int
    expected_share: float
    p_value: float
    alarm: bool
    method: str


def of_blocks(table: PairTable, seed: int) -> SampleRatio:
    """Arrivals a measured second, with the arms dealt anew within pairs. (A binomial test would take each workflow
    for a coin of its own: load that goes up and down would be an alarm.)"""
    test = ratio_test(table.began, table.seconds, seed)
    control, treatment = table.began.sum(axis=0).astype(int).tolist()
    share = float(table.seconds[:, 1].sum() / table.seconds.sum()) if len(table) else 0.5
    return SampleRatio(control, treatment, share, test.p_value, test.p_value < ALARM, "arms dealt anew within pairs")


def of_coins(control: int, treatment: int, share: float = 0.5) -> SampleRatio:
    """Each workflow was a coin with this chance of the treatment (`interleaved`): an exact binomial test."""
    p_value = float(stats.binomtest(treatment, control + treatment, share).pvalue)
    return SampleRatio(control, treatment, share, p_value, p_value < ALARM, "binomial test")


def always_valid(control: int, treatment: int, share: float = 0.5, weight: float = 100.0) -> float:
    """A p-value of coins that may be looked at after each one: the Bayes factor of a Beta mixture of this weight around
    the share (Lindon and Malek, "Anytime-valid inference for multinomial count data", 2022)."""
    up, down = weight * share, weight * (1 - share)
    log_odds = betaln(up + treatment, down + control) - betaln(up, down)
    log_odds -= treatment * np.log(share) + control * np.log1p(-share)
    return float(min(1.0, np.exp(-log_odds)))
