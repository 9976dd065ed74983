"""`joulegate-bench policies --caps`: what does `joule` save more where the cap controller may set the card's limit?"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from bench.policies.cells import Cell, Promise
from bench.policies.lab import Run, play
from bench.policies.table import BASELINE, p95

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.policies.lab import Outcome

CELLS = (
    Cell("chain", 4.0), Cell("copilot", 2.0), Cell("coding", 2.0), Cell("map-reduce", 4.0), Cell("composite", 4.0),
)  # fmt: skip
"""The middle loads."""
POLICY = "joule"


def show(cells: Sequence[Cell], promises: Sequence[Promise], run: Run, processes: int) -> list[float]:
    """Play each cell under the baseline, the policy, and the policy with caps, and print; returns the ratios of the
    last two. `run` says how long, with which seed and engine."""
    runs = [
        run._replace(cell=cell, promise=promise, policy=policy, caps=caps)
        for promise in promises
        for cell in cells
        for policy, caps in ((BASELINE, False), (POLICY, False), (POLICY, True))
    ]
    print(f"{'':8}{'':16}{'workflows':>10}{'joules to ' + BASELINE:>24}{'with caps':>11}{'to ' + POLICY:>10}"
          f"{'late: ' + BASELINE:>19}{POLICY:>8}{'caps':>7}{'p95/deadline':>14}{'mean cap':>10}")  # fmt: skip
    ratios = []
    with ProcessPoolExecutor(processes) as pool:
        outcomes = iter(pool.map(play, runs))
        for _ in range(len(promises) * len(cells)):
            text, ratio = line(next(outcomes), next(outcomes), next(outcomes))
            ratios.append(ratio)
            print(text, flush=True)
    print(f"{1 - sum(ratios) / len(ratios):.1%} fewer joules than {POLICY} without caps, mean of the cells;", end=" ")
    print(f"least {1 - max(ratios):.1%}, most {1 - min(ratios):.1%}")
    return ratios


def line(baseline: Outcome, free: Outcome, capped: Outcome) -> tuple[str, float]:
    """A row as it is printed, and the joules with caps to those without: over the horizon of the one that ended last,
    idle power included."""
    horizon = max(one.ended_at for one in (baseline, free, capped))
    base, without, under = (one.joules_until(horizon) for one in (baseline, free, capped))
    late = [f"{one.missed / one.workflows:.1%}" for one in (baseline, free, capped)]
    promise = capped.run.promise
    allowed = promise.stretch
    tail = "" if allowed is None else f"{p95(capped.stretches) / allowed:.2f}"
    return (
        f"{promise.name:8}{capped.run.cell.name:16}{capped.workflows:>10}{without / base:>24.3f}{under / base:>11.3f}"
        f"{under / without:>10.3f}{late[0]:>19}{late[1]:>8}{late[2]:>7}{tail:>14}{capped.limit_watts:>8.0f} W"
    ), under / without
