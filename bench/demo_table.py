"""What did a policy cost in the demo? Figures of its run, the table that sets them side by side, and what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from workloads.player import PlayedWorkflow

BASELINE = "passthrough"
HOLDING = "joule"
"""The policy that holds calls back to save energy; see the README."""
SAME = 0.02
"""Two runs of one policy differ by less than this share of their joules: times are a real clock's."""


class Figures(NamedTuple):
    """One policy's run. Seconds are simulated ones, joules and tokens the twin's."""

    policy: str
    calls: int
    failed_calls: int
    workflows: int
    """Those that were answered whole."""
    p50_seconds: float | None
    p95_seconds: float | None
    joules: float
    """Of the whole horizon, idle included."""
    horizon_seconds: float
    over_seconds: float
    """How much longer than the horizon it took."""
    output_tokens: int
    active_seconds: float
    """Until the last answer."""
    late: int = 0
    """Workflows that ended behind their deadlines."""

    @property
    def joules_per_workflow(self) -> float | None:
        """None where none was answered whole."""
        return self.joules / self.workflows if self.workflows else None

    @property
    def tokens_per_second(self) -> float:
        """Output tokens until the last answer."""
        return self.output_tokens / self.active_seconds if self.active_seconds > 0 else 0.0


def figures(
    policy: str,
    played: Sequence[PlayedWorkflow],
    *,
    speed: float,
    joules: float,
    horizon_seconds: float,
    measured_seconds: float,
    deadlines: Sequence[float] = (),
) -> Figures:
    """`played` and `deadlines`, one each, have wall-clock seconds, of which one is `speed` simulated ones."""
    calls = [call for workflow in played for call in workflow.calls]
    seconds = [workflow.seconds * speed for workflow in played if workflow.complete]
    began = min((workflow.intended_at for workflow in played), default=0.0)
    active = (max((call.answered_at for call in calls), default=began) - began) * speed
    return Figures(
        policy=policy,
        calls=len(calls),
        failed_calls=sum(not call.good for call in calls),
        workflows=len(seconds),
        p50_seconds=float(np.quantile(seconds, 0.5)) if seconds else None,
        p95_seconds=float(np.quantile(seconds, 0.95)) if seconds else None,
        joules=joules,
        horizon_seconds=measured_seconds,
        over_seconds=max(0.0, active - horizon_seconds),
        output_tokens=sum(call.output_tokens or 0 for call in calls),
        active_seconds=active,
        late=sum(each.seconds > deadline for each, deadline in zip(played, deadlines, strict=False)),
    )


def by_joules(runs: Sequence[Figures]) -> tuple[Figures, list[Figures]]:
    """The baseline, and the others from the fewest joules a workflow to the most."""
    base = next(run for run in runs if run.policy == BASELINE)
    others = [run for run in runs if run is not base]
    return base, sorted(others, key=lambda run: run.joules_per_workflow or float("inf"))


_COLUMNS = ("calls", "workflows", "time p50", "time p95", "J/workflow", "tokens/s")


def table(runs: Sequence[Figures]) -> list[str]:
    """The baseline beside the best of the others, and how much they differ."""
    base, others = by_joules(runs)
    rows = [_row(run) for run in (base, *others[:1])]
    if others:
        rows.append(_difference(base, others[0]))
    name = max(len(row[0]) for row in rows)
    widths = [max(len(text) for text in column) for column in zip(_COLUMNS, *(row[1:] for row in rows), strict=True)]

    def line(first: str, cells: Sequence[str]) -> str:
        return "  ".join([first.ljust(name), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])

    head = line("simulated", _COLUMNS)
    body = [line(row[0], row[1:]) for row in rows]
    return [head, "─" * len(head), *body]


def _row(run: Figures) -> tuple[str, ...]:
    return (
        run.policy,
        f"{run.calls:,}",
        f"{run.workflows:,}",
        _or_dash(run.p50_seconds, ".2f", " s"),
        _or_dash(run.p95_seconds, ".2f", " s"),
        _or_dash(run.joules_per_workflow, ",.1f", " J"),
        f"{run.tokens_per_second:,.1f}",
    )


def _or_dash(value: float | None, form: str, unit: str) -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _percent(share: float, sign: str = "") -> str:
    text = f"{share * 100:{sign}.1f} %"
    return text.replace("-0.0", "+0.0").replace("-", "−")


def _difference(base: Figures, other: Figures) -> tuple[str, ...]:
    pairs = (
        (base.p50_seconds, other.p50_seconds),
        (base.p95_seconds, other.p95_seconds),
        (base.joules_per_workflow, other.joules_per_workflow),
        (base.tokens_per_second, other.tokens_per_second),
    )
    return (
        "difference",
        *(f"{change:+,}".replace("+0", "0") for change in (other.calls - base.calls, other.workflows - base.workflows)),
        *(_percent(after / before - 1, "+") if before and after is not None else "-" for before, after in pairs),
    )


def verdict(runs: Sequence[Figures]) -> Iterator[str]:
    """What the table shows, in sentences: nothing that it does not."""
    base, others = by_joules(runs)
    if others:
        yield _saving(base, others[0])
        yield f"Behind their deadlines: {base.late} under {base.policy}, {others[0].late} under {others[0].policy}."
    for run in others[1:]:
        yield f"Also run: {run.policy}, {_or_dash(run.joules_per_workflow, ',.1f', ' J')} a workflow."
    for run in (base, *others):
        if run.over_seconds > 0:
            yield (
                f"{run.policy} went on {run.over_seconds:.1f} s behind the horizon of the others; its joules include"
                " that: take more --seconds."
            )


def _saving(base: Figures, best: Figures) -> str:
    before, after = base.joules_per_workflow, best.joules_per_workflow
    if before is None or after is None:
        return f"{best.policy} and {base.policy} cannot be compared: no workflow was answered whole."
    change = after / before - 1
    if abs(change) < SAME:
        within = f"{_percent(abs(change))} is within the {SAME * 100:g} %"
        return f"{best.policy} saves nothing here: {within} by which two runs of one policy can differ."
    return f"{best.policy} takes {_percent(abs(change))} {'fewer' if change < 0 else 'more'} joules a workflow."
