"""What can an experiment find, in how long? Block length, wash-out and the detectable effect, before anything
starts."""

from __future__ import annotations

from math import ceil, expm1, inf, log1p, pi, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

ERROR = 0.05
POWER = 0.8
BLOCK_SECONDS_LEAST = 60.0
MEASURED_SHARE = 0.75
"""Of a block, behind the wash-out, where nothing speaks for another length."""
CANDIDATES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Block lengths that are tried on recorded traffic, in units of the shortest."""
PAIRS_KNOWN_LEAST = 8
"""A spread needs so many pairs of blocks of recorded traffic."""
EFFECT_USELESS = 0.5
"""A plan that could only find an effect of this size or more finds nothing."""


class Recorded(NamedTuple):
    """A workflow of recorded traffic."""

    began_at: float
    seconds: float
    cost: float
    """What stands for its joules: its joules if they are known, else its tokens."""


class Plan(NamedTuple):
    """What `joulegate ab plan` prints. Effects are relative: 0.02 = 2 %."""

    block_seconds: float
    washout_seconds: float
    pairs: int
    duration_seconds: float
    spread: float
    """Standard deviation of what a pair of two equal arms adds to the log of the ratio."""
    detectable: float
    """The smallest effect that is found with 80 % probability at the 5 % level."""
    workflows_per_block: float
    basis: str
    """Where the spread is from."""
    warnings: tuple[str, ...] = ()


def t_quantile(share: float, freedom: float) -> float:
    """Of Student's distribution (Hill, algorithm 396, 1970; error below 1e-5 from 3 degrees of freedom on)."""
    assert 0.5 <= share < 1 and freedom >= 1
    two_tails = 2.0 * (1.0 - share)
    n = freedom
    a = 1.0 / (n - 0.5)
    b = 48.0 / (a * a)
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * sqrt(a * pi / 2.0) * n
    x = d * two_tails
    y = x ** (2.0 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(0.5 * two_tails)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x
        y = expm1(a * y * y)
    else:
        y = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0)) * y - 1.0) * (
            n + 1.0
        ) / (n + 2.0) + 1.0 / y
    return sqrt(n * y)


def detectable_effect(spread: float, pairs: int, error: float = ERROR, power: float = POWER) -> float:
    """(t(1 - error/2) + t(power)) spread / sqrt(pairs), with pairs - 1 degrees of freedom, back from the log."""
    if pairs < 3:
        return inf
    reach = t_quantile(1 - error / 2, pairs - 1) + t_quantile(power, pairs - 1)
    return expm1(reach * spread / sqrt(pairs))


def pairs_needed(spread: float, effect: float, error: float = ERROR, power: float = POWER) -> int:
    """The fewest pairs (6 at least) that find an effect of this size."""
    if effect <= 0:
        raise ValueError(f"effect: must be above 0, not {effect:g}")
    reach = NormalDist().inv_cdf(1 - error / 2) + NormalDist().inv_cdf(power)
    pairs = max(6, ceil((reach * spread / log1p(effect)) ** 2))
    while detectable_effect(spread, pairs, error, power) > effect:
        pairs += max(1, pairs // 50)
    return pairs


def washout_of(seconds: Sequence[float], cap_settling_seconds: float = 0.0) -> float:
    """p95 workflow time + settling of the caps, in whole seconds. ValueError without any workflow."""
    if not seconds:
        raise ValueError("no workflow is known, so its p95 time is not")
    ordered = sorted(seconds)
    return float(max(1, ceil(ordered[ceil(0.95 * len(ordered)) - 1] + cap_settling_seconds)))


def spread_of_pairs(traffic: Sequence[Recorded], block_seconds: float, washout_seconds: float) -> tuple[float, int]:
    """What one pair of equal arms adds to the log ratio of both arms' cost a workflow, as a standard deviation, and how
    many pairs gave it. (inf, n) for fewer than PAIRS_KNOWN_LEAST.

    Neighbouring blocks stand for the arms of a pair. The standard error of n pairs is this over sqrt(n), by the same
    linearisation as the analysis uses (delta method).
    """
    if not traffic:
        return inf, 0
    start = min(each.began_at for each in traffic)
    sums: dict[int, tuple[float, int]] = {}
    for each in traffic:
        number, inside = divmod(each.began_at - start, block_seconds)
        if inside >= washout_seconds and each.cost > 0:
            cost, count = sums.get(int(number), (0.0, 0))
            sums[int(number)] = cost + each.cost, count + 1
    # Pairs that begin at even and at odd blocks: both are pairs that could have been.
    pairs = [(sums[number], sums[number + 1]) for number in sorted(sums) if number + 1 in sums]
    known = (len(pairs) + 1) // 2
    return (inf if known < PAIRS_KNOWN_LEAST else spread_of_sums(pairs)), known


def spread_of_sums(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> float:
    """The same of pairs of blocks whose sums (numerator, denominator) are known. Order was a coin, so equal arms differ
    by 0 on average: the root mean square, not the deviation from the mean of one day's trend."""
    blocks = [block for pair in pairs for block in pair]
    mean_count = sum(count for _, count in blocks) / len(blocks)
    ratio = sum(cost for cost, _ in blocks) / sum(count for _, count in blocks)
    adds = [(first[0] - second[0] - ratio * (first[1] - second[1])) / (mean_count * ratio) for first, second in pairs]
    return sqrt(sum(add * add for add in adds) / len(adds))


def from_traffic(
    traffic: Sequence[Recorded], duration_seconds: float, *, cost_is: str, cap_settling_seconds: float = 0.0,
    effect: float | None = None,
) -> Plan:  # fmt: skip
    """The block length that finds the smallest effect in this time, tried on the traffic. ValueError if it is too short
    for any: it must have 16 blocks of 4 wash-outs."""
    washout = washout_of([each.seconds for each in traffic], cap_settling_seconds)
    shortest = shortest_block(washout)
    plans = []
    for times in CANDIDATES:
        block = shortest * times
        spread, known = spread_of_pairs(traffic, block, washout)
        if spread < inf and (pairs := int((duration_seconds - block) // (2 * block))) >= 6:
            basis = f"{known} pairs of blocks of recorded traffic ({cost_is})"
            plans.append(_plan(block, washout, pairs, spread, _rate(traffic), basis, effect))
    if not plans:
        length = max(each.began_at for each in traffic) - min(each.began_at for each in traffic)
        raise ValueError(
            f"the recorded traffic is {length:.0f} s long and the experiment {duration_seconds:.0f} s: both must have"
            f" {2 * PAIRS_KNOWN_LEAST} blocks of {shortest:.0f} s (4 wash-outs of {washout:.0f} s) or more"
        )
    return min(plans, key=lambda plan: plan.detectable)


def from_rate(
    rate: float, duration_seconds: float, *, p95_workflow_seconds: float, workflow_spread: float = 1.0,
    pair_spread: float | None = None, block_seconds: float | None = None, cap_settling_seconds: float = 0.0,
    effect: float | None = None,
) -> Plan:  # fmt: skip
    """From workflows a second and the standard deviation of a workflow's joules in units of their mean; or from the
    spread of pairs itself. ValueError names what does not fit."""
    if rate <= 0 or p95_workflow_seconds <= 0 or workflow_spread <= 0:
        raise ValueError("rate, p95 workflow time and spread must be above 0")
    washout = washout_of([p95_workflow_seconds], cap_settling_seconds)
    block = block_seconds or shortest_block(washout)
    if block <= washout:
        raise ValueError(f"block_seconds: {block:g} s is not above the wash-out of {washout:g} s")
    pairs = int((duration_seconds - block) // (2 * block))
    if pairs < 6:
        raise ValueError(
            f"duration: {duration_seconds:g} s are {max(pairs, 0)} pairs of blocks of {block:g} s; 6 are needed:"
            f" {13 * block:g} s"
        )
    basis = "the given spread of pairs"
    if pair_spread is None:
        pair_spread = workflow_spread * sqrt(2.0 / (rate * (block - washout)))
        basis = f"chance alone: {rate:g} workflows a second whose joules have a spread of {100 * workflow_spread:g} %"
    return _plan(block, washout, pairs, pair_spread, rate, basis, effect)


def shortest_block(washout_seconds: float) -> float:
    """Of which MEASURED_SHARE is left."""
    return max(BLOCK_SECONDS_LEAST, ceil(washout_seconds / (1 - MEASURED_SHARE)))


def _rate(traffic: Sequence[Recorded]) -> float:
    length = max(each.began_at for each in traffic) - min(each.began_at for each in traffic)
    return len(traffic) / length if length > 0 else inf


def _plan(
    block: float, washout: float, pairs: int, spread: float, rate: float, basis: str, effect: float | None
) -> Plan:  # fmt: skip
    detectable = detectable_effect(spread, pairs)
    duration = block + 2 * pairs * block
    workflows = rate * (block - washout)
    said = []
    if workflows < 20:
        said.append(f"only {workflows:.0f} workflows in the measured part of a block: longer blocks are better")
    if effect is not None and detectable > effect:
        needed = pairs_needed(spread, effect)
        said.append(
            f"an effect of {100 * effect:g} % cannot be found in {duration / 3600:.1f} h, where only"
            f" {100 * detectable:.1f} % can: {needed} pairs are needed, {(2 * needed + 1) * block / 3600:.1f} h"
        )
    elif detectable >= EFFECT_USELESS:
        said.append(f"only an effect of {100 * detectable:.0f} % or more can be found: plan a longer experiment")
    return Plan(block, washout, pairs, duration, spread, detectable, workflows, basis, tuple(said))
