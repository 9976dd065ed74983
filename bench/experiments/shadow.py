"""What did a policy that only looked on say? Shares and means over calls, with intervals over blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats

from scheduler.experiments.agreement import Agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.experiments.rows import BlockRow

BLOCKS_LEAST = 6


class Ratio(NamedTuple):
    """A sum over blocks by another, with its 95 % interval: linearised, blocks as the unit."""

    value: float
    low: float | None
    high: float | None
    """None: too few blocks."""


class Shadowed(NamedTuple):
    """All that a report says. None = unavailable."""

    total: Agreement
    blocks: int
    same: Ratio | None
    same_time: Ratio | None
    same_engine: Ratio | None
    same_priority: Ratio | None
    later_seconds: Ratio | None
    """A call."""
    seconds: Ratio | None
    """A call, modelled."""
    joules: Ratio | None
    """Share of the control's, modelled."""
    dropped: str | None


def looked_on(rows: Sequence[BlockRow], dropped: str | None) -> Shadowed:
    """From the blocks that count: those without a mark, but for unknown energy."""
    kept = [row.shadow for row in rows if row.shadow is not None and not set(row.marks) - {"energy_unavailable"}]
    total = Agreement(*(sum(values) for values in zip(*kept, strict=True))) if kept else Agreement()

    def ratio(above: str, below: str) -> Ratio | None:
        return _ratio([getattr(one, above) for one in kept], [getattr(one, below) for one in kept])

    def share(above: str) -> Ratio | None:
        """Of calls: none is below 0 or above 1, whatever a symmetric interval says."""
        found = ratio(above, "decisions")
        if found is None or found.low is None or found.high is None:
            return found
        return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))

    by_call = {name: share(name) for name in ("same", "same_time", "same_engine", "same_priority")}
    by_call |= {name: ratio(name, "decisions") for name in ("later_seconds", "seconds")}
    return Shadowed(total, len(kept), **by_call, joules=ratio("joules", "joules_of_control"), dropped=dropped)


def _ratio(above: Sequence[float], below: Sequence[float]) -> Ratio | None:
    x, n = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if not n.sum() > 0:
        return None
    value = float(x.sum() / n.sum())
    if len(x) < BLOCKS_LEAST:
        return Ratio(value, None, None)
    rest = x - value * n
    error = float(np.sqrt(len(x) / (len(x) - 1) * (rest**2).sum()) / n.sum())
    far = float(stats.t.ppf(0.975, len(x) - 1)) * error
    return Ratio(value, value - far, value + far)


def sentence_of(found: Shadowed, control: str, treatment: str) -> str:
    """The answer."""
    said = "" if found.dropped is None else f" It raised and was asked no more ({found.dropped})."
    if found.same is None or found.later_seconds is None:
        return f"Nothing can be said of {treatment}: no decision of {control} was compared with it.{said}"
    text = (
        f"{treatment} would have decided as {control} did for {_shown(found.same, 100, '%')} of {found.total.decisions}"
        f" calls, and sent them {found.later_seconds.value:+.3g} s later on average"
    )
    if found.joules is None:
        text += "; joules are not predicted, since no energy model knows the engines"
    else:
        text += f"; the energy model predicts {_shown(found.joules, 100, '%', '+')} joules for them (modelled)"
    return f"{text}. Nothing was run by it.{said}"


def _shown(ratio: Ratio, scale: float, unit: str, sign: str = "") -> str:
    text = f"{scale * ratio.value:{sign}.1f} {unit}"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} ({scale * ratio.low:{sign}.1f} to {scale * ratio.high:{sign}.1f})"


def rows_of(found: Shadowed) -> list[list[str]]:
    """For a table: what, how much, its interval."""
    table = (
        ("Same decision", found.same, 100, "%", ""),
        ("… sent at the same time (within 50 ms)", found.same_time, 100, "%", ""),
        ("… to the same engine", found.same_engine, 100, "%", ""),
        ("… with the same priority", found.same_priority, 100, "%", ""),
        ("Sent later, a call", found.later_seconds, 1, "s", "+"),
        ("Answered later, a call (modelled)", found.seconds, 1, "s", "+"),
        ("Joules of these calls (modelled)", found.joules, 100, "%", "+"),
    )
    told = []
    for name, ratio, scale, unit, sign in table:
        if ratio is None:
            told.append([name, "unavailable", ""])
            continue
        interval = "too few blocks"
        if ratio.low is not None and ratio.high is not None:
            interval = f"{scale * ratio.low:{sign}.3g} to {scale * ratio.high:{sign}.3g} {unit}"
        told.append([name, f"{scale * ratio.value:{sign}.3g} {unit}", interval])
    return told


def as_json(found: Shadowed) -> dict[str, Any]:
    """For programs."""
    ratios = {name: None if value is None else value._asdict() for name, value in found._asdict().items()
              if name not in ("total", "blocks", "dropped")}  # fmt: skip
    return {"calls": found.total._asdict(), "blocks": found.blocks, "dropped": found.dropped,
            "source": "modelled", **ratios}  # fmt: skip
