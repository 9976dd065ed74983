"""`joulegate-bench energy-caps`: how close does the cap controller come to the best fixed cap in hindsight?

Four workloads at three loads on a simulated engine. What is promised is taken from the busiest hour without a cap: its
p95 of first tokens, of gaps between tokens and of workflow times, and a quarter more. The best fixed cap is the one of
least joules a token among all that keep the promises in the very run that the controller is then judged by.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from backends.twin.prior import prior_of
from bench.energy.caps_cost import show
from bench.energy.caps_play import WORKLOADS, Outcome, Play, Scene, Stage, Targets
from bench.programs import BenchError
from scheduler.energy.caps import CapRules
from scheduler.energy.model import EnergyModel
from scheduler.energy.work import Work

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

LOADS = {"light": 0.2, "medium": 0.5, "near saturation": 0.8}
"""Shares of the rate at which the engine has no idle time with PILOT_BATCH sequences in each step."""
BUSIEST = "near saturation"
PILOT_BATCH = 96.0
PILOT_SECONDS = 600.0
PILOT_WORKFLOWS = 40
ROOM = 1.25
"""Promised: p95 near saturation without a cap, times this."""
MISSES_MOST = 0.05
"""A p95 is kept if no more than this share misses it."""
RUNG_SHARE = 0.025
"""Fixed caps tried are so far apart, of the default limit: as fine as the controller's own."""
MORE_JOULES_MOST = 0.03


class Row(NamedTuple):
    """A workload at a load."""

    workload: str
    load: str
    rate: float
    targets: Targets
    free: Outcome
    """Without a cap."""
    best_watts: float
    best: Outcome
    controlled: Outcome

    @property
    def more_joules(self) -> float:
        """Of the controller, against the best fixed cap, a token."""
        return self.controlled.joules_per_token / self.best.joules_per_token - 1.0

    @property
    def saved(self) -> float:
        """By the controller, against no cap, a token."""
        return 1.0 - self.controlled.joules_per_token / self.free.joules_per_token

    @property
    def kept(self) -> bool:
        """No promise is missed by more than it allows, or than the best fixed cap misses it."""
        best = self.best.misses(self.targets)
        return all(
            share <= max(MISSES_MOST, other)
            for share, other in zip(self.controlled.misses(self.targets), best, strict=True)
        )

    @property
    def good(self) -> bool:
        """As much as was asked for."""
        return self.kept and self.more_joules <= MORE_JOULES_MOST


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `energy-caps`."""
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", metavar="NAME")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this (may be given again)")
    parser.add_argument("--load", action="append", choices=tuple(LOADS), help="only this (may be given again)")
    parser.add_argument(
        "--seconds", type=float, default=800.0, help="of arrivals near saturation, longer below (default: 800)"
    )
    parser.add_argument("--warm-seconds", type=float, default=240.0, help="of them, not counted (default: 240)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--told", action="store_true", help="the controller's model knows the truth and learns nothing")
    parser.add_argument("--cost", action="store_true", help="what it costs a gateway, and nothing else")
    parser.add_argument("--every-cap", action="store_true", help="try each fixed cap, not only where the best must be")


def run(args: argparse.Namespace) -> int:
    """Play and print; 1 if a scene is worse than it must be. BenchError for options that cannot be used."""
    if not args.seconds > args.warm_seconds >= 0:
        raise BenchError("--seconds must be above --warm-seconds, and that not below 0")
    if args.cost:
        show(args.calibration)
        return 0
    try:
        calibrations.load(args.calibration)
    except CalibrationError as error:
        raise BenchError(f"--calibration: {error}") from None
    print(f"seed {args.seed}, {args.calibration}, simulated; joules are of an output token, from second", end=" ")
    print(f"{args.warm_seconds:g} of {args.seconds:g} on; missed: TTFT / ITL / workflow time\n")
    print(f"{'workload':<11}{'load':<16}{'no cap J':>9}{'best W':>8}{'J':>8}{'missed %':>15}{'ours W':>8}{'J':>8}"
          f"{'missed %':>15}{'more':>7}{'saved':>7}{'moves':>6}{'ups':>4}{'bound':>6}  claimed saved")  # fmt: skip
    rows = []
    for row in _rows(args):
        rows.append(row)
        print(_line(row), flush=True)
    bad = [row for row in rows if not row.good]
    more = sum(row.more_joules for row in rows) / max(len(rows), 1)
    print(f"\n{len(rows) - len(bad)} of {len(rows)} within {MORE_JOULES_MOST:.0%} and all promises kept;", end=" ")
    print(f"{more:+.1%} joules a token on average, worst {max(row.more_joules for row in rows):+.1%}")
    return 1 if bad else 0


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    for workload in args.workload or WORKLOADS:
        full = capacity(args.calibration, workload)
        busiest = Scene(args.calibration, workload, LOADS[BUSIEST] * full, args.seconds, args.warm_seconds,
                        args.seed)  # fmt: skip
        default = calibrations.load(args.calibration).card.limit_watts_default
        targets = promised(Stage(busiest, Play(default)).run())
        for load in args.load or LOADS:
            longer = LOADS[BUSIEST] / LOADS[load]  # as many workflows at each load
            scene = busiest._replace(
                rate=LOADS[load] * full, seconds=longer * args.seconds, warm_seconds=longer * args.warm_seconds,
                targets=targets,
            )  # fmt: skip
            yield compare(scene, load, every_cap=args.every_cap, told=args.told)


def capacity(calibration: str, workload: str) -> float:
    """Workflows a second at which no time is left: what some of them ask for, at PILOT_BATCH sequences a step."""
    scene = Scene(calibration, workload, PILOT_WORKFLOWS / PILOT_SECONDS, PILOT_SECONDS, 0.0, 99)
    stage = Stage(scene, Play(calibrations.load(calibration).card.limit_watts_default))
    stage.run()
    totals, card = stage.engine.totals, stage.calibration.card
    decode = float(totals.decode_tokens)
    work = Work(decode / PILOT_BATCH, decode, totals.context_tokens, 0.0, float(totals.prefill_tokens),
                totals.attention_pairs, float(stage.player.calls))  # fmt: skip
    # Prompts come several to a step at this load; what a step with one costs more is theirs together.
    work = work._replace(prompts=min(work.prompts, work.steps))
    model = EnergyModel(prior_of(stage.calibration))
    busy = model.predict_window(work, PILOT_SECONDS, card.limit_watts_default * card.gpus).busy_seconds.value
    return len(stage.player.played) / busy


def promised(busiest: Outcome) -> Targets:
    """From a run without a cap."""
    return Targets(*(ROOM * p95(values) for values in (busiest.ttft, busiest.itl, busiest.stretch)))


def p95(values: tuple[float, ...]) -> float:
    """BenchError where there is nothing to take it of."""
    if not values:
        raise BenchError("--seconds: nothing was answered in that time")
    return sorted(values)[ceil((1 - MISSES_MOST) * len(values)) - 1]


def compare(scene: Scene, load: str, *, every_cap: bool = False, told: bool = False) -> Row:
    """A scene without a cap, under the best fixed one, and by the controller."""
    card = calibrations.load(scene.calibration).card
    step = RUNG_SHARE * card.limit_watts_default
    count = int((card.limit_watts_default - card.limit_watts_min) / step)
    caps = [card.limit_watts_default - number * step for number in range(count + 1)]
    known: dict[int, Outcome] = {}

    def at(number: int) -> Outcome:
        if number not in known:
            known[number] = Stage(scene, Play(caps[number])).run()
        return known[number]

    free = at(0)
    allowed = [max(MISSES_MOST, share) for share in free.misses(scene.targets)]

    def keeps(number: int) -> bool:
        return all(share <= most for share, most in zip(at(number).misses(scene.targets), allowed, strict=True))

    if every_cap:
        best = min(filter(keeps, range(count + 1)), key=lambda number: at(number).joules_per_token)
    else:
        # Lower caps are slower and, on this card, cheaper: the lowest that keeps all is the best.
        best, broken = 0, count + 1
        while broken - best > 1:
            middle = (best + broken) // 2
            best, broken = (middle, broken) if keeps(middle) else (best, middle)
    rules = CapRules(
        mode="actuate", ttft_seconds_p95=scene.targets.ttft_seconds, itl_seconds_p95=scene.targets.itl_seconds
    )
    controlled = Stage(scene, Play(None, rules, None if told else 0.3)).run()
    return Row(scene.workload, load, scene.rate, scene.targets, free, caps[best], at(best), controlled)


def _line(row: Row) -> str:
    def missed(outcome: Outcome) -> str:
        return " / ".join(f"{100 * share:.1f}" for share in outcome.misses(row.targets))

    ours = row.controlled
    saved = [joules / max(ours.joules, 1e-9) for joules in ours.saved_joules]
    claim = f"{saved[0]:.0%} ({saved[1]:.0%} to {saved[2]:.0%})" if ours.claimed_seconds else "nothing"
    return (
        f"{row.workload:<11}{row.load:<16}{row.free.joules_per_token:>9.3f}{row.best_watts:>8.1f}"
        f"{row.best.joules_per_token:>8.3f}{missed(row.best):>15}{ours.watts:>8.1f}{ours.joules_per_token:>8.3f}"
        f"{missed(ours):>15}{100 * row.more_joules:>+6.1f}%{100 * row.saved:>6.1f}%{ours.moves:>6}{len(ours.ups):>4}"
        f"{100 * ours.throttled_share:>5.0f}%  {claim:<22}" + ("" if row.good else "  ✗ ") + ", ".join(ours.ups)
    )  # fmt: skip


__all__ = ["add_options", "capacity", "compare", "promised", "run"]
