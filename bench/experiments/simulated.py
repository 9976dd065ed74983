"""Are the numbers of an experiment right? Each property on thousands of composed experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.experiments.pairs import table_of
from bench.experiments.randomise import quantile_test, ratio_test
from bench.experiments.ratio import paired
from bench.experiments.sequence import confidence_sequence
from scheduler.experiments.definition import TREATMENT, Definition, Guardrail
from scheduler.experiments.evidence import sharpest_scale
from scheduler.experiments.guardrails import Guard
from scheduler.experiments.metrics import METRICS
from scheduler.experiments.plan import detectable_effect, pairs_needed, spread_of_sums

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
    scale = sharpest_scale(planned_spread(composer, traffic, seed), pairs)
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


def planned_spread(composer: Composer, traffic: Traffic, seed: int, pairs: int = 20_000) -> float:
    """As `plan` takes it from traffic that was recorded under the control."""
    seen = composer.seen(composer.compose(pairs, seed + 1_000_000, traffic, aa=True), aa=True)
    sums = np.stack([seen.joules, seen.ended], axis=-1).tolist()
    return spread_of_sums([((a[0], a[1]), (b[0], b[1])) for a, b in sums])


class Power(NamedTuple):
    """`pairs` is what `plan` asks for to find the library's true effect."""

    effect: float
    spread: float
    pairs: int
    detectable: float
    found: Share


def power(composer: Composer, traffic: Traffic, count: int, seed: int) -> Power:
    """How often the true effect is found by the number of pairs at which the plan calls it detectable at 80 %."""
    effect = float(np.expm1(abs(true_effect(composer, traffic, seed))))
    spread = planned_spread(composer, traffic, seed)
    pairs = pairs_needed(spread, effect)
    found = 0
    for number in range(count):
        made = composer.compose(pairs, seed + number, traffic)
        found += ratio_test(*ratios(composer.seen(made)), seed + number, draws=DRAWS).p_value <= LEVEL
    return Power(effect, spread, pairs, detectable_effect(spread, pairs), Share(found, count))


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
