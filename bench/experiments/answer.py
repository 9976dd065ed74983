"""The answer in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.experiments.shadow import sentence_of

if TYPE_CHECKING:
    from bench.experiments.analyse import Analysis, Effect

WORDS = {
    "joules_per_workflow": "joules a workflow",
    "joules_per_output_token": "joules an output token",
    "mean_workflow_seconds": "seconds a workflow",
    "p50_workflow_seconds": "seconds for the median workflow",
    "p95_workflow_seconds": "seconds for the p95 workflow",
    "errors": "of workflows failed",
    "deadline_misses": "of deadlines missed",
    "workflows_per_second": "workflows a second",
}


def percent(value: float, effect: Effect) -> str:
    """`+3.2 %`, or, of a difference of shares, percentage points."""
    return f"{100 * value:+.1f} {'points' if effect.metric.is_share else '%'}"


def amount(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def p_text(p_value: float) -> str:
    """Of a p-value."""
    return f"p = {p_value:.2g}" if p_value >= 0.0001 else "p < 0.0001"


def time_text(hours: float) -> str:
    """Minutes where hours would begin with a 0."""
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.0f} min"


def sentence(found: Analysis) -> str:
    """With its interval, its p-value and what it rests on. Where joules are unknown: why, and what the times say."""
    if found.definition.design == "shadow":
        return sentence_of(found.shadow, *map(str, found.definition.arms))
    said = _said(found, found.primary)
    times = found.effects["mean_workflow_seconds"]
    if found.primary.estimate is None and found.primary.metric.energy and times.estimate is not None:
        said += f" Of times: {_said(found, times)}"
    return said


def _said(found: Analysis, effect: Effect) -> str:
    definition = found.definition
    control, treatment = map(str, definition.arms)
    what = WORDS[effect.metric.name]
    if effect.estimate is None or effect.p_value is None:
        return f"Nothing can be said of {what}: {effect.unavailable}."
    estimate = effect.estimate
    low, high = (percent(end, effect) for end in (estimate.low, estimate.high))
    hours = 2 * effect.pairs * definition.block_seconds / 3600
    rests = f"{p_text(effect.p_value)}; {effect.pairs} pairs of blocks, {time_text(hours)}"
    if definition.aa:
        return f"A/A: both arms are {control}; {what}: {low} to {high} between them ({rests})."
    if effect.p_value >= 0.05 or estimate.low <= 0 <= estimate.high:
        return (
            f"No difference was found between {treatment} and {control} in {what}: the effect of {treatment} lies"
            f" between {low} and {high} (95 % interval; {rests})."
        )
    size = abs(100 * estimate.effect)
    unit = " percentage points" if effect.metric.is_share else " %"
    more = "more" if estimate.effect > 0 else "less" if effect.metric.is_share else "fewer"
    return f"{treatment} needs {size:.1f}{unit} {more} {what} than {control} (95 % interval {low} to {high}; {rests})."
