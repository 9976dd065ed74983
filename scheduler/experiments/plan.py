"""What can an experiment find, in how long? Block length, wash-out and the detectable effect, before anything
starts."""

from __future__ import annotations

from math import ceil, expm1, inf, isfinite, log1p, pi, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from scheduler.experiments.chance import share_of
from scheduler.experiments.hours import DAY_SECONDS, SWING_LEAST, load_swing, spread_of_stretches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.experiments.hours import Sums

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


class Hours(NamedTuple):
    """What an experiment of less than a day leaves out."""

    pairs_least: int = 0
    """So many see all hours."""
    says: str = ""


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


def pairs_of_traffic(
    traffic: Sequence[Recorded], block_seconds: float, washout_seconds: float, *, split: bool = False
) -> tuple[list[tuple[Sums, Sums]], list[float]]:
    """Cost and workflows of both arms in each pair of blocks that could have been, had both arms been equal; and the
    workflows of each block. Neighbouring blocks stand for the arms of a pair, which begin at even and at odd ones.

    `split`: both arms run at once, each on one half of the engines, and swap: a coin stands for the half of a workflow.
    """
    if not traffic:
        return [], []
    start = min(each.began_at for each in traffic)
    sums: dict[int, list[float]] = {}
    for place, each in enumerate(traffic):
        number, inside = divmod(each.began_at - start, block_seconds)
        if inside >= washout_seconds and each.cost > 0:
            half = 2 * (split and share_of("half", str(place)) < 0.5)
            block = sums.setdefault(int(number), [0.0] * 4)
            block[half] += each.cost
            block[half + 1] += 1
    pairs = []
    for number in sorted(sums):
        if (other := sums.get(number + 1)) is None:
            continue
        one = sums[number]
        if split:
            pairs.append(((one[0] + other[2], one[1] + other[3]), (one[2] + other[0], one[3] + other[1])))
        else:
            pairs.append(((one[0], one[1]), (other[0], other[1])))
    loads = [sum(sums[number][1::2]) if number in sums else 0.0 for number in range(max(sums, default=-1) + 1)]
    return pairs, loads


def from_traffic(
    traffic: Sequence[Recorded], duration_seconds: float, *, cost_is: str, cap_settling_seconds: float = 0.0,
    effect: float | None = None, split: bool = False,
) -> Plan:  # fmt: skip
    """The block length that finds the smallest effect in this time, tried on the traffic. ValueError if it is too short
    for any: it must have 16 blocks of 4 wash-outs. `split`: for `split_and_swap`."""
    washout = washout_of([each.seconds for each in traffic], cap_settling_seconds)
    shortest = shortest_block(washout)
    plans = []
    for times in CANDIDATES:
        block = shortest * times
        known, loads = pairs_of_traffic(traffic, block, washout, split=split)
        independent = (len(known) + 1) // 2
        if independent >= PAIRS_KNOWN_LEAST and (pairs := int((duration_seconds - block) // (2 * block))) >= 6:
            basis = f"{independent} pairs of blocks of recorded traffic ({cost_is})"
            # Twice as many: those that begin at odd blocks are among them.
            spread = spread_of_stretches(known, 2 * pairs)
            hours = _hours(loads, block, pairs)
            plans.append(_plan(block, washout, pairs, spread, _rate(traffic), basis, effect, hours))
    if not plans:
        length = max(each.began_at for each in traffic) - min(each.began_at for each in traffic)
        raise ValueError(
            f"the recorded traffic is {length:.0f} s long and the experiment {duration_seconds:.0f} s: both must have"
            f" {2 * PAIRS_KNOWN_LEAST} blocks of {shortest:.0f} s (4 wash-outs of {washout:.0f} s) or more"
        )
    return min(plans, key=lambda plan: plan.detectable)


def pairs_of_a_day(block_seconds: float) -> int:
    """After the first block, which is the control's."""
    return int((DAY_SECONDS - block_seconds) // (2 * block_seconds))


def _hours(loads: Sequence[float], block: float, pairs: int) -> Hours:
    """What the recorded traffic says of the hours that an experiment of so many pairs has not seen."""
    if pairs >= pairs_of_a_day(block):
        return Hours()
    swing = load_swing(loads, 2 * pairs)
    if swing >= SWING_LEAST:
        busy = f"busy hours of the recorded traffic have {swing:.1f} times the load of quiet ones"
        if not isfinite(swing):
            busy = "the recorded traffic has hours with nothing in them"
        return Hours(pairs_of_a_day(block), (
            f"the experiment is shorter than a day, and {busy}: what it finds, and what it can find, are of the hours"
            " it runs in; 24 h have them all"
        ))  # fmt: skip
    if len(loads) * block < DAY_SECONDS:
        return Hours(0, (
            f"the experiment is shorter than a day, and the recorded traffic is of {len(loads) * block / 3600:.1f} h:"
            " whether other hours differ is not known"
        ))  # fmt: skip
    return Hours()


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
    block: float, washout: float, pairs: int, spread: float, rate: float, basis: str, effect: float | None,
    hours: Hours | None = None,
) -> Plan:  # fmt: skip
    hours = hours or Hours()
    detectable = detectable_effect(spread, pairs)
    duration = block + 2 * pairs * block
    workflows = rate * (block - washout)
    said = []
    if workflows < 20:
        said.append(f"only {workflows:.0f} workflows in the measured part of a block: longer blocks are better")
    if effect is not None and detectable > effect:
        needed = max(pairs_needed(spread, effect), hours.pairs_least)
        said.append(
            f"an effect of {100 * effect:g} % cannot be found in {duration / 3600:.1f} h, where only"
            f" {100 * detectable:.1f} % can: {needed} pairs are needed, {(2 * needed + 1) * block / 3600:.1f} h"
        )
    elif detectable >= EFFECT_USELESS:
        said.append(f"only an effect of {100 * detectable:.0f} % or more can be found: plan a longer experiment")
    if hours.says:
        said.append(hours.says)
    return Plan(block, washout, pairs, duration, spread, detectable, workflows, basis, tuple(said))
