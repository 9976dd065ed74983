"""Are the numbers of an experiment right? Each property on thousands of composed experiments."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.experiments.pairs import table_of
from bench.experiments.randomise import quantile_test, ratio_test
from bench.experiments.ratio import paired
from bench.experiments.sequence import confidence_sequence
from scheduler.experiments.definition import TREATMENT, Definition, Guardrail
from scheduler.experiments.evidence import sharpest_scale
from scheduler.experiments.guardrails import Guard
from scheduler.experiments.hours import SWING_LEAST, load_swing, spread_of_stretches
from scheduler.experiments.metrics import METRICS
from scheduler.experiments.plan import detectable_effect, pairs_needed, pairs_of_a_day

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.experiments.compose import Composer, Sums, Traffic
    from scheduler.experiments.definition import Arm

DRAWS = 999
LEVEL = 0.05


class Share(NamedTuple):
    """So many of so many experiments."""

    found: int
    of: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.found / max(self.of, 1)

    @property
    def error(self) -> float:
        """Standard error of it."""
        return float(np.sqrt(max(self.share * (1 - self.share), 1e-12) / max(self.of, 1)))


def ratios(seen: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numerator and denominator of joules a workflow."""
    return seen.joules, seen.ended


def logs(seen: Sums) -> NDArray[np.float64]:
    """The pairs' log ratios."""
    found: NDArray[np.float64] = np.diff(np.log(seen.joules / seen.ended), axis=1)[:, 0]
    return found


def false_positives(composer: Composer, traffic: Traffic, count: int, pairs: int, seed: int) -> tuple[Share, Share]:
    """A/A: experiments whose randomisation test, and whose delta-method interval, find a difference at 5 %."""
    tested = excluded = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic, aa=True)
        up, down = ratios(composer.seen(made, aa=True))
        tested += ratio_test(up, down, seed + number, draws=DRAWS).p_value <= LEVEL
        estimate = paired(up, down)
        excluded += not estimate.low <= 0 <= estimate.high
    return Share(tested, count), Share(excluded, count)


def false_positives_p95(composer: Composer, traffic: Traffic, count: int, pairs: int, seed: int) -> Share:
    """The same of the randomisation test of p95 workflow time."""
    tested = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic, aa=True)
        table = table_of(composer.rows(made, aa=True), METRICS["p95_workflow_seconds"])
        tested += quantile_test(table, seed + number, 199).p_value <= LEVEL
    return Share(tested, count)


def ever_excluded(
    composer: Composer, traffic: Traffic, count: int, pairs: int, seed: int, *, aa: bool
) -> tuple[Share, float]:
    """Experiments in which the confidence sequence at any time left the truth out: the mean of the true effects of the
    pairs so far. And its mean half-width at the end."""
    ever, widths = 0, []
    scale = sharpest_scale(planned_spread(recorded(composer, traffic, seed), pairs), pairs)
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic, aa=aa)
        low, high = confidence_sequence(logs(composer.seen(made, aa=aa)), scale, LEVEL)
        truth = np.zeros(pairs) if aa else np.cumsum(composer.true_differences(made)) / np.arange(1, pairs + 1)
        ever += bool(((truth < low) | (truth > high)).any())
        widths.append((high[-1] - low[-1]) / 2)
    return Share(ever, count), float(np.mean(widths))


def covered(
    composer: Composer, traffic: Traffic, count: int, pairs: int, seed: int, truth: float | None = None
) -> Share:
    """Experiments whose 95 % interval has the true effect in it: on the very same arrivals, or (`truth`) of the traffic
    as a whole."""
    inside = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic)
        estimate = paired(*ratios(composer.seen(made)))
        true = composer.true_effect(made) if truth is None else truth
        inside += estimate.low <= np.expm1(true) <= estimate.high
    return Share(inside, count)


def true_effect(composer: Composer, traffic: Traffic, seed: int) -> float:
    """Log of the ratio of all joules over all workflows, both arms on the same arrivals, over very much traffic."""
    return composer.true_effect(composer.compose(200_000, seed, traffic))


def recorded(composer: Composer, traffic: Traffic, seed: int, pairs: int = 20_000) -> Sums:
    """Traffic as it was under the control, before the experiment."""
    return composer.seen(composer.compose(pairs, seed + 1_000_000, traffic, aa=True), aa=True)


def planned_spread(seen: Sums, pairs: int) -> float:
    """As `plan` takes it from recorded traffic, for an experiment of so many pairs."""
    sums = np.stack([seen.joules, seen.ended], axis=-1).tolist()
    return spread_of_stretches([((a[0], a[1]), (b[0], b[1])) for a, b in sums], pairs)


class Power(NamedTuple):
    """Of an experiment of so many pairs, at the effect that `plan` calls detectable with them."""

    effect: float
    spread: float
    pairs: int
    swing: float
    """Of the load, between stretches of so many pairs."""
    found: Share


def short_power(composer: Composer, traffic: Traffic, count: int, seed: int) -> Power:
    """With the fewest pairs for which the treatment's effect is detectable, were all hours alike."""
    effect = float(np.expm1(abs(true_effect(composer, traffic, seed))))
    seen = recorded(composer, traffic, seed)
    pairs = pairs_needed(planned_spread(seen, len(seen.began)), effect)
    pairs = pairs_needed(planned_spread(seen, pairs), effect)
    return _power(composer, traffic, count, seed, effect, pairs)


def power(composer: Composer, traffic: Traffic, count: int, seed: int) -> Power:
    """As `plan` would have it: where the load of so short an experiment is a matter of the hour, of whole days. They
    find smaller effects than the treatment's: then of a treatment that does the same, but less of it."""
    short = short_power(composer, traffic, 0, seed)
    if short.swing < SWING_LEAST:
        return _power(composer, traffic, count, seed, short.effect, short.pairs)
    day = pairs_of_a_day(composer.library.shape.block_seconds)
    pairs = day * ceil(short.pairs / day)
    effect = detectable_effect(planned_spread(recorded(composer, traffic, seed), pairs), pairs)
    return _power(_weakened(composer, traffic, seed, effect), traffic, count, seed, effect, pairs)


def _power(composer: Composer, traffic: Traffic, count: int, seed: int, effect: float, pairs: int) -> Power:
    seen = recorded(composer, traffic, seed)
    found = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic)
        found += ratio_test(*ratios(composer.seen(made)), seed + number, draws=DRAWS).p_value <= LEVEL
    swing = load_swing(seen.began.mean(axis=1).tolist(), pairs)
    return Power(effect, planned_spread(seen, pairs), pairs, swing, Share(found, count))


def _weakened(composer: Composer, traffic: Traffic, seed: int, effect: float) -> Composer:
    """So that the true effect has this size: by bisection."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        found = np.expm1(abs(true_effect(composer.weakened(middle), traffic, seed)))
        low, high = (middle, high) if found < effect else (low, middle)
    return composer.weakened((low + high) / 2)


def false_stops(
    composer: Composer, traffic: Traffic, count: int, pairs: int, seed: int, arms: tuple[Arm, Arm]
) -> Share:
    """A/A experiments that a guardrail of p95 + 5 % stopped, at the rule's own error of 0.1 %."""
    shape = composer.library.shape
    stopped = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic, aa=True)
        definition = Definition(
            "aa", (arms[0], arms[0]), block_seconds=shape.block_seconds, washout_seconds=shape.washout_seconds,
            pairs=pairs, aa=True, seed=seed + number, guardrails=(Guardrail("p95_workflow_seconds", 0.05),),
        )  # fmt: skip
        stopped += _stops(Guard(definition.guardrails[0], definition), composer, made)
    return Share(stopped, count)


def _stops(guard: Guard, composer: Composer, made: object) -> bool:
    for row in composer.rows(made, aa=True):  # type: ignore[arg-type]
        if row.arm == TREATMENT:
            bad = 0
            for known, seconds in enumerate(row.workflow_seconds, 1):
                bad += bool(guard.is_bad(seconds, False, None))
                if known % 10 == 0 and guard.judge(bad, known).stop:
                    return True
        guard.learn(row)
        if guard.judge(0, 0).stop:
            return True
    return False
