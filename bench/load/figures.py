"""Which figures stand in the short table? Of each repeat, then their mean with its 95 % interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95
Row = dict[str, Any]


class Figure(NamedTuple):
    """A figure's name in the metadata, its head in the table, and how it is written."""

    name: str
    head: str
    form: str


FIGURES = (
    Figure("joules_per_workflow", "J/workflow", ",.1f"),
    Figure("joules_per_output_token", "J/token", ".4f"),
    Figure("mean_watts", "W", ",.0f"),
    Figure("workflow_p50_s", "p50 s", ".2f"),
    Figure("workflow_p95_s", "p95 s", ".2f"),
    Figure("first_token_p50_s", "TTFT s", ".3f"),
    Figure("output_tokens_per_second", "tokens/s", ",.0f"),
    Figure("generating_tokens_per_second", "tokens/gen s", ",.0f"),
    Figure("cached_share", "cached", ".0%"),
    Figure("missed_share", "missed", ".1%"),
    Figure("failed_share", "failed", ".1%"),
    Figure("late_p99_s", "late s", ".4f"),
)
"""`late_p99_s`: how much later than intended the client sent, of the workflows' first calls."""


def figures_of(
    repeat: Row, workflows: Sequence[Row], calls: Sequence[Row], *, client_sends: bool
) -> dict[str, float | None]:
    """Of one repeat. None: not known, or nothing to tell it of. `client_sends`: calls are the client's own, and not
    made by the gateway for it."""
    good = [each["seconds"] for each in workflows if each["good"]]
    answered = [call for call in calls if call["good"]]
    firsts = [call["first_token_s"] - call["intended_s"] for call in answered if call["first_token_s"] is not None]
    late = [call["sent_s"] - call["intended_s"] for call in calls if not call["after"]]
    joules, output = repeat["gpu_joules"], repeat["output_tokens"]
    promised = [each for each in workflows if each["missed"] is not None]
    return {
        "joules_per_workflow": _ratio(joules, repeat["good_workflows"]),
        "joules_per_output_token": _ratio(joules, output),
        "mean_watts": _ratio(joules, repeat["ended_s"]),
        "workflow_p50_s": quantile(good, 0.5),
        "workflow_p95_s": quantile(good, 0.95),
        "first_token_p50_s": quantile(firsts, 0.5) if len(firsts) == len(answered) else None,
        "output_tokens_per_second": _ratio(output, repeat["ended_s"]),
        "generating_tokens_per_second": _ratio(output, repeat["generating_s"]),
        "cached_share": _ratio(repeat["cached_tokens"], repeat["prompt_tokens"]),
        "missed_share": _ratio(repeat["missed_workflows"], len(promised)),
        "failed_share": _ratio(repeat["failed_calls"], repeat["calls"]),
        "late_p99_s": quantile(late, 0.99) if client_sends else None,
    }


def _ratio(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """By linear interpolation between order statistics. None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


class Interval(NamedTuple):
    """A mean, and where it lies with CONFIDENCE; None: fewer than two values."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float | None]) -> Interval:
    """Student's t over repeats. A value that is not known makes the mean unknown: it would be of other repeats."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Interval(None, None, None, len(known))
    n, mean = len(known), math.fsum(known) / len(known)
    if n < 2:
        return Interval(mean, None, None, n)
    from scipy.special import stdtrit

    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def summary(repeats: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """For the metadata, of all repeats that were played to their end."""
    return {figure.name: interval([each[figure.name] for each in repeats])._asdict() for figure in FIGURES}


def table(named: Sequence[tuple[str, Mapping[str, Mapping[str, float | int | None]]]]) -> list[str]:
    """Lines: a configuration each. What nobody knows of any is left out, of some is a dash."""
    shown = [figure for figure in FIGURES if any(each[figure.name]["mean"] is not None for _, each in named)]
    rows = [["", *(figure.head for figure in shown)]]
    rows += [[name, *(_cell(each[figure.name], figure.form) for figure in shown)] for name, each in named]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _cell(value: Mapping[str, float | int | None], form: str) -> str:
    mean, high = value["mean"], value["high"]
    if mean is None:
        return "-"
    return f"{mean:{form}}" if high is None else f"{mean:{form}} ±{high - mean:{form}}"
