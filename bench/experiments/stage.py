"""Blocks on the twin: traffic, two policies behind one engine, and what each block came to."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from backends.twin import calibration as calibrations
from backends.twin.cost import CostModel
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.energy.caps_play import isolated_seconds
from bench.twin.play import Player
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, EnergyPrior, EngineSpec
from scheduler.experiments.arms import ArmPolicies
from scheduler.experiments.rows import WorkflowOutcome
from scheduler.policies import make_policy
from workloads.shapes import chat, copilot, map_reduce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.twin.play import Played
    from scheduler.actions import Action
    from scheduler.events import Event
    from scheduler.experiments.definition import Arm
    from scheduler.state import CallState
    from workloads.shapes import WorkflowShape

CALLS_MAX = 4096
MIX = {"chat": 0.6, "copilot": 0.25, "map-reduce": 0.15}
"""Short workflows, so that blocks of two minutes have a wash-out longer than their p95."""


def mixed(rng: random.Random, prefix: str) -> Iterator[WorkflowShape]:
    """Workflows of the mix, without end."""
    number = 0
    while True:
        number += 1
        name = f"{prefix}-{number}"
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        if kind == "chat":
            yield chat(name, rng)
        elif kind == "copilot":
            yield copilot(name, rng)
        else:
            yield map_reduce(name, rng, chunks=(4, 10), chunk_tokens=(256, 1024))


STRETCH = 3.0
"""Each workflow's deadline, in units of its time alone on the engine."""


class Host(Protocol):
    """Whoever decides on arms and hears of ends."""

    def assign(self, workflow_id: str, now: float) -> int:
        """The arm of a workflow that begins."""

    def arm_of(self, workflow_id: str, now: float) -> int:
        """The arm of one that was assigned."""

    def first(self, now: float) -> int:
        """The arm whose turn it is."""

    def ended(self, outcome: WorkflowOutcome, now: float) -> None:
        """A workflow is over."""


class Shape(NamedTuple):
    """What all blocks have in common."""

    calibration: str = "h200-llama-3.1-8b"
    block_seconds: float = 120.0
    washout_seconds: float = 20.0


class Stage:
    """One engine, one scheduler with two policies, one host."""

    def __init__(self, calibration: str, arms: tuple[Arm, ...], host: Host, *, by_call: bool = False) -> None:
        self._host = host
        self.engine = TwinEngine(calibrations.load(calibration))
        self.scheduler = Scheduler(SchedulerConfig((EngineSpec("twin", CALLS_MAX),), "passthrough"), 0.0)
        self._known: set[str] = set()
        self._by_call = by_call
        policies = tuple(make_policy(arm.policy, dict(arm.options)) for arm in arms)
        self.costs = CostModel(self.engine.calibration)
        self._isolated: dict[str, float] = {}
        if any(policy.uses_workflows for policy in policies):
            self.scheduler.handle(EnergyPrior("twin", prior_of(self.engine.calibration), simulated=True), 0.0)
        arms_policy = ArmPolicies(policies, self._arm_of, host.first)
        self.scheduler.deciding.policy = arms_policy
        arms_policy.begin(self.scheduler.view, 0.0)
        self.world = World(self, {"twin": self.engine})
        self.player = Player(self.world)
        self._heard = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler, with a coin for each workflow (or each call) before it."""
        if isinstance(event, CallArrived):
            key = event.call_id if self._by_call else event.workflow_id
            if key not in self._known:
                self._known.add(key)
                self._host.assign(key, now)
            if not event.after:
                event = event._replace(deadline_ms=1000.0 * STRETCH * self._isolated[event.workflow_id])
        actions = self.scheduler.handle(event, now)
        played = self.player.played
        if self._heard < len(played):
            self._hear(now)
        return actions

    def _arm_of(self, call: CallState, now: float) -> int:
        return self._host.arm_of(call.arrived.call_id if self._by_call else call.arrived.workflow_id, now)

    def _hear(self, now: float) -> None:
        for each in self.player.played[self._heard :]:
            deadline = STRETCH * self._isolated.pop(each.workflow.id)
            self._host.ended(outcome_of(each, deadline), now)
        self._heard = len(self.player.played)

    def traffic(self, seed: str, rates: Callable[[float], float], highest: float, until: float) -> None:
        """Workflows at random times, `rates(now)` a second: those of a rate of `highest`, thinned."""
        rng = random.Random(seed)
        workflows = mixed(random.Random(f"{seed} shapes"), f"wf-{seed}")
        time = self.world.time

        def next_one() -> None:
            if time.now >= until:
                return
            workflow = next(workflows)
            if rng.random() * highest < rates(time.now):
                self._isolated[workflow.id] = isolated_seconds(workflow, self.costs)
                self.player.start(workflow)
            time.at(time.now + rng.expovariate(highest), next_one)

        time.at(time.now + rng.expovariate(highest), next_one)

    def run(self, until: float) -> None:
        """On to this time; ends are heard of."""
        self.world.time.run(until=until)
        self._hear(until)

    def joules(self) -> float:
        """Of the card up to now."""
        return self.engine.meter.joules_at(self.world.time.now)


def outcome_of(played: Played, deadline_seconds: float) -> WorkflowOutcome:
    """Of a workflow that is done, as the gateway will say it."""
    calls = played.workflow.calls
    return WorkflowOutcome(
        played.workflow.id, played.seconds, played.finished_at, played.workflow.kind, played.refused > 0,
        played.seconds > deadline_seconds,
        sum(call.prompt_tokens for call in calls), sum(call.output_tokens for call in calls),
    )  # fmt: skip
