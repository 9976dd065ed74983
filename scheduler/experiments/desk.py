"""Which experiment runs in this gateway, and what does it hear? Owned by the scheduler, told of by events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.actions import BlocksClosed, ExperimentEnded
from scheduler.events import ExperimentStarted, ExperimentStopped, ExperimentTick
from scheduler.experiments.arms import ArmPolicies
from scheduler.experiments.definition import CONTROL, ExperimentError, definition_of
from scheduler.experiments.experiment import Experiment
from scheduler.experiments.following import Clock, Following, name_of
from scheduler.experiments.pool_energy import PoolEnergy
from scheduler.experiments.saved import resume, saved
from scheduler.policies import make_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scheduler.actions import Action
    from scheduler.deciding import Deciding
    from scheduler.energy.desk import EnergyDesk
    from scheduler.energy.window import Window
    from scheduler.events import CallArrived, CapApplied
    from scheduler.experiments.rows import BlockRow
    from scheduler.state import CallState, EngineState


class Running:
    """An experiment with all that it needs here. Times of its methods are the core's seconds."""

    def __init__(self, experiment: Experiment, now: float, pace: float) -> None:
        self.experiment = experiment
        self.clock = Clock(now, experiment.now, pace)
        self.following = Following(experiment, self.clock)
        engines = experiment.definition.engines
        self.halves: tuple[frozenset[str], ...] = ()
        if experiment.definition.design == "split_and_swap":
            half = len(engines) // 2
            self.halves = frozenset(engines[:half]), frozenset(engines[half:])
        self.meters = [PoolEnergy(names) for names in self.halves or (engines,)]

    def policy(self) -> ArmPolicies:
        """Both arms', each for the calls of its own workflows."""
        experiment, clock = self.experiment, self.clock
        arms = tuple(make_policy(arm.policy, dict(arm.options)) for arm in experiment.definition.arms)
        sides = None
        if self.halves:

            def sides(arm: int, now: float) -> frozenset[str]:
                return self.halves[experiment.side_of(arm, clock.at(now))]

        def arm_of(call: CallState, now: float) -> int:
            return experiment.arm_of(name_of(call.arrived), clock.at(now))

        return ArmPolicies(arms, arm_of, lambda now: experiment.arm_at(clock.at(now)), sides)

    def window(self, window: Window, *, simulated: bool) -> None:
        """An engine's window of energy has closed."""
        source = "simulated" if simulated else window.source
        for side, meter in enumerate(self.meters):
            at = self.clock.at
            for start, end, joules, of in meter.add(window.engine, window.start, window.end, window.energy, source):
                gpu, cpu, dram = joules
                self.experiment.add_energy(at(start), at(end), gpu, cpu, dram, of, side)


class ExperimentDesk:
    """The one experiment that can run. None running costs a call nothing but a look."""

    def __init__(self, deciding: Deciding, energy: EnergyDesk, engines: Mapping[str, EngineState]) -> None:
        self._deciding = deciding
        self._energy = energy
        self._engines = engines
        self.running: Running | None = None
        self.last: Experiment | None = None
        """The one that runs, or ran last."""
        self._draining = False
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            ExperimentStarted: self._started,
            ExperimentStopped: self._stopped,
            ExperimentTick: self._tick,
        }

    # --- events ---

    def _started(self, event: ExperimentStarted, now: float, actions: list[Action]) -> None:
        """ExperimentError if it cannot be; then nothing has changed."""
        if self.running is not None:
            raise ExperimentError([f'id: experiment "{self.running.experiment.definition.id}" is running; stop it'])
        if event.state is None:
            experiment = Experiment(definition_of(event.definition), event.wall_seconds)
        else:
            experiment = resume(event.state, event.wall_seconds)
        running = Running(experiment, now, event.pace)
        policy = running.policy()
        self.running, self.last = running, experiment
        self._energy.also = self._window
        self._deciding.install(policy, now)
        self._tick(ExperimentTick(event.wall_seconds), now, actions)

    def _stopped(self, event: ExperimentStopped, now: float, actions: list[Action]) -> None:
        running = self.running
        if running is not None and running.experiment.definition.id == event.experiment:
            self._closed(running.experiment.stop(running.clock.at(now), event.why), now, actions)

    def _tick(self, event: ExperimentTick, now: float, actions: list[Action]) -> None:
        if (running := self.running) is None or self._draining:
            return
        experiment, at = running.experiment, running.clock.at(now)
        running.following.tick(now)
        experiment.clocks(at, event.wall_seconds)
        closed = experiment.tick(at)
        for name in experiment.definition.engines:
            engine = self._engines.get(name)
            if engine is None or engine.removed or engine.breaker.state == "open":
                experiment.mark("engine_lost", at)
        self._closed(closed, now, actions)

    # --- what the core tells ---

    def arrived(self, call: CallState, now: float) -> None:
        """Before its policy hears of it."""
        if self.running is not None:
            self.running.following.arrived(call, now)

    def over(self, call_id: str, now: float, reason: str, prompt: int | None = 0, output: int | None = 0) -> None:
        """A call has ended; not while the process goes down, which is no arm's fault."""
        if self.running is not None and not self._draining:
            self.running.following.over(call_id, now, reason, prompt or 0, output or 0)

    def refused(self, event: CallArrived, now: float) -> None:
        """A call was not taken in because too many are held."""
        if self.running is not None:
            self.running.following.refused(event, now)

    def cap_applied(self, event: CapApplied, now: float) -> None:
        """A limit was set, or could not be: then the arms are not what they are said to be."""
        if self.running is not None and event.by == "us" and event.applied is None:
            self.running.experiment.mark("cap_not_applied", self.running.clock.at(now))

    def policy_failed(self, now: float, actions: list[Action]) -> None:
        """`passthrough` decides for both arms: there is nothing to compare any more."""
        running, failed = self.running, self._deciding.failed
        if running is not None and failed is not None:
            why = f"a policy failed in {failed.hook}: {failed.error}"
            self._closed(running.experiment.stop(running.clock.at(now), why), now, actions)

    def drain(self) -> None:
        """The process goes down: what happens from here on is in no block."""
        self._draining = True

    def _window(self, window: Window, *, simulated: bool) -> None:
        if self.running is not None:
            self.running.window(window, simulated=simulated)

    def _closed(self, rows: list[BlockRow], now: float, actions: list[Action]) -> None:
        """Say what has closed; when the experiment is over, the control's policy decides from here on."""
        assert self.running is not None
        experiment = self.running.experiment
        definition = experiment.definition
        if rows:
            actions.append(BlocksClosed(definition.id, tuple(row.as_json() for row in rows)))
        if experiment.state == "running":
            return
        self.running = self._energy.also = None
        actions.append(ExperimentEnded(definition.id, experiment.state, experiment.stopped_why))
        control = definition.arms[CONTROL]
        self._deciding.change(control.policy, dict(control.options), now)

    # --- looking ---

    def next_edge(self, now: float) -> float | None:
        """When a tick is due at the latest, in the core's seconds; None: nothing runs."""
        if (running := self.running) is None:
            return None
        edge = running.experiment.next_edge(running.clock.at(now))
        return None if edge is None else running.clock.back(edge)

    def saved(self, now: float) -> dict[str, Any] | None:
        """The state of the one that runs, for the disk."""
        running = self.running
        return None if running is None else saved(running.experiment, running.clock.at(now))

    def status(self, now: float) -> dict[str, Any] | None:
        """Of the one that runs, or ran last."""
        if (experiment := self.last) is None:
            return None
        return experiment.status(experiment.now if self.running is None else self.running.clock.at(now))

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        if self.running is not None:
            self.running.experiment.validate()
            self.running.following.validate()
