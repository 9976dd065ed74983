"""Where did a workflow's time go? Its calls with holds, the critical path, the power underneath."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.report_data import BASELINES, MANNER, groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load.report_data import Run
    from bench.load.results import Result

CALLS_LIKED = 40
"""Workflows with more calls than that are shown where there are no smaller ones."""
ARMS_MAX = 3
CALL_COLUMNS = ["repeat", "workflow", "node", "after", "sent_s", "held_s", "ended_s", "good"]


class TimeLine(NamedTuple):
    """One workflow under one policy. Seconds from when it should have begun."""

    run: Run
    workflow: str
    calls: list[dict[str, Any]]
    critical: frozenset[str]
    watts: list[tuple[float, float]]
    """(end of window, mean over it); empty where nothing was measured."""
    seconds: float
    deadline_seconds: float | None


def arms(runs: Sequence[Run]) -> list[Run]:
    """The runs of a workload whose time lines are worth most side by side: with most policies; with times of their own
    rather than closed arrivals; with room before the deadline."""
    if not runs:
        return []

    def worth(group: list[Run]) -> tuple[int, bool, bool, float, float]:
        spec = group[0].spec
        room = spec["stretch"] or 0.0
        return (len({run.spec["policy"] for run in group}), spec["arrivals"] != "closed", spec["cap_watts"] is None,
                -abs(room - 3.0), spec["in_flight"] or float("inf"))  # fmt: skip

    best = max(groups(runs, MANNER), key=worth)
    first: dict[str, Run] = {}
    for run in best:
        first.setdefault(run.spec["policy"], run)
    ends = [name for name in (*BASELINES, "joule") if name in first]
    order = [*ends[:1], *ends[-1:], *(name for name in first if name not in (*BASELINES, "joule")), *ends]
    chosen = list(dict.fromkeys(order))[:ARMS_MAX]
    return sorted((first[name] for name in chosen), key=lambda run: (run.spec["policy"] not in BASELINES,
                                                                   run.spec["policy"] == "joule"))  # fmt: skip


def time_lines(runs: Sequence[Run]) -> list[TimeLine]:
    """The same workflow of each: the one of median length in the first of them, of those with several calls."""
    found: list[TimeLine] = []
    chosen = None
    for run in runs:
        repeat = min(run.rows, default=None)
        if repeat is None:
            continue
        chosen = chosen or _median(run.result, repeat)
        line = None if chosen is None else _line(run, repeat, chosen)
        if line is not None:
            found.append(line)
    return found


def _median(result: Result, repeat: int) -> str | None:
    import pyarrow.compute as pc

    table = result.rows("workflow", ["repeat", "workflow", "seconds", "good", "calls"])
    table = table.filter(pc.and_(pc.equal(table["repeat"], repeat), table["good"])).sort_by("seconds")
    for low, high in ((2, CALLS_LIKED), (2, None), (1, None)):
        fits = pc.greater_equal(table["calls"], low)
        if high is not None:
            fits = pc.and_(fits, pc.less_equal(table["calls"], high))
        liked = table.filter(fits)
        if liked.num_rows:
            return str(liked["workflow"][liked.num_rows // 2].as_py())
    return None


def _line(run: Run, repeat: int, workflow: str) -> TimeLine | None:
    import pyarrow.compute as pc

    whole = run.result.rows("workflow", ["repeat", "workflow", "intended_s", "seconds", "deadline_s", "good"])
    whole = whole.filter(pc.and_(pc.equal(whole["repeat"], repeat), pc.equal(whole["workflow"], workflow)))
    rows = run.result.rows("call", CALL_COLUMNS)
    rows = rows.filter(pc.and_(pc.equal(rows["repeat"], repeat), pc.equal(rows["workflow"], workflow)))
    calls = [each for each in rows.sort_by("sent_s").to_pylist() if each["sent_s"] is not None and each["good"]]
    if not calls or not whole.num_rows:
        return None
    about = whole.to_pylist()[0]
    began = about["intended_s"]
    for call in calls:
        call["sent_s"] -= began
        call["ended_s"] -= began
    span = about["seconds"]
    windows = run.result.rows("window", ["repeat", "start_s", "ended_s", "gpu_watts"]).to_pylist()
    watts = [
        (each["ended_s"] - began, each["gpu_watts"])
        for each in windows
        if each["repeat"] == repeat and each["gpu_watts"] is not None
        and each["ended_s"] >= began and each["start_s"] <= began + span
    ]  # fmt: skip
    watts[:0] = [(0.0, watts[0][1])] if watts else []
    return TimeLine(run, workflow, calls, critical_path(calls), watts, span, about["deadline_s"])


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


def lanes(calls: Sequence[dict[str, Any]], most: int) -> list[int]:
    """A row for each call: one each where there are few, else as few as hold them without overlap."""
    if len(calls) <= most:
        return list(range(len(calls)))
    free: list[float] = []
    found = []
    for call in calls:
        lane = next((lane for lane, until in enumerate(free) if until <= call["sent_s"]), None)
        if lane is None:
            lane = len(free)
            free.append(0.0)
        free[lane] = call["ended_s"]
        found.append(lane)
    return found
