"""The table of `joulegate-bench experiments`: each property, what was found, what it must be."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from bench.experiments import simulated
from bench.experiments.compose import Composer, SplitComposer
from bench.experiments.example import example
from bench.experiments.library import build
from bench.experiments.live import LiveRun, knows_late
from bench.experiments.naive import Coin, compare
from bench.experiments.pairs import differences, table_of
from bench.experiments.stage import Shape, Stage
from bench.programs import BenchError, default_work_dir
from scheduler.experiments.definition import Arm, Definition, Guardrail
from scheduler.experiments.guardrails import quantile
from scheduler.experiments.metrics import METRICS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bench.experiments.compose import Traffic
    from bench.experiments.simulated import Share

RATES = (0.4, 0.55, 0.75, 1.05, 1.45, 2.0, 2.8)
"""Workflows a second."""
TRAFFICS: tuple[Traffic, ...] = ("stationary", "diurnal")
PAIRS = 60
PAIRS_LOOKED_AT = 200
GUARDED_RATE = 2.0
PILOT_SECONDS = 600.0
NAIVE_RATE = 2.8
WHOLE_RUNS, WHOLE_PAIRS = 4, 50


class Line(NamedTuple):
    """A property: within [low, high] or not."""

    says: str
    value: float
    low: float | None
    high: float | None
    note: str

    @property
    def good(self) -> bool:
        """As it must be; what is only shown is always."""
        return self.low is None or self.high is None or self.low <= self.value <= self.high


def run(args: argparse.Namespace) -> int:
    """Play, compose, print; 1 if a property does not hold. BenchError for options that cannot be used."""
    for name, least in (("experiments", 50), ("items", 5), ("max_in_flight", 1), ("stops", 1)):
        if getattr(args, name) < least:
            raise BenchError(f"--{name.replace('_', '-')} must be at least {least}")
    options = {"max_in_flight": args.max_in_flight} if args.treatment == "fifo" else {}
    arms = (Arm("passthrough"), Arm(args.treatment, options))
    if arms[0].same_as(arms[1]):
        raise BenchError("--treatment must not be the control, passthrough")
    try:
        calibrations.load(args.calibration)
    except CalibrationError as error:
        raise BenchError(f"--calibration: {error}") from None
    shape = Shape(args.calibration)
    if args.example is not None:
        return example(args.example, shape, arms, args.seed)
    name = f"{args.calibration}-{args.treatment}-{args.max_in_flight}-{args.items}-{args.seed}.json"
    path = default_work_dir() / "experiments" / name
    if args.fresh:
        path.unlink(missing_ok=True)
    started = monotonic()
    print(
        f"blocks of {shape.block_seconds:g} s on the twin ({args.calibration}, simulated), {arms[0]} against"
        f" {arms[1]},\n{args.items} stretches of arrivals at each of {len(RATES)} loads, seed {args.seed}",
        flush=True,
    )
    library = build(shape, arms, RATES, args.items, args.seed, path)
    print(f"played in {monotonic() - started:.0f} s (kept: {path})\n", flush=True)
    composer = Composer(library)
    bad = 0
    print(f"{'property':<74}{'found':>9}{'must':>16}  of")
    for line in _lines(composer, args, arms, shape):
        must = "shown" if line.low is None or line.high is None else f"{100 * line.low:.3g} to {100 * line.high:.3g} %"
        print(
            f"{line.says:<74}{100 * line.value:>7.1f} %{must:>16}  {line.note}{'' if line.good else '  ✗'}", flush=True
        )
        bad += not line.good
    print(f"\n{'all hold' if not bad else f'{bad} do not hold'}; {monotonic() - started:.0f} s")
    return 1 if bad else 0


def _told(share: Share, note: str = "") -> str:
    return f"{share.of} experiments (± {100 * share.error:.1f}){note}"


def _lines(composer: Composer, args: argparse.Namespace, arms: tuple[Arm, Arm], shape: Shape) -> Iterator[Line]:
    count, seed = args.experiments, args.seed * 10_000_000
    for traffic in TRAFFICS:
        test, interval = simulated.false_positives(composer, traffic, count, PAIRS, seed)
        note = f", {PAIRS} pairs"
        yield Line(f"A/A false positives, randomisation test, {traffic}", test.share, 0.035, 0.065, _told(test, note))
        yield Line(f"A/A: delta-method interval without 0, {traffic}", interval.share, 0.035, 0.065,
                   _told(interval, note))  # fmt: skip
        p95 = simulated.false_positives_p95(composer, traffic, count // 2, PAIRS // 2, seed)
        yield Line(f"A/A false positives, p95 workflow time, {traffic}", p95.share, 0.035, 0.065,
                   _told(p95, f", {PAIRS // 2} pairs"))  # fmt: skip
    for traffic in TRAFFICS:
        for aa in (True, False):
            ever, width = simulated.ever_excluded(composer, traffic, count, PAIRS_LOOKED_AT, seed, aa=aa)
            kind = "A/A" if aa else "A/B"
            note = f", {PAIRS_LOOKED_AT} looks; ± {100 * width:.1f} % then"
            yield Line(f"confidence sequence ever excludes the truth, {kind}, {traffic}", ever.share, 0.0, 0.05,
                       _told(ever, note))  # fmt: skip
    for traffic in TRAFFICS:
        inside = simulated.covered(composer, traffic, count, PAIRS, seed)
        yield Line(f"95 % interval covers the effect on the same arrivals, {traffic}", inside.share, 0.92, 0.97,
                   _told(inside, f", {PAIRS} pairs"))  # fmt: skip
    truth = simulated.true_effect(composer, "stationary", seed)
    inside = simulated.covered(composer, "stationary", count, PAIRS, seed, truth)
    yield Line("95 % interval covers the effect on all traffic, stationary", inside.share, 0.92, 0.97,
               _told(inside, f"; it is {100 * np.expm1(truth):+.2f} %"))  # fmt: skip
    yield from _power(composer, "", count, seed)
    yield from _split(SplitComposer(composer.library), count, seed)
    stops = simulated.false_stops(composer, "diurnal", max(20, count // 10), 144, seed, arms)
    yield Line("A/A stopped by a guardrail of p95 +5 %, diurnal, 144 pairs", stops.share, 0.0, 0.02, _told(stops))
    yield _stops(shape, args)
    yield _whole_runs(composer, shape, args, arms)
    yield from _naive(shape, args, arms)


def _split(composer: Composer, count: int, seed: int) -> Iterator[Line]:
    """Split and swap, on two engines of which one takes 6 % more joules."""
    for traffic in TRAFFICS:
        test, interval = simulated.false_positives(composer, traffic, count, PAIRS, seed)
        note = f", {PAIRS} pairs"
        yield Line(f"split and swap: A/A false positives, {traffic}", test.share, 0.035, 0.065, _told(test, note))
        yield Line(f"split and swap: A/A, interval without 0, {traffic}", interval.share, 0.035, 0.065,
                   _told(interval, note))  # fmt: skip
        ever, width = simulated.ever_excluded(composer, traffic, count, PAIRS_LOOKED_AT, seed, aa=False)
        yield Line(f"split and swap: sequence ever excludes the truth, {traffic}", ever.share, 0.0, 0.05,
                   _told(ever, f", {PAIRS_LOOKED_AT} looks; ± {100 * width:.1f} % then"))  # fmt: skip
        inside = simulated.covered(composer, traffic, count, PAIRS, seed)
        yield Line(f"split and swap: 95 % interval covers the effect, {traffic}", inside.share, 0.92, 0.97,
                   _told(inside, note))  # fmt: skip
    yield from _power(composer, "split and swap: ", count, seed)


def _power(composer: Composer, design: str, count: int, seed: int) -> Iterator[Line]:
    def told(power: simulated.Power) -> str:
        return _told(power.found, f"; {100 * power.effect:.1f} % with {power.pairs} pairs, spread"
                     f" {100 * power.spread:.1f} %, load × {power.swing:.1f} from hour to hour")  # fmt: skip

    for traffic in TRAFFICS:
        power = simulated.power(composer, traffic, count, seed)
        yield Line(f"{design}power at what the plan calls detectable at 80 %, {traffic}", power.found.share, 0.75, 0.85,
                   told(power))  # fmt: skip
    power = simulated.short_power(composer, "diurnal", count, seed)
    yield Line(f"{design}… in less than a day, which the plan warns of, diurnal", power.found.share, None, None,
               told(power))  # fmt: skip


def _stops(shape: Shape, args: argparse.Namespace) -> Line:
    """Whole runs: a treatment that holds calls until p95 is twice what it was."""
    knows_late()
    hold = _harm(shape, args.seed)
    within, blocks = 0, []
    for number in range(args.stops):
        definition = Definition(
            f"harm-{number}", (Arm("passthrough"), Arm("late", {"hold_ms": hold})), seed=args.seed + number,
            block_seconds=shape.block_seconds, washout_seconds=shape.washout_seconds, pairs=6,
            guardrails=(Guardrail("p95_workflow_seconds", 0.05),),
        )  # fmt: skip
        live = LiveRun(definition, shape, f"harm {args.seed + number}", lambda now: GUARDED_RATE, GUARDED_RATE)
        ran = live.run().experiment
        first = ran.schedule.block(0 if ran.schedule.block(0).arm else 1).start
        if ran.state == "stopped" and ran.ended_at is not None:
            blocks.append((ran.ended_at - first) / shape.block_seconds)
            within += blocks[-1] <= 1.0
    median = sorted(blocks)[len(blocks) // 2] * shape.block_seconds if blocks else float("nan")
    return Line("guardrail stops within one block of p95 × 2", within / args.stops, 0.99, 1.0,
                f"{args.stops} runs on the twin, {hold} ms held a call; median {median:.0f} s of the block's"
                f" {shape.block_seconds:g}")  # fmt: skip


def _harm(shape: Shape, seed: int) -> int:
    """Milliseconds that each call must be held for p95 to be twice what it is: by bisection on whole runs."""

    def p95(arm: Arm) -> float:
        stage = Stage(shape.calibration, (arm, arm), Coin(0))
        stage.traffic(f"pilot {seed}", lambda now: GUARDED_RATE, GUARDED_RATE, PILOT_SECONDS)
        stage.run(PILOT_SECONDS + 100.0)
        return quantile([each.seconds for each in stage.player.played], 0.95)

    goal = 2 * p95(Arm("passthrough"))
    low, high = 1, 8000
    while high - low > 20:
        middle = (low + high) // 2
        low, high = (middle, high) if p95(Arm("late", {"hold_ms": middle})) < goal else (low, middle)
    return high


def _whole_runs(composer: Composer, shape: Shape, args: argparse.Namespace, arms: tuple[Arm, Arm]) -> Line:
    """Is composing right? Whole runs on the twin whose load goes as composed experiments' does, block after block."""
    rng = np.random.default_rng(args.seed)
    found: list[float] = []
    for number in range(WHOLE_RUNS):
        definition = Definition(
            f"whole-{number}", arms, seed=args.seed + number, block_seconds=shape.block_seconds,
            washout_seconds=shape.washout_seconds, pairs=WHOLE_PAIRS,
        )  # fmt: skip
        loads = composer.loads(definition.blocks, rng, "stationary")

        def rate(now: float, loads: NDArray[np.int64] = loads) -> float:
            block = int(now / shape.block_seconds) - 1
            return RATES[loads[min(max(block, 0), len(loads) - 1)]]

        live = LiveRun(definition, shape, f"whole {args.seed + number}", rate, max(RATES)).run()
        found += differences(table_of(live.rows, METRICS["joules_per_workflow"])).tolist()
    composed = simulated.logs(composer.seen(composer.compose(20_000, args.seed, "stationary")))
    spread, other = float(np.std(found)), float(np.std(composed))
    return Line("spread of a pair's difference: whole runs over composed ones", spread / other, None, None,
                f"{100 * spread:.1f} and {100 * other:.1f} %; mean {100 * float(np.mean(found)):+.1f} (± "
                f"{100 * spread / len(found) ** 0.5:.1f}) and {100 * float(np.mean(composed)):+.1f} %;"
                f" {len(found)} pairs in {WHOLE_RUNS} runs")  # fmt: skip


def _naive(shape: Shape, args: argparse.Namespace, arms: tuple[Arm, Arm]) -> Iterator[Line]:
    """A coin for each request on one engine, against the truth."""
    rows = [compare(shape, arms, NAIVE_RATE, 900.0, f"naive {args.seed + number}") for number in range(5)]
    true_seconds, coin_seconds, true_joules, coin_joules = np.mean(np.array(rows), axis=0).tolist()
    runs = f"5 runs of 900 s at {NAIVE_RATE:g} workflows a second"
    yield Line("a coin per request: what it says of the mean time of a call", coin_seconds, None, None,
               f"the truth is {100 * true_seconds:+.1f} % ({runs})")  # fmt: skip
    yield Line("a coin per request: what it says of joules a token", coin_joules, None, None,
               f"the truth is {100 * true_joules:+.1f} %; one meter cannot tell the arms apart")  # fmt: skip
