"""`joulegate-bench policies-mixed`: half of the workflows are batch, half are interactive. Are the latter any slower?

The same arrivals under `passthrough`; times of the interactive half side by side, and the joules of all.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.policies.cells import CELLS, Cell, Promise
from bench.policies.lab import Declaring, Outcome, Run, play
from bench.policies.table import BASELINE, p95
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from backends.twin.virtual import World
    from bench.policies.cells import Arrival

BATCH_SECONDS = 3600.0
SECONDS = 400.0
SLOWER_MOST = 1.03
MIXED = Promise("mixed")


class Halves(Declaring):
    """Each workflow is of the one half or the other, by its own coin."""

    def __init__(self, world: World, promise: Promise) -> None:
        super().__init__(world, promise)
        self._coin = random.Random("halves")

    def arrive(self, arrival: Arrival) -> None:
        """A workflow of the traffic comes."""
        batch = self._coin.random() < 0.5
        self.declare(arrival.workflow, BATCH_SECONDS if batch else None, "batch" if batch else "interactive")


class Row(NamedTuple):
    """A policy in a cell; ratios to the baseline."""

    cell: str
    policy: str
    interactive: int
    mean_ratio: float
    """Of the interactive workflows' times."""
    p95_ratio: float
    joules_ratio: float
    """Of all, with idle power until the last answer of either."""
    batch_late: int


def halves(outcome: Outcome) -> tuple[list[float], list[float]]:
    """(times of the interactive workflows over their time alone, seconds of the batch ones)."""
    coin = random.Random("halves")
    batch = [coin.random() < 0.5 for _ in outcome.stretches]
    interactive = [stretch for stretch, other in zip(outcome.stretches, batch, strict=True) if not other]
    return interactive, [seconds for seconds, other in zip(outcome.seconds, batch, strict=True) if other]


def compare(baseline: Outcome, outcome: Outcome) -> Row:
    """Both over the horizon of the one that ended last."""
    (mine, batch), (theirs, _) = halves(outcome), halves(baseline)
    horizon = max(baseline.ended_at, outcome.ended_at)
    return Row(
        outcome.run.cell.name,
        outcome.run.policy,
        len(mine),
        (sum(mine) / len(mine)) / (sum(theirs) / len(theirs)),
        p95(mine) / p95(theirs),
        outcome.joules_until(horizon) / baseline.joules_until(horizon),
        sum(seconds > BATCH_SECONDS for seconds in batch),
    )


def solve(run: Run) -> Outcome:
    """One play."""
    return play(run, Halves)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `policies-mixed`."""
    parser.add_argument("--policy", action="append", metavar="NAME", help="(may be given again; default: joule)")
    parser.add_argument("--workload", action="append", choices=sorted({cell.workload for cell in CELLS}))
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of arrivals (default: {SECONDS:g})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=cpu_count() or 1)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all rows as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Play all cells and print: 0, or 1 if an interactive half is slower than it may be. BenchError for bad options."""
    from scheduler.policies import POLICIES

    policies = args.policy or ["joule"]
    for name in policies:
        if name not in POLICIES:
            raise BenchError(f"--policy: there is no policy {name!r}; there are: {', '.join(sorted(POLICIES))}")
    if not args.seconds > 0 or args.processes < 1:
        raise BenchError("--seconds and --processes must be above 0")
    cells = [cell for cell in CELLS if not args.workload or cell.workload in args.workload]
    rows = table(cells, policies, args)
    if args.output is not None:
        args.output.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return 0 if all(max(row.mean_ratio, row.p95_ratio) <= SLOWER_MOST for row in rows) else 1


def table(cells: Sequence[Cell], policies: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """All rows, printed as they come."""
    runs = [Run(cell, MIXED, policy, (), args.seconds, args.seed) for cell in cells for policy in (BASELINE, *policies)]
    print(f"{'':16}{'':14}{'interactive':>12}{'mean':>8}{'p95':>8}{'joules of all':>15}{'batch late':>12}")
    rows = []
    with ProcessPoolExecutor(args.processes) as pool:
        outcomes = pool.map(solve, runs)
        for _ in cells:
            baseline = next(outcomes)
            for _ in policies:
                row = compare(baseline, next(outcomes))
                rows.append(row)
                print(
                    f"{row.cell:16}{row.policy:14}{row.interactive:>12}{row.mean_ratio:>8.3f}{row.p95_ratio:>8.3f}"
                    f"{row.joules_ratio:>15.3f}{row.batch_late:>12}",
                    flush=True,
                )
    return rows
