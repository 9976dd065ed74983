"""May this experiment run in this gateway? What its definition leaves open is filled in, what does not fit is said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scheduler.experiments.checks import problems
from scheduler.policies import POLICIES, option_problems

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.core import Scheduler
    from scheduler.experiments.definition import Definition

_ALLOWS = {"observe": ("off", "observe"), "actuate": ("off", "observe", "actuate")}


def filled_in(definition: Definition, scheduler: Scheduler) -> Definition:
    """Engines: all. Models: those that a part of the engines serves. Cap modes: the gateway's."""
    there = {name: engine for name, engine in scheduler.engines.items() if not engine.removed}
    engines = definition.engines or tuple(there)
    models = definition.models
    if not models and set(engines) < set(there):
        models = tuple(sorted({model for name in engines if name in there for model in there[name].models or ()}))
    mode = scheduler.caps.rules.mode
    arms = tuple(replace(arm, cap_mode=mode) if arm.cap_mode is None else arm for arm in definition.arms)
    return replace(definition, engines=engines, models=models, arms=arms)


def problems_here(
    definition: Definition, scheduler: Scheduler, pace: float, *, running: Iterable[Definition], again: bool
) -> list[str]:
    """Each with the field and the way out. `again`: it is taken up after a restart, when little is known of the engines
    yet."""
    running = list(running)
    rules = scheduler.caps.rules
    settles = any(arm.cap_mode == "actuate" for arm in definition.arms)
    found = problems(
        definition,
        running=running,
        policies={name: policy.options for name, policy in POLICIES.items()},
        cap_settling_seconds=rules.descent_seconds * pace if settles else 0.0,
    )
    for place, arm in enumerate(definition.arms):
        if arm.policy in POLICIES:
            for option, what in option_problems(arm.policy, arm.options):
                if not any(f'no option "{option}"' in one for one in found):
                    found.append(f"arms[{place}].options.{option}: {what}")
        if arm.cap_mode not in _ALLOWS[rules.mode]:
            found.append(
                f'arms[{place}].cap_mode: is "{arm.cap_mode}", and this gateway may not set limits:'
                ' an operator must allow it by [power] mode = "actuate" first'
            )
        elif arm.cap_mode != rules.mode and rules.budget_watts is not None:
            found.append(
                f'arms[{place}].cap_mode: is "{arm.cap_mode}", and caps.budget_watts is {rules.budget_watts:g}:'
                f' without "{rules.mode}" nobody would keep it'
            )
    return found + _engines(definition, scheduler, running, again=again)


def _engines(definition: Definition, scheduler: Scheduler, running: list[Definition], *, again: bool) -> list[str]:
    there = {name: engine for name, engine in scheduler.engines.items() if not engine.removed}
    named = set(definition.engines)
    if missing := sorted(named - there.keys()):
        what = f"engines: the gateway has no {', '.join(missing)}, it has {', '.join(sorted(there))};"
        return [f"{what} leave the field out to have all of them"]
    if named == there.keys():
        others = [other.id for other in running if other.id != definition.id]
        return [f'engines: an experiment has all; "{others[0]}" runs: stop it, or name other engines'] if others else []
    found: list[str] = []
    if again:
        return found
    asked, options = scheduler.deciding.asked
    control = definition.arms[0]
    if control.policy != asked or dict(control.options) != options:
        found.append(
            f'arms[0]: is "{control}", and the gateway\'s policy is {asked} ({options or "no options"}): where an'
            " experiment has a part of the engines, its control must be that, which decides for the others"
        )
    if unknown := sorted(name for name in there if there[name].models is None):
        found.append(f"engines: the models of {', '.join(unknown)} are not known yet; wait for a good probe")
    both = [(name, model) for name in sorted(there.keys() - named) for model in definition.models
            if there[name].serves(model)]  # fmt: skip
    found += [
        f'engines: {name} serves "{model}" too, so its calls would not stay with the experiment: name it as well'
        for name, model in both
    ]
    if not definition.models and not unknown:
        found.append(f"models: {', '.join(sorted(named))} serve none")
    return found
