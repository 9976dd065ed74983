"""The whole answer to one experiment, from its definition and its closed blocks alone: nothing else is needed to do it
again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.experiments import quantiles, ratio, regression, shadow
from bench.experiments.pairs import PairTable, components_of, differences, table_of
from bench.experiments.randomise import quantile_test, ratio_test
from bench.experiments.sample_ratio import of_blocks, of_coins
from bench.experiments.sequence import confidence_sequence
from scheduler.experiments.evidence import sharpest_scale
from scheduler.experiments.marks import PLANNED, SAYS
from scheduler.experiments.metrics import METRICS, Metric
from scheduler.experiments.rows import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.experiments.ratio import Estimate
    from scheduler.experiments.definition import Definition
    from scheduler.experiments.rows import BlockRow

LEVEL = 0.05
SUSPICIOUS = 0.01
"""Of order and carry-over tests: below it the report warns."""

SHARED = "both arms ran at once on the same engines, whose joules cannot be told apart"


@dataclass
class Effect:
    """One metric. Effects are relative to the control, or (`share`) differences of shares."""

    metric: Metric
    pairs: int
    estimate: Estimate | None = None
    p_value: float | None = None
    p_orders: int = 0
    p_exact: bool = False
    always: tuple[float, float] | None = None
    """The confidence sequence's interval now; of the mean of the pairs' effects."""
    path: list[tuple[float, float]] = field(default_factory=list)
    """All of its intervals so far."""
    adjusted: Estimate | None = None
    components: tuple[str, ...] = ()
    unavailable: str = ""
    """Why there is no number; empty: there is one."""

    @property
    def known(self) -> bool:
        """There is a number, with an interval."""
        return self.estimate is not None


@dataclass
class Analysis:
    """What a report says. `rows`: as they came, in the order of the blocks."""

    definition: Definition
    rows: list[BlockRow]
    effects: dict[str, Effect]
    by_class: dict[str, Effect]
    """p95 workflow time of each class."""
    energy: dict[str, Effect]
    """Joules a workflow of each component."""
    sample: Any
    order: Any
    carried: Any
    excluded: dict[str, dict[str, int]]
    """Rows by mark and arm."""
    warnings: list[str]
    shadow: shadow.Shadowed

    @property
    def primary(self) -> Effect:
        """Of the definition's metric."""
        return self.effects[self.definition.metric]


def analyse(
    definition: Definition, rows: Sequence[BlockRow], shadow_dropped: str | None = None, *, draws: int = 9999
) -> Analysis:  # fmt: skip
    """Everything; ValueError never: what cannot be said is `unavailable`, with the reason."""
    ordered = sorted(rows, key=lambda row: (row.number, row.arm))
    effects = {name: effect_on(definition, ordered, metric, draws=draws) for name, metric in METRICS.items()}
    if definition.metric not in effects:
        raise ValueError(f"the definition's metric {definition.metric!r} is none of this version's")
    table = table_of(ordered, METRICS[definition.metric])
    primary_pairs = table if len(table) else table_of(ordered, METRICS["mean_workflow_seconds"])
    sample = None
    if len(primary_pairs):
        began = primary_pairs.began.sum(axis=0).astype(int).tolist()
        interleaved = definition.design == "interleaved"
        sample = of_coins(*began) if interleaved else of_blocks(primary_pairs, definition.seed)
    carried = regression.carry_over(ordered, primary_pairs)
    order = regression.order_effect(primary_pairs)
    energy = {name: _component(definition, ordered, name, draws) for name in COMPONENTS}
    found = Analysis(
        definition, ordered, effects, _classes(definition, ordered), energy, sample, order, carried,
        _excluded(ordered), [], shadow.looked_on(ordered, shadow_dropped),
    )  # fmt: skip
    found.warnings = list(_warnings(found))
    return found


def effect_on(
    definition: Definition, rows: Sequence[BlockRow], metric: Metric, *, draws: int = 9999,
    components: tuple[str, ...] | None = None,
) -> Effect:  # fmt: skip
    """One metric."""
    table = table_of(rows, metric, components)
    found = Effect(metric, len(table), components=table.components)
    if metric.energy and definition.design == "interleaved":
        found.unavailable = SHARED
        return found
    if metric.energy and not table.components:
        counted = any(row.energy_source != "unavailable" for row in rows if row.pair >= 0)
        found.unavailable = (
            "no pair of blocks has its joules known" if counted else "no meter counted the joules of the engines"
        )
        return found
    if metric.energy and definition.design == "interleaved":
        found.unavailable = "both arms shared the engine's steps, so its joules cannot be told apart"
        return found
    if metric.name == "deadline_misses" and len(table) and not table.denominator.any():
        found.unavailable = "no workflow had a deadline"
        return found
    try:
        if metric.kind == "quantile":
            found.estimate = quantiles.bootstrapped(table, definition.seed)
            test = quantile_test(table, definition.seed, min(draws, 1999))
        else:
            found.estimate = ratio.paired(table.numerator, table.denominator, share=metric.is_share)
            test = ratio_test(table.numerator, table.denominator, definition.seed, share=metric.is_share, draws=draws)
    except ValueError as error:
        found.unavailable = str(error)
        return found
    found.p_value, found.p_orders, found.p_exact = test
    _look(found, definition, table)
    found.adjusted = regression.adjusted(table)
    return found


def _look(found: Effect, definition: Definition, table: PairTable) -> None:
    values = differences(table)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = confidence_sequence(values, sharpest_scale(definition.spread, definition.pairs), LEVEL)
    if not table.metric.is_share:
        low, high = np.expm1(low), np.expm1(high)
    found.path = list(zip(low.tolist(), high.tolist(), strict=True))
    found.always = found.path[-1]


def _component(definition: Definition, rows: list[BlockRow], name: str, draws: int) -> Effect:
    metric = METRICS["joules_per_workflow"]
    known = components_of([row for row in rows if row.pair >= 0 and "energy_unavailable" not in row.marks])
    if definition.design == "interleaved":
        return Effect(metric, 0, unavailable=SHARED)
    if name not in known:
        return Effect(metric, 0, unavailable=f"no meter counted the {name.upper()} in all blocks")
    return effect_on(definition, rows, metric, draws=min(draws, 1999), components=(name,))


def _classes(definition: Definition, rows: list[BlockRow]) -> dict[str, Effect]:
    names = sorted({name for row in rows for name in row.times})
    found = {}
    for name in names:
        mine = [row._replace(times={name: row.times.get(name, ())}, timed=len(row.times.get(name, ()))) for row in rows]
        found[name] = effect_on(definition, mine, METRICS["p95_workflow_seconds"], draws=999)
    return found


def _excluded(rows: list[BlockRow]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for mark in row.marks:
            arms = found.setdefault(mark, {"control": 0, "treatment": 0})
            arms["treatment" if row.arm else "control"] += 1
    return found


def _warnings(found: Analysis) -> list[str]:
    said = []
    definition, sample = found.definition, found.sample
    if sample is not None and sample.alarm:
        said.append(
            f"The arms did not get equal traffic: {sample.control} workflows in control blocks, {sample.treatment} in"
            f" treatment blocks (p = {sample.p_value:.2g}). More than the policy differs; do not trust the rest."
        )
    if found.carried is not None and found.carried.p_value < SUSPICIOUS:
        said.append(
            f"A block after a change of arm differs by {100 * found.carried.estimate:+.1f} % from one after its own arm"
            f" (p = {found.carried.p_value:.2g}): one arm carries over into the next. Take longer blocks and wash-outs."
        )
    if found.order is not None and found.order.p_value < SUSPICIOUS:
        said.append(f"The effect depends on which arm came first (p = {found.order.p_value:.2g}).")
    if found.primary.pairs < 6 and definition.design != "shadow":
        said.append(
            f"{found.primary.pairs} pairs of blocks count: below 6 no order of the arms is rarer than 1 in 20, so no"
            " p-value can be below 5 %."
        )
    for mark, arms in found.excluded.items():
        if mark not in PLANNED and sum(arms.values()) >= 6 and max(arms.values()) >= 3 * max(1, min(arms.values())):
            said.append(
                f"{arms['control']} control blocks and {arms['treatment']} treatment blocks are excluded because"
                f" {SAYS.get(mark, mark)}: what befalls one arm more often may be its doing."
            )
    if definition.design == "interleaved":
        said.append("Interleaved arms: interference possible. Each arm's numbers depend on the other's calls.")
    return said


def as_json(found: Analysis) -> dict[str, Any]:
    """For programs; numbers that are not known are null with a reason."""

    def told(effect: Effect) -> dict[str, Any]:
        return {
            "unit": effect.metric.unit, "pairs": effect.pairs, "unavailable": effect.unavailable or None,
            "effect_is": "difference" if effect.metric.is_share else "relative",
            "estimate": None if effect.estimate is None else effect.estimate._asdict(),
            "p_value": effect.p_value, "p_orders": effect.p_orders, "p_exact": effect.p_exact,
            "always_valid": _ends(effect.always), "components": list(effect.components),
            "load_adjusted": None if effect.adjusted is None else
            {name: getattr(effect.adjusted, name) for name in ("effect", "low", "high", "error")},
        }  # fmt: skip

    def plain(test: Any) -> Any:
        return None if test is None else test._asdict()

    from bench.experiments.answer import sentence

    return {
        "joulegate_experiment_report": 1, "answer": sentence(found), "definition": found.definition.as_json(),
        "effects": {name: told(effect) for name, effect in found.effects.items()},
        "p95_by_class": {name: told(effect) for name, effect in found.by_class.items()},
        "joules_per_workflow_by_component": {name: told(effect) for name, effect in found.energy.items()},
        "sample_ratio": plain(found.sample), "order_effect": plain(found.order), "carry_over": plain(found.carried),
        "excluded": found.excluded,
        "shadow": shadow.as_json(found.shadow) if found.definition.design == "shadow" else None,
        "warnings": found.warnings,
        "blocks": len(found.rows),
    }  # fmt: skip


def _ends(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [end if np.isfinite(end) else None for end in interval]


__all__ = ["Analysis", "Effect", "analyse", "as_json", "asdict", "effect_on"]
