"""What can an experiment be about? Each metric by name: a ratio of two sums of a block, or a quantile of its times."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """`numerator` and `denominator` are fields of a block's row; a quantile is of its `workflow_seconds`."""

    name: str
    kind: Literal["ratio", "quantile"]
    unit: str
    says: str
    numerator: str = ""
    denominator: str = ""
    quantile: float = 0.0
    energy: bool = False
    """It needs joules: blocks without them are excluded for it alone."""
    less_is_better: bool = True
    is_share: bool = False
    """Of 0 to 1: a guardrail may also be in percentage points."""


_ALL = (
    Metric("joules_per_workflow", "ratio", "J", "joules of a block over the workflows that ended in it",
           "joules", "ended", energy=True),
    Metric("joules_per_output_token", "ratio", "J", "joules of a block over the output tokens of what ended in it",
           "joules", "output_tokens", energy=True),
    Metric("mean_workflow_seconds", "ratio", "s", "mean time of the workflows that began in a block",
           "seconds", "timed"),
    Metric("p50_workflow_seconds", "quantile", "s", "median time of the workflows that began in a block", quantile=0.5),
    Metric("p95_workflow_seconds", "quantile", "s", "p95 time of the workflows that began in a block", quantile=0.95),
    Metric("errors", "ratio", "", "share of workflows that failed", "failed", "timed", is_share=True),
    Metric("deadline_misses", "ratio", "", "share of workflows with a deadline that missed it",
           "missed", "with_deadline", is_share=True),
    Metric("workflows_per_second", "ratio", "1/s", "workflows that ended in a block, a second",
           "ended", "measured_seconds", less_is_better=False),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
GUARDED = ("p95_workflow_seconds", "errors", "deadline_misses")
"""What a running experiment can be stopped by."""


def unknown(name: str) -> str:
    """What to say of a name that is no metric's."""
    near = get_close_matches(name, METRICS, n=1)
    return f'"{name}" is no metric; ' + (f'did you mean "{near[0]}"?' if near else "they are: " + ", ".join(METRICS))
