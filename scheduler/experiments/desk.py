"""Which experiments run in this gateway, and what do they hear? Owned by the scheduler, told of by events."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from scheduler.actions import BlocksClosed, ExperimentEnded, ResetPrefixCache
from scheduler.events import ExperimentStarted, ExperimentStopped, ExperimentTick, PrefixCacheReset
from scheduler.experiments.definition import CONTROL, ExperimentError, definition_of
from scheduler.experiments.experiment import Experiment
from scheduler.experiments.pools import REST, PoolPolicies
from scheduler.experiments.running import Running
from scheduler.experiments.saved import resume, saved
from scheduler.policies import make_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scheduler.actions import Action
    from scheduler.deciding import Deciding
    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EnergyDesk
    from scheduler.energy.window import Window
    from scheduler.events import CapApplied
    from scheduler.experiments.rows import BlockRow
    from scheduler.policies.base import Policy
    from scheduler.state import CallState, EngineState

OVER_MAX = 8
"""Experiments that are over and still shown as they ended."""


class ExperimentDesk:
    """All experiments, each on engines of its own. None running costs a call nothing but a look."""

    def __init__(
        self, deciding: Deciding, energy: EnergyDesk, caps: CapsDesk, engines: Mapping[str, EngineState]
    ) -> None:
        self._deciding = deciding
        self._energy = energy
        self._caps = caps
        self._engines = engines
        self.running: dict[str, Running] = {}
        """By their ids."""
        self.over_now: OrderedDict[str, Experiment] = OrderedDict()
        """Those that ended in this process, the last ones."""
        self._policies: PoolPolicies | None = None
        self._failed: dict[str, str] = {}
        """Why one of its policies decides no more, by experiment; they are stopped when the event is over."""
        self._draining = False
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            ExperimentStarted: self._started,
            ExperimentStopped: self._stopped,
            ExperimentTick: self._tick,
            PrefixCacheReset: self._cache_reset,
        }

    # --- events ---

    def _started(self, event: ExperimentStarted, now: float, actions: list[Action]) -> None:
        """ExperimentError if it cannot be; then nothing has changed."""
        if event.state is None:
            experiment = Experiment(definition_of(event.definition), event.wall_seconds)
        else:
            experiment = resume(event.state, event.wall_seconds)
        definition = experiment.definition
        for name, other in self.running.items():
            if name == definition.id or not other.engines.isdisjoint(definition.engines):
                raise ExperimentError([f'engines: experiment "{name}" has them, and is running; stop it'])
        there = {name for name, engine in self._engines.items() if not engine.removed}
        running = Running(experiment, now, event.pace, whole=there <= set(definition.engines),
                          again=event.state is not None)  # fmt: skip
        policy = running.policy()
        self.running[definition.id] = running
        self.over_now.pop(definition.id, None)
        self._energy.also = self._window
        self._take_part(definition.id, policy, running, now)
        self._tick(ExperimentTick(event.wall_seconds), now, actions)

    def _take_part(self, name: str, policy: Policy, running: Running, now: float) -> None:
        if self._policies is None:
            self._policies = PoolPolicies(self._pool_of, self._rest, self._part_failed)
            self._policies.add(name, policy, None if running.whole else running.engines)
            self._deciding.install(self._policies, now)
            return
        self._policies.add(name, policy, running.engines)
        self._policies.take(name, now)

    def _rest(self) -> Policy:
        self._deciding.failed = None
        name, options = self._deciding.asked
        return make_policy(name, options)

    def _pool_of(self, call: CallState) -> str:
        model = call.arrived.model
        for name, running in self.running.items():
            if running.has(model):
                return name
        taken = frozenset[str]().union(*(running.engines for running in self.running.values()))
        if all(name in taken for name in self._engines):
            return next(iter(self.running), REST)
        return REST

    def _stopped(self, event: ExperimentStopped, now: float, actions: list[Action]) -> None:
        if (running := self.running.get(event.experiment)) is not None:
            self._closed(running, running.experiment.stop(running.clock.at(now), event.why), now, actions)

    def _tick(self, event: ExperimentTick, now: float, actions: list[Action]) -> None:
        if self._draining:
            return
        for running in list(self.running.values()):
            experiment, at = running.experiment, running.clock.at(now)
            running.following.tick(now)
            running.look(now)
            experiment.clocks(at, event.wall_seconds)
            closed = experiment.tick(at)
            self._look_at_engines(running, at)
            if all(name not in self._engines for name in running.engines):
                closed += experiment.stop(at, "none of its engines is in the configuration any more")
            self._cap_modes(running, now, actions)
            actions += [ResetPrefixCache(name) for name in running.caches_to_reset(now)]
            self._closed(running, closed, now, actions)

    def _cache_reset(self, event: PrefixCacheReset, now: float, actions: list[Action]) -> None:
        for running in self.running.values():
            if running.resets is not None:
                running.resets.answered(event.engine, done=event.done)

    def _look_at_engines(self, running: Running, at: float) -> None:
        for name in running.engines:
            engine = self._engines.get(name)
            if engine is None or engine.removed or engine.breaker.state == "open":
                running.experiment.mark("engine_lost", at)
        if running.whole and any(name not in running.engines for name in self._engines):
            running.experiment.mark("engine_added", at)

    def _cap_modes(self, running: Running, now: float, actions: list[Action]) -> None:
        for engine, mode in running.cap_modes(now):
            self._caps.set_mode(engine, mode or self._caps.rules.mode, now, actions)

    # --- what the core tells ---

    def arrived(self, call: CallState, now: float) -> None:
        """Before its policy hears of it."""
        if self.running and (running := self.running.get(self._pool_of(call))) is not None:
            running.following.arrived(call, now)

    def over(self, call_id: str, now: float, reason: str, prompt: int | None = 0, output: int | None = 0) -> None:
        """A call has ended; not while the process goes down, which is no arm's fault."""
        if not self._draining:
            for running in self.running.values():
                running.following.over(call_id, now, reason, prompt or 0, output or 0)

    def refused(self, call: CallState, now: float) -> None:
        """A call was not taken in because too many are held."""
        if self.running and (running := self.running.get(self._pool_of(call))) is not None:
            running.following.refused(call.arrived, now)

    def cap_applied(self, event: CapApplied, now: float) -> None:
        """A limit was set, or could not be: then the arms are not what they are said to be."""
        for running in self.running.values():
            if event.engine in running.engines and event.by == "us" and event.applied is None:
                running.experiment.mark("cap_not_applied", running.clock.at(now))

    def _part_failed(self, name: str, hook: str, error: Exception) -> None:
        """`passthrough` decides there: for both arms, so there is nothing to compare any more; or for the engines that
        no experiment has."""
        failed = self._deciding.failed_in_part(hook, error)
        if name == REST:
            self._deciding.failed = failed
        else:
            self._failed.setdefault(name, f"a policy failed in {failed.hook}: {failed.error}")

    def policy_failed(self, now: float, actions: list[Action]) -> None:
        """Something was said of policies: the experiments are over whose arms it was."""
        failed, self._failed = self._failed, {}
        if self._policies is not None and self._deciding.policy is not self._policies and self._deciding.failed:
            why = self._deciding.failed  # all are relieved at once: no arm decides any more
            failed.update(dict.fromkeys(self.running, f"the policies failed in {why.hook}: {why.error}"))
        for name, said in failed.items():
            if (running := self.running.get(name)) is not None:
                self._closed(running, running.experiment.stop(running.clock.at(now), said), now, actions)

    def drain(self) -> None:
        """The process goes down: what happens from here on is in no block."""
        self._draining = True

    def _window(self, window: Window, *, simulated: bool) -> None:
        for running in self.running.values():
            running.window(window, simulated=simulated)

    def _closed(self, running: Running, rows: list[BlockRow], now: float, actions: list[Action]) -> None:
        """Say what has closed; when the experiment is over, the control's policy decides from here on."""
        experiment = running.experiment
        definition = experiment.definition
        if rows:
            actions.append(BlocksClosed(definition.id, tuple(row.as_json() for row in rows)))
        if experiment.state == "running":
            return
        del self.running[definition.id]
        self.over_now[definition.id] = experiment
        while len(self.over_now) > OVER_MAX:
            self.over_now.popitem(last=False)
        actions.append(ExperimentEnded(definition.id, experiment.state, experiment.stopped_why))
        self._cap_modes(running, now, actions)
        self._leave(running, now)

    def _leave(self, running: Running, now: float) -> None:
        definition = running.experiment.definition
        if self.running:
            if self._policies is not None:
                self._policies.drop(definition.id, now)
            return
        self._policies = self._energy.also = None
        if running.whole:
            control = definition.arms[CONTROL]
            self._deciding.change(control.policy, dict(control.options), now)
        else:  # the policy of its control, too: that is asked for at the start
            name, options = self._deciding.asked
            self._deciding.change(name, options, now)

    # --- looking ---

    def next_edge(self, now: float) -> float | None:
        """When a tick is due at the latest, in the core's seconds; None: nothing runs."""
        edges = [
            running.clock.back(edge)
            for running in self.running.values()
            if (edge := running.experiment.next_edge(running.clock.at(now))) is not None
        ]
        return min(edges, default=None)

    def saved(self, now: float) -> list[dict[str, Any]]:
        """The states of those that run, for the disk."""
        return [saved(running.experiment, running.clock.at(now)) for running in self.running.values()]

    def status(self, name: str, now: float) -> dict[str, Any] | None:
        """Of one that runs, or ended in this process not long ago."""
        if (running := self.running.get(name)) is not None:
            return running.experiment.status(running.clock.at(now))
        experiment = self.over_now.get(name)
        return None if experiment is None else experiment.status(experiment.now)

    def statuses(self, now: float) -> list[dict[str, Any]]:
        """Of all those, what ended first first."""
        found = (self.status(name, now) for name in (*self.over_now, *self.running))
        return [status for status in found if status is not None]

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        for running in self.running.values():
            running.experiment.validate()
            running.following.validate()
