"""Could the order of the arms alone have done this? The arms are dealt anew as the design dealt them: swapped within
pairs. Nothing is assumed of the traffic but that the arms' names did not change it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bench.experiments.pairs import PairTable

EXACT_PAIRS = 13
"""Up to so many pairs every order is tried."""
DRAWS = 9999
CHUNK_CELLS = 4_000_000


class Randomisation(NamedTuple):
    """`p_value` of the two-sided test; `exact`: of all orders, else of `orders` random ones and the one that was."""

    p_value: float
    orders: int
    exact: bool


def orders(pairs: int, seed: int, draws: int = DRAWS) -> tuple[NDArray[np.bool_], bool]:
    """Rows: which pairs are swapped. The first swaps none."""
    if pairs <= EXACT_PAIRS:
        numbers = np.arange(1 << pairs)
        return (numbers[:, None] >> np.arange(pairs) & 1).astype(bool), True
    swapped = np.random.default_rng(seed).random((draws + 1, pairs)) < 0.5
    swapped[0] = False
    return swapped, False


def ratio_test(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], seed: int, *, share: bool = False,
    draws: int = DRAWS,
) -> Randomisation:  # fmt: skip
    """Of the ratio of two ratios of sums (`share`: of their difference)."""
    swapped, exact = orders(len(numerator), seed, draws)
    deal = swapped.astype(float)

    def sums(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        moved = deal @ (values[:, 1] - values[:, 0])
        return values[:, 0].sum() + moved, values[:, 1].sum() - moved

    (up0, up1), (down0, down1) = sums(numerator), sums(denominator)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = up0 / down0, up1 / down1
        found = np.abs(second - first) if share else np.abs(np.log(second / first))
    return _told(found, exact)


def quantile_test(table: PairTable, seed: int, draws: int = 999) -> Randomisation:
    """Of the ratio of both arms' quantiles of all their workflow times."""
    values, weights, pair, treated = times_of(table)
    swapped, exact = orders(len(table), seed, draws)
    found = np.concatenate([
        np.abs(np.log(weighted_quantile(values, weights * mine, table.metric.quantile)
                      / weighted_quantile(values, weights * ~mine, table.metric.quantile)))
        for mine in _dealt(swapped, pair, treated)
    ])  # fmt: skip
    return _told(found, exact)


def times_of(
    table: PairTable,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """All workflow times in rising order, with their weights (a block keeps so many at most), pairs and arms."""
    parts = []
    for place, pair in enumerate(table.pairs):
        for arm, rows in enumerate((pair.control, pair.treatment)):
            for row in rows:
                times = np.array(row.workflow_seconds, dtype=float)
                weight = row.timed / len(times) if len(times) else 0.0
                parts.append((times, np.full(len(times), weight), np.full(len(times), place), np.full(len(times), arm)))
    values, weights, pairs, arms = (np.concatenate([part[number] for part in parts]) for number in range(4))
    order = np.argsort(values, kind="stable")
    return values[order], weights[order], pairs[order].astype(np.int64), arms[order].astype(bool)


def _dealt(
    swapped: NDArray[np.bool_], pair: NDArray[np.int64], treated: NDArray[np.bool_]
) -> Iterator[NDArray[np.bool_]]:
    step = max(1, CHUNK_CELLS // max(len(pair), 1))
    for start in range(0, len(swapped), step):
        yield swapped[start : start + step][:, pair] ^ treated


def weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], share: float
) -> NDArray[np.float64]:  # fmt: skip
    """Of rising values, for each row of weights."""
    sums = np.cumsum(weights, axis=1)
    reached = sums >= share * sums[:, -1:] - 1e-9
    found: NDArray[np.float64] = values[np.argmax(reached, axis=1)]
    return found


def _told(found: NDArray[np.float64], exact: bool) -> Randomisation:
    found = np.where(np.isnan(found), np.inf, found)
    as_far = int((found >= found[0] * (1 - 1e-12) - 1e-15).sum())
    return Randomisation(as_far / len(found), len(found) - (not exact), exact)
