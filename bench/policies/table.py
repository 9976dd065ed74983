"""`joulegate-bench policies`: policies on the same traffic; joules, deadlines, how much of the room was used."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.policies import classics, fluid
from bench.policies.cells import CELLS, PROMISES, Cell, Promise
from bench.policies.lab import Outcome, Run, play
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

BASELINE = "passthrough"
SECONDS, CLASSICS_SECONDS = 1200.0, 600.0
NAMES = tuple(promise.name for promise in PROMISES)


class Row(NamedTuple):
    """A policy in a cell beside the baseline, over the same horizon, idle power included."""

    cell: str
    promise: str
    policy: str
    workflows: int
    joules_ratio: float
    """To the baseline's."""
    bound_ratio: float
    """No policy can go under it: every token in full steps, idle power all the time."""
    plain_bound_ratio: float
    """The same at the prices without a power limit, as hold-or-release.md has it. No strict bound: the card's own limit
    makes prompts cheaper."""
    misses_share: float | None
    baseline_misses_share: float | None
    stretch_p95: float
    baseline_stretch_p95: float
    refused: int
    event_microseconds: float

    @property
    def share(self) -> float:
        """Of the room under the baseline that the policy used."""
        return (1 - self.joules_ratio) / (1 - self.bound_ratio)

    @property
    def plain_share(self) -> float:
        """The same with the other bound."""
        return (1 - self.joules_ratio) / (1 - self.plain_bound_ratio)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `policies`."""
    parser.add_argument("--policy", action="append", metavar="NAME", help="(may be given again; default: joule)")
    parser.add_argument("--promise", action="append", choices=NAMES, help="only this (may be given again)")
    parser.add_argument("--workload", action="append", choices=sorted({cell.workload for cell in CELLS}))
    parser.add_argument(
        "--classics", action="store_true", help="instead: las under overload, parrot on joins and shared prefixes"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of arrivals (default: {SECONDS:g}; with --classics {CLASSICS_SECONDS:g})"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", metavar="NAME")
    parser.add_argument("--processes", type=int, default=cpu_count() or 1)
    parser.add_argument(
        "--caps", action="store_true", help="joule with caps against joule without, at the middle loads (default: 3x)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all rows as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Play all cells and print. BenchError for options that cannot be used."""
    from scheduler.policies import POLICIES

    policies = args.policy or ["joule"]
    args.seconds = args.seconds if args.seconds is not None else (CLASSICS_SECONDS if args.classics else SECONDS)
    for name in policies:
        if name not in POLICIES:
            raise BenchError(f"--policy: there is no policy {name!r}; there are: {', '.join(sorted(POLICIES))}")
    if not args.seconds > 0.0 or args.processes < 1:
        raise BenchError("--seconds and --processes must be above 0")
    if args.classics:
        for text in classics.lines(args.seconds, args.seed):
            print(text, flush=True)
        return 0
    if args.caps:
        return _caps(args)
    promises = [promise for promise in PROMISES if not args.promise or promise.name in args.promise]
    cells = [cell for cell in CELLS if not args.workload or cell.workload in args.workload]
    rows = list(table(policies, promises, cells, args))
    if args.output is not None:
        args.output.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return 0


def _caps(args: argparse.Namespace) -> int:
    from bench.policies import capped

    if args.policy or args.output is not None:
        raise BenchError("--caps compares joule with itself and prints only: leave --policy and --output out")
    promises = [promise for promise in PROMISES if promise.name in (args.promise or ["3x"])]
    cells = [cell for cell in capped.CELLS if not args.workload or cell.workload in args.workload]
    run = Run(cells[0], promises[0], BASELINE, (), args.seconds, args.seed, args.calibration)
    capped.show(cells, promises, run, args.processes)
    return 0


def table(
    policies: Sequence[str], promises: Sequence[Promise], cells: Sequence[Cell], args: argparse.Namespace
) -> Iterable[Row]:
    """All rows, printed as they come."""
    runs = [
        Run(cell, promise, policy, (), args.seconds, args.seed, args.calibration)
        for promise in promises
        for cell in cells
        for policy in (BASELINE, *policies)
    ]
    print(f"{'':12}{'':16}{'':12}{'workflows':>9}{'joules':>8}{'bound':>7}{'share':>7}{'late':>15}{'p95/alone':>15}")
    with ProcessPoolExecutor(args.processes) as pool:
        outcomes = iter(pool.map(play, runs))
        for promise in promises:
            of_policy: dict[str, list[Row]] = {name: [] for name in policies}
            clairvoyant: list[float] = []
            for _ in cells:
                baseline = next(outcomes)
                if (best := fluid.share(baseline)) is not None:
                    clairvoyant.append(best)
                for name in policies:
                    row = compare(baseline, next(outcomes))
                    of_policy[name].append(row)
                    print(line(row), flush=True)
                    yield row
            for name, rows in of_policy.items():
                print(summary(promise.name, name, rows), flush=True)
            if clairvoyant:
                mean = sum(clairvoyant) / len(clairvoyant)
                print(
                    f"{promise.name:12}who knew all and could pause calls without any slowdown: {mean:.1%}", flush=True
                )


def compare(baseline: Outcome, outcome: Outcome) -> Row:
    """Both over the horizon of the one that ended last."""
    horizon = max(baseline.ended_at, outcome.ended_at)
    joules, base = outcome.joules_until(horizon), baseline.joules_until(horizon)
    idle = outcome.idle_watts * horizon
    promised = outcome.run.promise.stretch is not None or outcome.run.promise.seconds is not None
    return Row(
        outcome.run.cell.name,
        outcome.run.promise.name,
        outcome.run.policy,
        outcome.workflows,
        joules / base,
        (min(outcome.bound_joules, baseline.bound_joules) + idle) / base,
        (min(outcome.plain_bound_joules, baseline.plain_bound_joules) + idle) / base,
        outcome.missed / outcome.workflows if promised else None,
        baseline.missed / baseline.workflows if promised else None,
        p95(outcome.stretches),
        p95(baseline.stretches),
        outcome.refused,
        1e6 * outcome.mind_seconds / max(outcome.events, 1),
    )


def p95(values: Sequence[float]) -> float:
    """The value that 19 of 20 do not exceed."""
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def line(row: Row) -> str:
    """A row as it is printed."""
    late = "" if row.misses_share is None else f"{row.misses_share:.1%} ({row.baseline_misses_share:.1%})"
    times = f"{row.stretch_p95:.2f} ({row.baseline_stretch_p95:.2f})"
    return (
        f"{row.promise:12}{row.cell:16}{row.policy:12}{row.workflows:>9}{row.joules_ratio:>8.3f}{row.bound_ratio:>7.3f}"
        f"{row.share:>7.0%}{late:>15}{times:>15}"
    )


def summary(promise: str, policy: str, rows: Sequence[Row]) -> str:
    """Means and the worst of a promise's rows."""
    mean = sum(row.share for row in rows) / len(rows)
    plain = sum(row.plain_share for row in rows) / len(rows)
    worst = max(row.joules_ratio for row in rows)
    return (
        f"{promise:12}{policy}: share of the room {mean:.1%} on average ({plain:.1%} with prices as without a power "
        f"limit); worst cell {worst:.3f} x the joules of {BASELINE}"
    )
