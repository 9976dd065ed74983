"""What does a report say of results? Points of its plots, ratios with their baseline, the time line of a workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load.results import Result

BASELINES = ("none", "passthrough", "fifo")
CALLS_SHOWN = 60
UNLIKE = 0.01
"""Output tokens that differ by more are not the same work, as in `compare`."""


class Point(NamedTuple):
    """A mean and its 95 % interval; low = high = y where there is none."""

    x: float
    y: float
    low: float
    high: float


class Ratio(NamedTuple):
    """J/workflow of a result ÷ that of its baseline; None and why where there is none."""

    result: Result
    baseline: Result | None
    joules: float | None
    seconds: float | None
    why: str


class TimeLine(NamedTuple):
    """One workflow: its calls in the order they were sent, (end of window, watts), and the span in seconds."""

    workflow: str
    calls: list[dict[str, Any]]
    critical: frozenset[str]
    watts: list[tuple[float, float]]
    span: tuple[float, float]


def mean(result: Result, name: str) -> float | None:
    """Of a figure of its summary; None: not measured."""
    value = result.meta.get("summary", {}).get(name, {}).get("mean")
    return None if value is None else float(value)


def point(result: Result, x: float | None, name: str) -> Point | None:
    """The figure over x, or None where either is not known."""
    y = mean(result, name)
    if x is None or y is None:
        return None
    each = result.meta["summary"][name]
    low, high = each["low"], each["high"]
    return Point(x, y, y if low is None else low, y if high is None else high)


def others(result: Result, *without: str) -> str:
    """What a configuration is besides these fields: results with the same differ in nothing else."""
    left_out = {"repeats", *without}
    return repr(sorted((key, value) for key, value in result.meta["spec"].items() if key not in left_out))


def _tokens(result: Result) -> float | None:
    import pyarrow.compute as pc

    column = result.rows("repeat", ["output_tokens"])["output_tokens"]
    return None if column.null_count or not len(column) else float(pc.mean(column).as_py())


def ratios(results: Sequence[Result]) -> list[Ratio]:
    """Each result beside the plainest policy with the same load, engine and limits."""
    found = []
    for result in results:
        same = [
            each
            for each in results
            if others(each, "policy", "policy_options") == others(result, "policy", "policy_options")
        ]
        named = {each.meta["spec"]["policy"]: each for each in same}
        base = next((named[name] for name in BASELINES if name in named), None)
        if base is None or base is result:
            found.append(
                Ratio(result, base, None, None, "is the baseline" if base else "no baseline among the results")
            )
            continue
        mine, its = _tokens(result), _tokens(base)
        if mine is None or not its or abs(mine / its - 1) > UNLIKE:
            found.append(
                Ratio(result, base, None, None, "unlike work: output tokens differ by more than 1 %, or unknown")
            )
            continue
        found.append(
            Ratio(result, base, _over(result, base, "joules_per_workflow"), _over(result, base, "workflow_p50_s"), "")
        )
    return found


def _over(result: Result, base: Result, name: str) -> float | None:
    mine, its = mean(result, name), mean(base, name)
    return mine / its if mine is not None and its else None


def critical_path(calls: Sequence[dict[str, Any]]) -> frozenset[str]:
    """From the last answer back, each time to the call that was answered last of those that were waited for."""
    named = {call["node"]: call for call in calls}
    path: set[str] = set()
    at = max(calls, key=lambda call: call["ended_s"], default=None)
    while at is not None and at["node"] not in path:
        path.add(at["node"])
        before = [named[name] for name in at["after"] or () if name in named]
        at = max(before, key=lambda call: call["ended_s"], default=None)
    return frozenset(path)


def time_line(result: Result) -> TimeLine | None:
    """Of the good workflow of median length in the first repeat; None where there is none."""
    import pyarrow.compute as pc

    table = result.rows("workflow", ["repeat", "workflow", "seconds", "good"])
    table = table.filter(pc.and_(pc.equal(table["repeat"], 1), table["good"])).sort_by("seconds")
    if not table.num_rows:
        return None
    chosen = table["workflow"][table.num_rows // 2].as_py()
    rows = result.rows("call", ["repeat", "workflow", "node", "after", "sent_s", "held_s", "ended_s", "good"])
    rows = rows.filter(pc.and_(pc.equal(rows["repeat"], 1), pc.equal(rows["workflow"], chosen)))
    calls = [each for each in rows.sort_by("sent_s").to_pylist() if each["sent_s"] is not None and each["good"]]
    if not calls:
        return None
    span = calls[0]["sent_s"], max(each["ended_s"] for each in calls)
    windows = result.rows("window", ["repeat", "start_s", "ended_s", "gpu_watts"]).to_pylist()
    watts = [
        (each["ended_s"], each["gpu_watts"])
        for each in windows
        if each["repeat"] == 1
        and each["gpu_watts"] is not None
        and each["ended_s"] >= span[0]
        and each["start_s"] <= span[1]
    ]
    watts[:0] = [(span[0], watts[0][1])] if watts else []
    return TimeLine(chosen, calls[:CALLS_SHOWN], critical_path(calls), watts, span)
