"""May this experiment start? Each objection names its field and the numbers that say why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scheduler.experiments.metrics import GUARDED, METRICS, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scheduler.experiments.definition import Definition

ID_CHARACTERS_MAX = 64
PAIRS_MAX = 20_000
PAIRS_LEAST = 6
"""With fewer no order of the arms is rarer than 1 in 20: 2 of 2^5 is 6 %."""
MEASURED_SHARE_LEAST = 0.5
RESET_SECONDS = 1.0
"""Of wash-out at least, to empty a prefix cache in."""


def problems(
    definition: Definition,
    *,
    running: Iterable[Definition] = (),
    policies: Mapping[str, Iterable[str]] | None = None,
    p95_workflow_seconds: float | None = None,
    cap_settling_seconds: float = 0.0,
) -> list[str]:
    """Why it may not start; empty: it may.

    `running`: the experiments that run now. `policies`: the options that each known policy takes; None: not checked.
    `p95_workflow_seconds`: of the traffic, where it is known; None: the wash-out is not held against it.
    """
    found = [*_identity(definition, running), *_arms(definition, policies), *_numbers(definition)]
    found += _design(definition)
    found += _guardrails(definition)
    if definition.metric not in METRICS:
        found.append(f"metric: {unknown(definition.metric)}")
    if definition.design in ("switchback", "split_and_swap"):
        needed = (p95_workflow_seconds or 0.0) + cap_settling_seconds
        if definition.washout_seconds < needed:
            p95 = "" if p95_workflow_seconds is None else f"the p95 workflow time of {p95_workflow_seconds:g} s and "
            found.append(
                f"washout_seconds: {definition.washout_seconds:g} s is below {needed:g} s, {p95}"
                f"{cap_settling_seconds:g} s until a cap has settled: raise it to that"
            )
    return found


def _identity(definition: Definition, running: Iterable[Definition]) -> list[str]:
    found = []
    name = definition.id
    if not name or len(name) > ID_CHARACTERS_MAX or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        found.append(f'id: "{name[:80]}" must have 1 to {ID_CHARACTERS_MAX} letters, digits, "-", "_" or "."')
    elif name.startswith("."):
        found.append(f'id: "{name}" must not begin with "."')
    mine = set(definition.engines)
    for other in running:
        if other.id == name:
            found.append(f'id: an experiment "{name}" is running; stop it, or take another id')
        elif other.pool == definition.pool:
            found.append(
                f'pool: "{definition.pool}" is taken by experiment "{other.id}"; stop that, wait for its end, or give'
                " this one a pool and engines of its own"
            )
        elif both := sorted(mine & set(other.engines)):
            found.append(f'engines: {", ".join(both)} belong to the running experiment "{other.id}" too')
    return found


def _arms(definition: Definition, policies: Mapping[str, Iterable[str]] | None) -> list[str]:
    arms = definition.arms
    if len(arms) != 2:
        return [f"arms: there must be 2, the control and the treatment, not {len(arms)}"]
    found = []
    for place, arm in enumerate(arms):
        if policies is not None and arm.policy not in policies:
            found.append(f'arms[{place}].policy: "{arm.policy}" is no policy; there are {", ".join(sorted(policies))}')
        elif policies is not None:
            takes = set(policies[arm.policy])
            found += [
                f'arms[{place}].options: {arm.policy} has no option "{option}"'
                f" (it takes: {', '.join(sorted(takes)) or 'none'})"
                for option in arm.options
                if option not in takes
            ]
    same = arms[0].same_as(arms[1])
    if same and not definition.aa:
        found.append(
            f'arms: both are "{arms[0]}", so there is nothing to find;'
            " change one, or set aa = true to test the method on this traffic"
        )
    if definition.aa and not same:
        found.append(f'aa: the arms are not the same ("{arms[0]}" and "{arms[1]}"); leave aa out')
    return found


def _numbers(definition: Definition) -> list[str]:
    found = []
    block, washout = definition.block_seconds, definition.washout_seconds
    bounds = {
        "block_seconds": (10.0, 86_400.0),
        "washout_seconds": (0.0, 43_200.0),
        "pairs": (PAIRS_LEAST, PAIRS_MAX),
        "seed": (0, 2**63 - 1),
        "guardrail_error": (1e-9, 0.05),
        "guardrail_workflows": (5, 100_000),
        "clock_tolerance_seconds": (0.1, 60.0),
        "spread": (1e-4, 10.0),
    }
    for name, (low, high) in bounds.items():
        value = getattr(definition, name)
        if not (math.isfinite(value) and low <= value <= high):
            found.append(f"{name}: must be from {low:g} to {high:g}, not {value:g}")
    if definition.design in ("switchback", "split_and_swap") and not found:
        if block <= washout:
            found.append(
                f"block_seconds: {block:g} s is not above the wash-out of {washout:g} s, so nothing would be measured;"
                f" take {4 * washout:g} s or more"
            )
        elif block - washout < MEASURED_SHARE_LEAST * block:
            found.append(
                f"block_seconds: of {block:g} s only {block - washout:g} s are left by the wash-out of {washout:g} s;"
                f" half of it must be: take {2 * washout:g} s or more"
            )
    for place, share in enumerate(definition.ramp_up):
        if not 0.0 < share <= 1.0:
            found.append(f"ramp_up[{place}]: must be a share above 0 and up to 1, not {share:g}")
    if list(definition.ramp_up) != sorted(definition.ramp_up):
        found.append(f"ramp_up: the shares must rise, not {', '.join(f'{share:g}' for share in definition.ramp_up)}")
    return found


def _design(definition: Definition) -> list[str]:
    found = []
    count = len(definition.engines)
    if definition.design == "split_and_swap" and (count < 2 or count % 2):
        found.append(f"engines: split_and_swap needs an even number of them, 2 or more, not {count}")
    if len(set(definition.engines)) != count:
        found.append("engines: a name is there twice")
    if definition.reset_prefix_cache != "no" and (
        definition.design in ("interleaved", "shadow") or definition.washout_seconds < RESET_SECONDS
    ):
        found.append(
            f'reset_prefix_cache: is "{definition.reset_prefix_cache}", and there is no wash-out of {RESET_SECONDS:g} s'
            ' to do it in; set it to "no"'
        )
    modes = {arm.cap_mode for arm in definition.arms}
    if definition.design in ("interleaved", "shadow") and len(modes) > 1:
        found.append(
            f"arms: their cap modes differ, and with {definition.design} both have the same cards at once:"
            " take switchback or split_and_swap"
        )
    if definition.design == "interleaved":
        if not definition.effect_independent:
            found.append(
                "design: interleaved runs both arms on the same engines at once, where they share batches and caches;"
                " declare effect_independent = true if the change has no shared effect, else take switchback"
            )
        if (metric := METRICS.get(definition.metric)) is not None and metric.energy:
            found.append(
                f"metric: {definition.metric} cannot be told apart between arms that share an engine's steps;"
                " take switchback, or a metric of time"
            )
    return found


def _guardrails(definition: Definition) -> list[str]:
    found = []
    for place, guardrail in enumerate(definition.guardrails):
        where = f"guardrails[{place}]"
        metric = METRICS.get(guardrail.metric)
        if metric is None:
            found.append(f"{where}: {unknown(guardrail.metric)}")
        elif guardrail.metric not in GUARDED:
            found.append(f"{where}: {guardrail.metric} cannot stop an experiment; these can: {', '.join(GUARDED)}")
        elif not guardrail.relative and not metric.is_share:
            found.append(f"{where}: {guardrail.metric} is no share; give its limit in % of the control, not in pp")
        if not 0.0 < guardrail.limit <= 10.0:
            found.append(f"{where}: the limit must be above 0 and up to 1000 %, not {100 * guardrail.limit:g}")
    names = [guardrail.metric for guardrail in definition.guardrails]
    found += [f"guardrails: {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return found
