"""What is a result to its baseline? Repeat by repeat, over one horizon, with an interval; and which one that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.load.compare import SAME_LOAD, check, equal_horizon, ratio_of
from bench.load.figures import Interval
from bench.load.report_data import BASELINES, MANNER, words
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load.report_data import Run

NEAR = ("in_flight", "cap_watts", "stretch", "deadline_ms", "workflow_class")
"""Besides the policy, what may differ between a result and its baseline: as little of it as can be."""
NONE = Interval(None, None, None, 0)


class Ratio(NamedTuple):
    """A result ÷ its baseline, each with its 95 % interval over paired repeats; or why there is none."""

    run: Run
    baseline: Run | None
    joules: Interval
    seconds: Interval
    differs: str
    """In what, besides the policy and how workflows are told of."""
    why: str = ""


def baseline_of(run: Run, runs: Sequence[Run], named: Run | None = None) -> Run | None:
    """The named one if it played the same load; else the plainest policy there, as alike as can be; for that policy
    itself the one with the widest limits. None: there is none, or it is its own."""
    if named is not None:
        return named if named is not run and same_load(run, named) else None
    same = [each for each in runs if same_load(run, each) and each.spec["engine"] == run.spec["engine"]]
    plainest = next((name for name in BASELINES if any(each.spec["policy"] == name for each in same)), None)
    if plainest is None:
        return None
    candidates = [each for each in same if each.spec["policy"] == plainest]
    if run.spec["policy"] != plainest:
        return min(candidates, key=lambda each: _unlike(run, each))
    wide = max(candidates, key=_width)
    return None if wide is run else wide


def same_load(a: Run, b: Run) -> bool:
    """Repeat n of one played what repeat n of the other did."""
    return all(a.spec[name] == b.spec[name] for name in SAME_LOAD)


def _unlike(a: Run, b: Run) -> tuple[int, int]:
    return (
        sum(a.spec[name] != b.spec[name] for name in NEAR),
        sum(a.spec[name] != b.spec[name] for name in MANNER if name != "policy"),
    )


def _width(run: Run) -> tuple[float, float]:
    cap, batch = run.spec["cap_watts"], run.spec["in_flight"]
    return (float("inf") if cap is None else cap, float("inf") if batch is None else batch)


def ratio(run: Run, base: Run | None) -> Ratio:
    """Run ÷ base, or why it cannot be told."""
    if base is None:
        return Ratio(run, None, NONE, NONE, "", "is the baseline, or there is none")
    differs = words(run, [name for name in NEAR if run.spec[name] != base.spec[name]])
    try:
        repeats = check(base.result, run.result)
    except BenchError as error:
        return Ratio(run, base, NONE, NONE, differs, str(error))
    joules: list[list[float | None]] = [[], []]
    seconds: list[list[float | None]] = [[], []]
    for repeat in repeats:
        rows = dict(base.rows[repeat]), dict(run.rows[repeat])
        for mine, row, value in zip(joules, rows, equal_horizon(*rows), strict=True):
            mine.append(value / row["good_workflows"] if value is not None and row["good_workflows"] else None)
        for mine, each in zip(seconds, (base, run), strict=True):
            mine.append(each.repeats.get(repeat, {}).get("workflow_p50_s"))
    return Ratio(run, base, ratio_of(*joules), ratio_of(*seconds), differs)


def ratios(runs: Sequence[Run], named: Run | None = None) -> list[Ratio]:
    """Of all."""
    return [ratio(run, baseline_of(run, runs, named)) for run in runs]
