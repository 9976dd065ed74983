"""An experiment in this gateway, with all that it needs here: its clock, its workflows, its meters, its policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.experiments.arms import ArmPolicies
from scheduler.experiments.definition import CONTROL
from scheduler.experiments.following import Clock, Following, name_of
from scheduler.experiments.pool_energy import PoolEnergy
from scheduler.experiments.resets import CacheResets
from scheduler.experiments.shadow import Shadow, Shadowed
from scheduler.policies import make_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.energy.window import Window
    from scheduler.experiments.definition import CapMode
    from scheduler.experiments.experiment import Experiment
    from scheduler.experiments.shadow import Comparison
    from scheduler.policies.base import Policy
    from scheduler.state import CallState


class Running:
    """Times of its methods are the core's seconds."""

    def __init__(self, experiment: Experiment, now: float, pace: float, *, whole: bool, again: bool) -> None:
        self.experiment = experiment
        self.clock = Clock(now, experiment.now, pace)
        self.following = Following(experiment, self.clock)
        self.whole = whole
        """It has all engines of the gateway."""
        definition = experiment.definition
        engines = definition.engines
        self.engines = frozenset(engines)
        self._models = frozenset(definition.models)
        self.halves: tuple[frozenset[str], ...] = ()
        if definition.design == "split_and_swap":
            half = len(engines) // 2
            self.halves = frozenset(engines[:half]), frozenset(engines[half:])
        self._looks: Shadowed | None = None
        self.resets: CacheResets | None = None
        if definition.reset_prefix_cache != "no":
            self.resets = CacheResets(engines, experiment.opened if again else None)
        self.meters = [PoolEnergy(names) for names in self.halves or (engines,)]

    def policy(self) -> Policy:
        """Both arms', each for the calls of its own workflows."""
        experiment, clock = self.experiment, self.clock
        arms = tuple(make_policy(arm.policy, dict(arm.options)) for arm in experiment.definition.arms)
        if experiment.definition.design == "shadow":
            return self._shadowed(*arms)
        sides = None
        if self.halves:

            def sides(arm: int, now: float) -> frozenset[str] | None:
                at = clock.at(now)
                block = experiment.schedule.block_at(at)
                if arm == CONTROL and (block is None or block.pair < len(experiment.definition.ramp_up)):
                    return None  # it has most of the workflows, or all: half of the engines might not bear them
                return self.halves[experiment.side_of(arm, at)]

        def arm_of(call: CallState, now: float) -> int:
            return experiment.arm_of(name_of(call.arrived), clock.at(now))

        return ArmPolicies(arms, arm_of, lambda now: experiment.arm_at(clock.at(now)), sides)

    def _shadowed(self, control: Policy, other: Policy) -> Policy:
        """The control's policy alone decides."""

        def say(comparison: Comparison, now: float) -> None:
            self.experiment.shadow_decision(comparison, self.clock.at(now))

        def dropped(why: str) -> None:
            self.experiment.shadow_dropped = why

        self._looks = Shadowed(control, Shadow(other, say), dropped)
        return self._looks

    def look(self, now: float) -> None:
        """Time has passed, of which a shadow hears nothing else."""
        if self._looks is not None:
            self._looks.look(now)

    def caches_to_reset(self, now: float) -> list[str]:
        """Engines whose prefix caches are to be emptied now. Says, when a block's wash-out is over, what came of it."""
        experiment, at = self.experiment, self.clock.at(now)
        block = experiment.schedule.block_at(at)
        if self.resets is None or block is None or experiment.state != "running":
            return []
        in_washout = at < block.measured_from
        found = self.resets.due(block.number, in_washout=in_washout)
        if (done := self.resets.judged(in_washout=in_washout)) is not None:
            experiment.caches_were_reset(done, at)
        return found

    def has(self, model: str | None) -> bool:
        """Whether calls of this model are the experiment's."""
        return self.whole or model in self._models

    def window(self, window: Window, *, simulated: bool) -> None:
        """An engine's window of energy has closed."""
        source = "simulated" if simulated else window.source
        for side, meter in enumerate(self.meters):
            at = self.clock.at
            for start, end, joules, of in meter.add(window.engine, window.start, window.end, window.energy, source):
                gpu, cpu, dram = joules
                self.experiment.add_energy(at(start), at(end), gpu, cpu, dram, of, side)

    def cap_modes(self, now: float) -> Iterator[tuple[str, CapMode | None]]:
        """What may be done with each engine's caps now; None: what the gateway's configuration says, as it was before
        the experiment. So it is again when it is over, unless a guardrail stopped it: then the control's mode stays."""
        experiment, arms = self.experiment, self.experiment.definition.arms
        over = experiment.state != "running"
        for name in experiment.definition.engines:
            side = 1 if self.halves and name in self.halves[1] else 0
            mode = arms[experiment.arm_at(self.clock.at(now), side)].cap_mode  # the control's, when it is over
            yield name, None if over and not experiment.harmed else mode
