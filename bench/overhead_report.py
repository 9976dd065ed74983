"""How are the overhead figures told? A Markdown table with medians and ratios, and the verdict on each target."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from bench.overhead_peers import OURS

PLAIN, PROMPT, RATE, STREAM = (
    "plain, 64 clients",
    "plain, 32 KB prompt",
    "plain, 400/s",
    "stream, 100/s x 64 tokens",
)
PEAK = "peak MiB"
ROWS = {
    f"CPU ms a request, {PLAIN}": (PLAIN, "cpu_ms"),
    f"CPU ms a request, {PROMPT}": (PROMPT, "cpu_ms"),
    f"CPU ms a request, {RATE}": (RATE, "cpu_ms"),
    f"CPU us a token, {STREAM}": (STREAM, "cpu_us_token"),
    f"p50 ms, {RATE}": (RATE, "p50_ms"),
    f"p99 ms, {RATE}": (RATE, "p99_ms"),
    "token delay p50 ms": (STREAM, "chunk_p50_ms"),
    "token delay p99 ms": (STREAM, "chunk_p99_ms"),
    PEAK: ("peak_mib", None),
}


@dataclass(frozen=True)
class Target:
    """A limit on one of our figures: `factor` times a peer's figure, or `factor` itself where there is no peer."""

    level: str
    row: str
    factor: float
    peer: str | None


TARGETS = (
    Target("must", f"CPU ms a request, {PLAIN}", 0.9, "vllm-router"),
    Target("aim", f"CPU ms a request, {PLAIN}", 2.0, "nginx"),
    Target("must", f"CPU us a token, {STREAM}", 1.1, "vllm-router"),
    Target("aim", f"CPU us a token, {STREAM}", 1.4, "nginx"),
    Target("must", f"p50 ms, {RATE}", 2.0, "nginx"),
    Target("aim", f"p50 ms, {RATE}", 1.3, "nginx"),
    Target("must", PEAK, 80.0, None),
    Target("aim", PEAK, 50.0, None),
)


@dataclass(frozen=True)
class Report:
    """All runs of one comparison, with what is needed to repeat it."""

    date: str
    cpu: str
    command: str
    versions: dict[str, str]
    repeats: int
    runs: dict[str, list[dict[str, Any]]]
    failures: dict[str, list[str]]
    left_out: dict[str, str]


def median(report: Report, name: str, row: str) -> float | None:
    """The median of a proxy's figure; None if the proxy failed, even once, or was not measured."""
    runs = report.runs.get(name, [])
    if not runs or name in report.failures:
        return None
    scenario, key = ROWS[row]
    return float(statistics.median(run[scenario] if key is None else run[scenario][key] for run in runs))


def cell(report: Report, name: str, row: str) -> str:
    """A median with its ratios to the peers in the same run."""
    value = median(report, name, row)
    if value is None:
        return "failed"
    if row == PEAK:
        return f"{value:.0f}"
    ratios = []
    for peer, short in (("nginx", "nginx"), ("vllm-router", "router")):
        base = median(report, peer, row)
        if base and peer != name:
            ratios.append(f"{value / base:.2f}x {short}")
    return f"{value:.3f}" + (f" ({', '.join(ratios)})" if ratios else "")


def verdicts(report: Report) -> list[dict[str, Any]]:
    """Each target with what was found; `met` is None where it could not be judged."""
    found = []
    for target in TARGETS:
        ours = median(report, OURS, target.row)
        base = 1.0 if target.peer is None else median(report, target.peer, target.row)
        ratio = ours / base if ours is not None and base else None
        met = None if ratio is None else ratio <= target.factor
        found.append(dataclasses.asdict(target) | {"found": ratio, "met": met})
    return found


def verdict_line(verdict: dict[str, Any]) -> str:
    """One verdict as a sentence."""
    unit = f" x {verdict['peer']}" if verdict["peer"] else ""
    wanted = f"{verdict['row']}: {verdict['level']} <= {verdict['factor']:g}{unit}"
    if verdict["met"] is None:
        return f"- not judged: {wanted} (a figure is missing)"
    return f"- {'met' if verdict['met'] else 'NOT met'}: {wanted}, found {verdict['found']:.2f}{unit}"


def render(report: Report) -> str:
    """The whole report as Markdown."""
    names = list(report.runs)
    lines = [
        f"{report.date}, {report.cpu}; " + ", ".join(f"{name} {report.versions[name]}" for name in names),
        f"`{report.command}`",
        "",
        f"| median of {report.repeats} | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    lines += [f"| {row} | " + " | ".join(cell(report, name, row) for name in names) + " |" for row in ROWS]
    if OURS in names:
        lines += ["", *map(verdict_line, verdicts(report))]
    notes = [
        f"- {name} failed in {len(errors)} of {report.repeats} passes: {errors[0]}"
        for name, errors in report.failures.items()
    ]
    notes += [f"- {name} is left out: {reason}" for name, reason in report.left_out.items()]
    return "\n".join(lines + (["", *notes] if notes else []))


def as_json(report: Report) -> dict[str, Any]:
    """The report with medians and verdicts, for --json."""
    medians = {name: {row: median(report, name, row) for row in ROWS} for name in report.runs}
    return dataclasses.asdict(report) | {"medians": medians, "verdicts": verdicts(report)}
