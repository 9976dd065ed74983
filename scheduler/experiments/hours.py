"""Is an experiment of some hours like the whole day? Recorded traffic, in stretches that are as long as it."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Sums = tuple[float, float]
    """Numerator and denominator of a block, or of an arm's blocks in a pair."""

DAY_SECONDS = 86_400.0
SWING_LEAST = 2.0
"""From this swing on the load of a stretch is a matter of the hour, and no more of chance."""


def spread_of_sums(pairs: Sequence[tuple[Sums, Sums]]) -> float:
    """What a pair of equal arms adds to the log ratio, as a standard deviation, by the sums of both arms in each pair.
    Order was a coin, so equal arms differ by 0 on average: the root mean square, not the deviation from the mean of one
    day's trend."""
    blocks = [block for pair in pairs for block in pair]
    mean_count = sum(count for _, count in blocks) / len(blocks)
    ratio = sum(cost for cost, _ in blocks) / sum(count for _, count in blocks)
    adds = [(first[0] - second[0] - ratio * (first[1] - second[1])) / (mean_count * ratio) for first, second in pairs]
    return sqrt(sum(add * add for add in adds) / len(adds))


def spread_of_stretches(pairs: Sequence[tuple[Sums, Sums]], length: int) -> float:
    """The same for an experiment of `length` pairs that begins at any hour: the root mean square of the stretches'.

    A stretch is held against its own mean. In one sum over a whole day its quiet hours would hardly count, and an
    experiment in them has nothing else."""
    count = max(1, len(pairs) // max(length, 1))
    edges = [len(pairs) * number // count for number in range(count + 1)]
    squares = [spread_of_sums(pairs[start:end]) ** 2 for start, end in pairwise(edges)]
    return sqrt(sum(squares) / count)


def load_swing(loads: Sequence[float], blocks: int) -> float:
    """How many times the mean load of a quiet stretch of so many blocks (10th percentile) is that of a busy one (90th).
    1.0 where the traffic is not longer than one."""
    step = max(1, blocks // 4)
    means = sorted(sum(loads[at : at + blocks]) / blocks for at in range(0, len(loads) - blocks + 1, step))
    if len(means) < 2:
        return 1.0
    low, high = (means[round(share * (len(means) - 1))] for share in (0.1, 0.9))
    return high / low if low > 0 else float("inf")
