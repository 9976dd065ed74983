"""What does a report say of results? Each with its figures over repeats, in groups that differ in one thing."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.figures import FIGURES, Interval, interval
from bench.load.spec import AS_IS, Spec
from workloads.catalogue import INPUTS, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.load.results import Result

BASELINES = (AS_IS, "passthrough", "fifo")
"""Policies that schedule nothing for energy, the plainest first."""
MANNER = ("policy", "gateway", "policy_options", "way", "tell_lengths", "isolated", "repeats", "warm_up_seconds")
"""Members that say how the same work is scheduled and told of, and not what it is."""
TOLD = ("way", "tell_lengths", "gateway")
"""Of these, what a caption needs not say."""
CHOICES = (*MANNER, "in_flight", "cap_watts", "stretch", "deadline_ms", "workflow_class")
"""What an operator chooses for the same work: what a line of energy against latency runs over."""


class Measure(NamedTuple):
    """A figure of a repeat, its unit, and how it is written."""

    name: str
    title: str
    form: str


MEASURES = (
    Measure("joules_per_output_token", "GPU J a token", ".3f"),
    Measure("joules_per_workflow", "GPU J a workflow", ",.0f"),
    Measure("cpu_joules_per_workflow", "CPU J a workflow", ",.0f"),
    Measure("dram_joules_per_workflow", "DRAM J a workflow", ",.1f"),
    Measure("workflow_p50_s", "median s of a workflow", ",.2f"),
    Measure("workflow_p95_s", "p95 s of a workflow", ",.2f"),
    Measure("output_tokens_per_second", "tokens/s, whole play", ",.0f"),
    Measure("generating_tokens_per_second", "tokens/s while generating", ",.0f"),
    Measure("busy_share", "time in which steps ran", ".0%"),
    Measure("mean_running", "calls in the batch, mean", ",.1f"),
    Measure("cached_share", "prompt tokens cached", ".0%"),
    Measure("missed_share", "deadlines missed", ".1%"),
)
"""Of the tables; `FIGURES` of the results, and what their repeats say besides."""
BY_NAME = {each.name: each for each in MEASURES}
NOTHING = Interval(None, None, None, 0)
REPEAT_COLUMNS = ["repeat", "complete", "good_workflows", "cpu_joules", "dram_joules", "busy_s", "ended_s", "calls",
                  "prompt_tokens", "output_tokens", "gpu_joules", "idle_watts"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Run:
    """A result as the report has it."""

    result: Result
    spec: Mapping[str, Any]
    repeats: Mapping[int, Mapping[str, float | None]]
    """Figures of each repeat that was played to its end."""
    rows: Mapping[int, Mapping[str, Any]]
    """REPEAT_COLUMNS of the same."""

    def over(self, name: str) -> Interval:
        """A figure's mean over repeats with its interval; all None where it was not measured."""
        values = [self.repeats[repeat].get(name) for repeat in sorted(self.repeats)]
        return interval(values) if values else NOTHING

    @property
    def workload(self) -> str:
        """A trace is known by its file."""
        return Path(self.spec["trace"]).stem if self.spec["trace"] else str(self.spec["workload"])

    @property
    def simulated(self) -> bool:
        """Its times are the twin's."""
        return bool(self.result.meta.get("time_source") == "simulated")


def run_of(result: Result) -> Run:
    """Reads the repeats' rows and those of the windows, whatever the number of calls."""
    figures = {int(repeat): dict(each) for repeat, each in result.meta.get("figures", {}).items()}
    rows = {row["repeat"]: row for row in result.rows("repeat", REPEAT_COLUMNS).to_pylist() if row["complete"]}
    running = _running(result)
    for repeat, found in figures.items():
        row = rows.get(repeat)
        if row is not None:
            done, calls = row["good_workflows"], row["calls"]
            found |= {
                "cpu_joules_per_workflow": _over(row["cpu_joules"], done),
                "dram_joules_per_workflow": _over(row["dram_joules"], done),
                "busy_share": _over(row["busy_s"], row["ended_s"]),
                "mean_running": running.get(repeat),
                "prompt_tokens_per_call": _over(row["prompt_tokens"], calls),
                "output_tokens_per_call": _over(row["output_tokens"], calls),
                "output_tokens_per_workflow": _over(row["output_tokens"], done),
            }
    return Run(result, Spec().document() | result.meta["spec"], figures, rows)


def _over(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def _running(result: Result) -> dict[int, float | None]:
    """Mean number of calls in the batch by repeat: windows' readings, each for as long as its window."""
    sums: dict[int, list[float]] = {}
    unknown: set[int] = set()
    for row in result.rows("window", ["repeat", "start_s", "ended_s", "running"]).to_pylist():
        repeat, seconds = row["repeat"], row["ended_s"] - row["start_s"]
        if row["running"] is None:
            unknown.add(repeat)
            continue
        found = sums.setdefault(repeat, [0.0, 0.0])
        found[0] += row["running"] * seconds
        found[1] += seconds
    return {repeat: None if repeat in unknown or not each[1] else each[0] / each[1] for repeat, each in sums.items()}


def groups(runs: Iterable[Run], without: Sequence[str], lengths: frozenset[str] = frozenset()) -> list[list[Run]]:
    """Runs that differ in these members at most (`lengths`: also in these parameters), the largest group first."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        rest = {name: value for name, value in run.spec.items() if name not in without}
        if lengths:
            rest["parameters"] = {
                name: value for name, value in run.spec["parameters"].items() if name.rpartition(".")[2] not in lengths
            }
        found[repr(sorted(rest.items()))].append(run)
    return sorted(found.values(), key=len, reverse=True)


class Axis(NamedTuple):
    """What figures are drawn against, and the members of a configuration that it is made of."""

    name: str
    title: str
    label: str
    members: tuple[str, ...]
    lengths: frozenset[str] = frozenset()


AXES = (
    Axis("batch", "Batch.", "calls at the engine at once (batch)", ("in_flight",)),
    Axis("cap", "Power cap.", "power cap of each card, W", ("cap_watts",)),
    Axis("input", "Prompt lengths.", "prompt tokens of a call, mean", ("input_scale",), INPUTS),
    Axis("output", "Answer lengths.", "answer tokens of a call, mean", ("output_scale",), OUTPUTS),
)


def at(axis: Axis, run: Run) -> float | None:
    """Where a run stands on an axis; None: not known, or no batch limit (which is no number)."""
    if axis.name == "batch":
        return None if run.spec["in_flight"] is None else float(run.spec["in_flight"])
    if axis.name == "cap":
        if run.spec["cap_watts"] is not None:
            return float(run.spec["cap_watts"])
        usual = run.result.meta.get("engine", {}).get("card", {}).get("limit_watts_default")
        return None if usual is None else float(usual)
    return run.over("prompt_tokens_per_call" if axis.name == "input" else "output_tokens_per_call").mean


def against(axis: Axis, runs: Iterable[Run]) -> list[list[Run]]:
    """Groups that differ in this axis and the policy alone, and have at least two places on it."""
    found = []
    for group in groups(runs, (*MANNER, *axis.members), axis.lengths):
        settings = {repr([run.spec[name] for name in axis.members] + _lengths(axis, run)) for run in group}
        there = [run for run in group if at(axis, run) is not None]
        if len(settings) > 1 and len({at(axis, run) for run in there}) > 1:
            found.append(there)
    return found


def _lengths(axis: Axis, run: Run) -> list[tuple[str, Any]]:
    return sorted((k, v) for k, v in run.spec["parameters"].items() if k.rpartition(".")[2] in axis.lengths)


def series(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By policy; with its options and its way in where the same policy is there with several."""
    found: dict[str, list[Run]] = defaultdict(list)
    several = {
        name: len({repr(_manner(run)) for run in runs if run.spec["policy"] == name}) > 1
        for name in {run.spec["policy"] for run in runs}
    }
    for run in runs:
        name = policy_name(run)
        if several[run.spec["policy"]]:
            name += "".join(f" {key}={value}" for key, value in _manner(run))
        found[name].append(run)
    return dict(sorted(found.items(), key=lambda item: _rank(item[1][0], item[0])))


def _rank(run: Run, name: str) -> tuple[int, str]:
    policy = run.spec["policy"]
    return (BASELINES.index(policy) if policy in BASELINES else len(BASELINES) + (policy == "joule"), name)


def _manner(run: Run) -> list[tuple[str, Any]]:
    told = {"way": run.spec["way"], "lengths told": run.spec["tell_lengths"]}
    return [*run.spec["policy_options"].items(), *told.items()]


def policy_name(run: Run) -> str:
    """As people say it: `none` is vLLM as it is."""
    return "vLLM as is" if run.spec["policy"] == AS_IS else str(run.spec["policy"])


_UNITS = {
    "cap_watts": "cap {:g} W",
    "in_flight": "batch {}",
    "stretch": "deadline {:g}×",
    "deadline_ms": "deadline {:g} ms",
    "input_scale": "prompts ×{:g}",
    "output_scale": "answers ×{:g}",
    "rate": "{:g} calls/s",
    "users": "{} users",
    "workflow_class": "class {}",
    "preset": "preset {}",
    "seconds": "{:g} s",
    "engine": "on {}",
    "workflows": "{} workflows",
    "trace": "trace {}",
}


def words(run: Run, names: Iterable[str]) -> str:
    """These members of a configuration, for people."""
    return ", ".join(part for name in names if (part := _word(run, name)))


def _word(run: Run, name: str) -> str:
    value = run.spec[name]
    if name == "policy":
        return policy_name(run)
    if name == "arrivals":
        return f"{value} arrivals"
    if _needless(run, name):
        return ""
    if value is None or value == {} or value is False:
        return {"in_flight": "no batch limit", "cap_watts": "no cap"}.get(name, "")
    if value is True:
        return name.replace("_", " ")
    if name == "users" and value == 1:
        return "one user"
    if name in _UNITS:
        return _UNITS[name].format(value)
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items())
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def _needless(run: Run, name: str) -> bool:
    """Said already by the arrivals, or as usual."""
    arrivals = run.spec["arrivals"]
    return (
        (name in ("rate", "seconds") and arrivals in ("closed", "trace"))
        or (name in ("users", "workflows") and arrivals != "closed")
        or (name in ("input_scale", "output_scale") and run.spec[name] == 1.0)
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """Members that are not the same for all of them, repeats left aside."""
    if not runs:
        return []
    return [name for name in runs[0].spec if name != "repeats"
            and any(run.spec[name] != runs[0].spec[name] for run in runs)]  # fmt: skip


def setting(group: Sequence[Run], everybody: Sequence[Run]) -> str:
    """What a group has in common that others of the report have not."""
    own = set(differing(group))
    shown = [name for name in differing(everybody) if name not in own and name not in ("workload", "policy", *TOLD)]
    return words(group[0], shown)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both, from left to right."""
    best, found = math.inf, []
    for index in sorted(range(len(points)), key=lambda each: points[each]):
        if points[index][1] < best:
            best = points[index][1]
            found.append(index)
    return found


__all__ = ["AXES", "FIGURES", "Axis", "Run"]
