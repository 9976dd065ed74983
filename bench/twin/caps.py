"""Measured power caps: does the cap layer describe what a limit does to throughput and energy? One regime at a time."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from backends.twin.calibration import CapLayer
from backends.twin.cost import throttled
from bench.twin.figures import Comparison

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = ("workload", "concurrency", "cap_w", "tok_s", "mean_w", "j_per_token")


def read_caps(path: Path) -> dict[str, list[dict[str, float]]]:
    """Regime (workload and concurrency) → its rows, one for each cap."""
    regimes: dict[str, list[dict[str, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                figures = {name: float(row[name]) for name in COLUMNS[2:]}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: a row of caps needs numbers in {', '.join(COLUMNS[2:])}: {error}") from None
            regimes.setdefault(row["workload"], []).append(figures)
    return regimes


def compare_caps(regimes: dict[str, list[dict[str, float]]]) -> list[Comparison]:
    """The cap layer fitted to each regime (4 numbers: onset, exponent, demand, full throughput), against its rows."""
    found = []
    for regime, rows in regimes.items():
        cap, demand, full = _fit(rows)
        for row in rows:
            slowdown, watts = throttled(cap, cap.decode_exponent, demand, row["cap_w"])
            label = f"{regime}, {row['cap_w']:g} W"
            rate = full / slowdown
            found += [
                Comparison("cap", label, "time", "tok_s", row["tok_s"], rate),
                Comparison("cap", label, "energy", "j_per_token", row["j_per_token"], watts / rate),
                Comparison("cap", label, "power", "mean_w", row["mean_w"], watts),
            ]
    return found


def _fit(rows: Sequence[dict[str, float]]) -> tuple[CapLayer, float, float]:
    import numpy as np
    from scipy.optimize import least_squares

    def layer(x: Any) -> CapLayer:
        return CapLayer(onset=float(x[0]), decode_exponent=float(x[1]), prefill_exponent=float(x[1]), draw=0.995)

    def residuals(x: Any) -> Any:
        cap, demand, full = layer(x), x[2], x[3]
        errors = []
        for row in rows:
            slowdown, watts = throttled(cap, cap.decode_exponent, demand, row["cap_w"])
            errors += [np.log(full / slowdown / row["tok_s"]), np.log(watts / row["mean_w"])]
        return np.array(errors)

    most = max(row["mean_w"] for row in rows)
    start = [0.8, 0.5, most, max(row["tok_s"] for row in rows)]
    bounds = ([0.5, 0.05, 0.8 * most, 0.5 * start[3]], [1.2, 2.0, 1.3 * most, 1.5 * start[3]])
    best = least_squares(residuals, start, bounds=bounds, x_scale=start).x
    return layer(best), float(best[2]), float(best[3])
